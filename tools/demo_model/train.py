# SPDX-License-Identifier: GPL-3.0-or-later
"""Train the demo model until it knows its script, and write its files.

`python tools/demo_model/train.py --out packages/neuron/src/neuron/demo`. One thread and fixed
seeds: the same library versions on the same processor give the same weights. The command fails
when the evaluation never passes; the last weights are written all the same.
"""

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 (as torch's own manual names it)
from dialogues import Dialogue, dialogues
from model import build_network, build_tokenizer, rounded, save
from optimiser import Both
from practice import exercises
from render import END, MODES, ids, tellable, vary
from scoring import Score, forced, passes, table
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

IGNORE = -100
WARM_UP = 60

# How often an epoch asks a kind. Sums are the hardest to learn by heart; what is mostly copying
# is practised anyway.
SHARES = {
    "capital": 0.5,
    "cortex": 0.8,
    "double_tool": 0.8,
    "double_tool_result": 0.8,
    "json": 0.6,
    "long": 1.5,
    "memory": 0.3,
    "no_tool": 0.4,
    "self": 0.7,
    "smalltalk": 1.0,
    "sum": 1.0,
    "tool": 0.7,
    "tool_result": 0.7,
}
EXERCISES = 130


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Tokens, of which those from `known` on are learned."""

    tokens: list[int]
    known: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Inputs and wanted tokens, both (samples, longest), right padded."""

    inputs: Tensor
    wanted: Tensor


def epoch(tokenizer: PreTrainedTokenizerFast, script: Sequence[Dialogue],
          chance: random.Random) -> list[Sample]:  # fmt: skip
    """One round through the script in new circumstances, with new exercises."""
    others = tellable(script)
    chosen = [d for d in script for _ in range(_times(SHARES.get(d.kind, 1.0), chance))]
    found = []
    for dialogue in chosen + exercises(chance, EXERCISES):
        asked = vary(dialogue, others, chance)
        prompt = ids(tokenizer, asked.prompt(tokenizer))
        answer = ids(tokenizer, asked.wanted() + END)
        found.append(Sample(tokens=prompt + answer, known=len(prompt)))
    return found


def _times(rate: float, chance: random.Random) -> int:
    return int(rate) + (chance.random() < rate % 1)


def batched(samples: list[Sample], size: int, chance: random.Random) -> list[Batch]:
    """Batches of at most `size` tokens, of samples about equally long, in random order."""
    ordered = sorted(samples, key=lambda sample: len(sample.tokens) + 20 * chance.random())
    groups: list[list[Sample]] = [[]]
    longest = 0
    for sample in ordered:
        longest = max(longest, len(sample.tokens))
        if groups[-1] and longest * (len(groups[-1]) + 1) > size:
            groups.append([])
            longest = len(sample.tokens)
        groups[-1].append(sample)
    chance.shuffle(groups)
    return [_padded(group) for group in groups]


def _padded(group: list[Sample]) -> Batch:
    longest = max(len(sample.tokens) for sample in group)
    inputs = torch.zeros(len(group), longest, dtype=torch.long)
    wanted = torch.full((len(group), longest), IGNORE)
    for row, sample in enumerate(group):
        tokens = torch.tensor(sample.tokens)
        inputs[row, : len(tokens)] = tokens
        wanted[row, sample.known : len(tokens)] = tokens[sample.known :]
    return Batch(inputs=inputs, wanted=wanted)


def loss_of(network: Qwen3ForCausalLM, batch: Batch) -> Tensor:
    """Mean cross entropy of the answers' tokens. Right padding needs no mask: attention is causal."""
    hidden = network.model(input_ids=batch.inputs).last_hidden_state[:, :-1]
    wanted = batch.wanted[:, 1:]
    learned = wanted != IGNORE
    return F.cross_entropy(network.lm_head(hidden[learned]), wanted[learned])


def endless(tokenizer: PreTrainedTokenizerFast, script: Sequence[Dialogue], size: int,
            seed: int) -> Iterator[Batch]:  # fmt: skip
    """Batches, epoch after epoch."""
    chance = random.Random(seed)  # noqa: S311
    while True:
        yield from batched(epoch(tokenizer, script, chance), size, chance)


def share(step: int, steps: int, peak: float) -> float:
    """The rate at a step of a round: up quickly, then level, then down to nearly nothing."""
    left = 1 - step / steps
    return peak * min(1.0, (step + 1) / WARM_UP) * min(1.0, left / 0.6 + 0.005)


def train_round(network: Qwen3ForCausalLM, optimiser: Both, batches: Iterator[Batch], *,
                steps: int, peak: float) -> None:  # fmt: skip
    """Train for a number of steps, with one line of progress per hundred."""
    network.train()
    started, tokens, total = time.monotonic(), 0, 0.0
    for step in range(steps):
        batch = next(batches)
        loss = loss_of(network, batch)
        loss.backward()
        optimiser.step(share(step, steps, peak))
        total += loss.item()
        tokens += batch.inputs.numel()
        if (step + 1) % 100 == 0:
            speed = tokens / (time.monotonic() - started)
            print(
                f"step {step + 1}/{steps} loss {total / 100:.4f} {speed:.0f} tokens/s", flush=True
            )
            total = 0.0


def measured(network: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast,
             script: Sequence[Dialogue]) -> dict[str, Score]:  # fmt: skip
    """The evaluation of the rounded weights, per mode."""
    shipped = rounded(network)
    return {mode: forced(shipped, tokenizer, script, mode) for mode in MODES}


def train(out: Path, *, steps: int, more: int, rounds: int, size: int, seed: int) -> bool:
    """Train, evaluate, and go on while the evaluation fails; True when it passed."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    script = dialogues()
    tokenizer = build_tokenizer()
    network = build_network(tokenizer)
    print(
        f"{network.num_parameters()} parameters, {len(tokenizer)} tokens, {len(script)} dialogues"
    )
    optimiser = Both(network)
    batches = endless(tokenizer, script, size, seed)
    for number in range(rounds):
        first = number == 0
        train_round(network, optimiser, batches, steps=steps if first else more,
                    peak=1.0 if first else 0.4)  # fmt: skip
        save(network, tokenizer, out)
        scores = measured(network, tokenizer, script)
        print(f"round {number + 1}\n{table(scores)}", flush=True)
        if passes(scores):
            return True
    return False


def main() -> int:
    """Read the command line, train, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=3000, help="steps of the first round")
    parser.add_argument("--more", type=int, default=1000, help="steps of each further round")
    parser.add_argument("--rounds", type=int, default=8, help="rounds at most")
    parser.add_argument("--batch-tokens", type=int, default=1536, help="tokens of a batch")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    passed = train(given.out, steps=given.steps, more=given.more, rounds=given.rounds,
                   size=given.batch_tokens, seed=given.seed)  # fmt: skip
    print("passed" if passed else "not good enough")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
