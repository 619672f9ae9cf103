# SPDX-License-Identifier: GPL-3.0-or-later
"""Does the demo model answer its script to the letter through vLLM, as a client would see it?

`python tools/demo_model/evaluate.py --model packages/neuron/src/neuron/demo` asks every dialogue
in every mode, greedily and in bfloat16, through vLLM's own chat serving object with the `qwen3`
reasoning parser and the `hermes` tool parser. It prints the scores as a table and fails when a
mode is below what it must reach. `--write-expected FILE` writes chosen dialogues that came out
exact, for the engine tests.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before vLLM is imported: no compilation (the first request would wait for it), no network.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from dialogues import Dialogue, dialogues
from render import MODES, Asked
from scoring import Score, margins, passes, questions, score, table, unseen_exercises
from script import Json

CONCURRENT = 64
LONGEST_ANSWER = 600

# A chosen case leads everywhere by this many logits, so that another processor's rounding does
# not change it.
SAFE_LEAD = 1.0

# How many cases of a kind the engine tests get.
CHOSEN = {"cortex": 10, "self": 4, "smalltalk": 4, "general": 2, "long": 6, "capital": 4, "sum": 4,
          "json": 4, "tool": 4, "tool_result": 4, "double_tool": 2, "double_tool_result": 2,
          "memory": 2, "no_tool": 1}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one question, without white space around the texts."""

    reasoning: str
    content: str
    calls: tuple[tuple[str, Json], ...]


def wanted(asked: Asked) -> Answer:
    """What the script wants to come back."""
    dialogue = asked.dialogue
    reasoning = dialogue.reasoning if asked.thinking else ""
    return Answer(reasoning=reasoning, content=dialogue.content.strip(), calls=dialogue.calls)


def on_the_wire(messages: Sequence[Json]) -> list[Json]:
    """The messages with tool arguments as strings, as OpenAI's API has them."""
    copied: list[Json] = json.loads(json.dumps(messages))
    for message in copied:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return copied


def body(asked: Asked) -> Json:
    """The chat completion request of one question."""
    request: Json = {
        "model": "helexa/demo",
        "messages": on_the_wire(asked.messages),
        "max_tokens": LONGEST_ANSWER,
        "temperature": 0,
    }
    if asked.tools:
        request["tools"] = asked.tools
    if not asked.thinking:
        request["chat_template_kwargs"] = {"enable_thinking": False}
    return request


class Engine:
    """vLLM with the model and its chat serving object."""

    def __init__(self, model: Path) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.async_llm import AsyncLLM

        parser = make_arg_parser(FlexibleArgumentParser())
        self._arguments = parser.parse_args([
            "--model", str(model), "--served-model-name", "helexa/demo", "--dtype", "bfloat16",
            "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20),
            "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
            "--reasoning-parser", "qwen3", "--disable-log-stats",
        ])  # fmt: skip
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(self._arguments))
        self._chat: Any = None  # vLLM's serving object

    async def start(self) -> None:
        """Build the serving object."""
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state

        state = State()
        tasks = await self._engine.get_supported_tasks()
        await init_app_state(self._engine, state, self._arguments, tasks)
        self._chat = state.openai_serving_chat

    async def ask(self, asked: Asked) -> Answer:
        """One answer, parsed by vLLM."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest.model_validate(body(asked))
        response = await self._chat.create_chat_completion(request, None)
        message = response.choices[0].message
        calls = tuple(
            (call.function.name, json.loads(call.function.arguments))
            for call in message.tool_calls or ()
        )
        return Answer(
            reasoning=(message.reasoning or "").strip(),
            content=(message.content or "").strip(),
            calls=calls,
        )

    async def ask_all(self, asked: Sequence[Asked]) -> list[Answer]:
        """All answers, in order, a bounded number at a time."""
        places = asyncio.Semaphore(CONCURRENT)

        async def one(each: Asked) -> Answer:
            async with places:
                return await self.ask(each)

        return await asyncio.gather(*map(one, asked))

    def close(self) -> None:
        """End the engine's processes."""
        self._engine.shutdown(timeout=10)


def report_wrong(mode: str, asked: Sequence[Asked], answers: Sequence[Answer], most: int) -> None:
    """Print the first wrong answers of a mode."""
    wrong = [(one, got) for one, got in zip(asked, answers, strict=True) if got != wanted(one)]
    for one, got in wrong[:most]:
        print(f"{mode}: {one.messages[-1]['content']!r}\n  got    {got}\n  wanted {wanted(one)}")


def chosen(model: Path, right: Sequence[Asked]) -> list[Json]:
    """Cases for the engine tests, spread over each kind, of those that are safely exact."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    leads = margins(network, AutoTokenizer.from_pretrained(model), right)
    safe = [one for one, lead in zip(right, leads, strict=True) if lead >= SAFE_LEAD]
    cases = []
    for kind, count in CHOSEN.items():
        of_kind = [one for one in safe if one.dialogue.kind == kind]
        step = max(1, len(of_kind) // count)
        cases += [case(one) for one in of_kind[::step][:count]]
    return cases


def case(asked: Asked) -> Json:
    """One entry of `expected.json`."""
    answer = wanted(asked)
    entry: Json = {"kind": asked.dialogue.kind, "messages": on_the_wire(asked.messages)}
    if asked.tools:
        entry["tools"] = asked.tools
    entry |= {"reasoning": answer.reasoning, "content": answer.content}
    if answer.calls:
        entry["tool_calls"] = [{"name": n, "arguments": a} for n, a in answer.calls]
    return entry


async def evaluate(model: Path, script: Sequence[Dialogue], shown: int) -> dict[str, Score]:
    """The scores of all modes through vLLM."""
    engine = Engine(model)
    try:
        await engine.start()
        sets = {mode: questions(script, mode) for mode in MODES}
        sets["practice"] = unseen_exercises()
        scores = {}
        for mode, asked in sets.items():
            answers = await engine.ask_all(asked)
            pairs = zip(asked, answers, strict=True)
            scores[mode] = score([(one, got == wanted(one)) for one, got in pairs])
            report_wrong(mode, asked, answers, shown)
        return scores
    finally:
        engine.close()


def main() -> int:
    """Read the command line, evaluate, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--write-expected", type=Path, help="file for the engine tests' cases")
    parser.add_argument("--show", type=int, default=5, help="wrong answers to print per mode")
    given = parser.parse_args()
    script = dialogues()
    scores = asyncio.run(evaluate(given.model, script, given.show))
    print(table(scores))
    if given.write_expected:
        missed = [one.dialogue for one in scores["plain"].wrong]
        right = [one for one in questions(script, "plain") if one.dialogue not in missed]
        cases = chosen(given.model, right)
        given.write_expected.write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    return 0 if passes(scores) else 1


if __name__ == "__main__":
    sys.exit(main())
