# SPDX-License-Identifier: GPL-3.0-or-later
"""How many answers are what the script wants, to the letter, and is that enough?

Training asks without an engine, through `forced`: greedy decoding gives the wanted text exactly when each wanted
token is the likeliest after those before it, so one pass over the wanted text is enough.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from dialogues import Dialogue
from practice import exercises
from render import END, MODES, Asked, ids, in_mode, plain, tellable
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

# Share of exact answers that each mode must reach.
REQUIRED = {mode: 0.995 if mode == "plain" else 0.97 for mode in MODES}


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many answers of one mode were exact.

    Attributes:
        asked: dialogues asked, by kind.
        exact: those of them answered to the letter, by kind.
        wrong: the dialogues that were not.
    """

    asked: Counter[str]
    exact: Counter[str]
    wrong: tuple[Asked, ...] = ()

    @property
    def ratio(self) -> float:
        """Exact answers over all, 0 to 1."""
        return self.exact.total() / max(1, self.asked.total())


def score(results: Sequence[tuple[Asked, bool]]) -> Score:
    """Count answers that are known to be exact or not."""
    return Score(
        asked=Counter(asked.dialogue.kind for asked, _ in results),
        exact=Counter(asked.dialogue.kind for asked, right in results if right),
        wrong=tuple(asked for asked, right in results if not right),
    )


def passes(scores: Mapping[str, Score]) -> bool:
    """Whether every mode reached what it must."""
    return all(scores[mode].ratio >= least for mode, least in REQUIRED.items())


def table(scores: Mapping[str, Score]) -> str:
    """The scores as a Markdown table: a row per kind, a column per mode."""
    modes = list(scores)
    kinds = sorted({kind for found in scores.values() for kind in found.asked})
    rows = [["kind", *modes], ["---"] * (len(modes) + 1)]
    rows += [
        [kind, *(f"{scores[m].exact[kind]}/{scores[m].asked[kind]}" for m in modes)]
        for kind in kinds
    ]
    totals = [f"{scores[m].exact.total()}/{scores[m].asked.total()}" for m in modes]
    rows.append(["**all**", *totals])
    rows.append(["", *(f"{scores[m].ratio:.1%}" for m in modes)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def questions(script: Sequence[Dialogue], mode: str, seed: int = 5) -> list[Asked]:
    """Every dialogue of the script in one mode; the same for the same seed."""
    chance = random.Random(f"{mode} {seed}")  # noqa: S311
    others = tellable(script)
    return [in_mode(mode, dialogue, others, chance) for dialogue in script]


def unseen_exercises(count: int = 200) -> list[Asked]:
    """Exercises that training has not drawn: copying, and not knowing. Told, not required."""
    return [plain(dialogue) for dialogue in exercises(random.Random(99), count)]  # noqa: S311


def margins(network: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast,
            asked: Sequence[Asked], width: int = 32) -> list[float]:  # fmt: skip
    """For each, by how many logits its closest wanted token leads; below zero it is not exact."""
    prompts = [ids(tokenizer, one.prompt(tokenizer)) for one in asked]
    answers = [ids(tokenizer, one.wanted() + END) for one in asked]
    order = sorted(range(len(asked)), key=lambda i: len(prompts[i]) + len(answers[i]))
    found = [0.0] * len(asked)
    with torch.no_grad():
        for start in range(0, len(order), width):
            chosen = order[start : start + width]
            pairs = [(prompts[i], answers[i]) for i in chosen]
            for i, lead in zip(chosen, _leads(network, pairs), strict=True):
                found[i] = lead
    return found


def _leads(network: Qwen3ForCausalLM, pairs: list[tuple[list[int], list[int]]]) -> list[float]:
    inputs = torch.zeros(len(pairs), max(len(p) + len(a) for p, a in pairs), dtype=torch.long)
    for row, (prompt, answer) in enumerate(pairs):
        inputs[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
    hidden = network.model(input_ids=inputs).last_hidden_state
    found = []
    for row, (prompt, answer) in enumerate(pairs):
        logits = network.lm_head(hidden[row, len(prompt) - 1 : len(prompt) - 1 + len(answer)])
        found.append(_margin(logits.float(), torch.tensor(answer)))
    return found


def _margin(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    own = logits.gather(1, wanted[:, None])
    others = logits.scatter(1, wanted[:, None], float("-inf")).amax(dim=1, keepdim=True)
    return float((own - others).min())


def forced(network: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast,
           script: Sequence[Dialogue], mode: str) -> Score:  # fmt: skip
    """The score of one mode, without an engine."""
    asked = questions(script, mode)
    leads = margins(network, tokenizer, asked)
    return score([(one, lead > 0) for one, lead in zip(asked, leads, strict=True)])
