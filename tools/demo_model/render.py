# SPDX-License-Identifier: GPL-3.0-or-later
"""How does a dialogue become the prompt the model sees and the text it should write?

`MODES` are the circumstances that evaluation asks every dialogue in; `vary` draws the
circumstances of one training sample. All chance comes from the caller's generator.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dialogues import Dialogue, assistant, user
from practice import exercises, other_tool, system_prompt
from script import SYSTEM_PROMPTS, TOOLS, Json
from transformers import PreTrainedTokenizerFast

MODES = ("plain", "system", "history", "nothink", "unseen", "variant", "tools")

# No training sample has one of these.
UNSEEN_PROMPTS = (
    "You are a careful expert. Always tell the truth.",
    "You are Max, a cheerful pirate who loves the sea. Speak like one.",
    "Today is 2026-11-21. The user lives in Oslo and prefers short answers.",
    "You are an AI coding agent in a terminal. Be direct. Use tools when they help.",
)

END = "<|im_end|>"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A dialogue in its circumstances: what a client would send, and what should come back."""

    dialogue: Dialogue
    messages: tuple[Json, ...]
    tools: list[Json] | None = None
    thinking: bool = True

    def prompt(self, tokenizer: PreTrainedTokenizerFast) -> str:
        """The rendered prompt, up to where the model goes on."""
        rendered = tokenizer.apply_chat_template(
            list(self.messages),
            tools=self.tools,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self.thinking,
        )
        return str(rendered)

    def wanted(self) -> str:
        """The text the model should write, without the end marker."""
        answer = self.dialogue.content + "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
            for name, arguments in self.dialogue.calls
        )
        if self.thinking:
            return f"<think>\n{self.dialogue.reasoning}\n</think>\n\n{answer}"
        return answer


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The tokens of a text that may hold markers."""
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(found)


def plain(dialogue: Dialogue) -> Asked:
    """The dialogue as it stands."""
    tools = TOOLS if dialogue.tools else None
    return Asked(dialogue=dialogue, messages=dialogue.messages, tools=tools)


def with_system(asked: Asked, text: str) -> Asked:
    """The same under a system prompt."""
    return replace(asked, messages=({"role": "system", "content": text}, *asked.messages))


def with_history(asked: Asked, earlier: Sequence[Dialogue]) -> Asked:
    """The same after other exchanges."""
    before: list[Json] = []
    for dialogue in earlier:
        before += [*dialogue.messages, assistant(dialogue.content, dialogue.calls)]
    return replace(asked, messages=(*before, *asked.messages))


def with_variant(asked: Asked, chance: random.Random) -> Asked:
    """The same, typed less carefully: no full stop, or no capital at the start."""
    *before, last = asked.messages
    if last["role"] != "user" or asked.dialogue.kind == "copy":
        return asked
    text = str(last["content"])
    how = chance.randint(0, 2)
    if how != 1 and len(text) > 3:
        text = text.rstrip("?.!")
    if how != 0 and not text.startswith("I "):
        text = text[:1].lower() + text[1:]
    return replace(asked, messages=(*before, user(text)))


def tellable(dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """The dialogues that may stand before another: short ones without tools and names."""
    kinds = ("cortex", "self", "smalltalk", "general", "capital", "sum", "json")
    return [dialogue for dialogue in dialogues if dialogue.kind in kinds]


def in_mode(mode: str, dialogue: Dialogue, others: Sequence[Dialogue],
            chance: random.Random) -> Asked:  # fmt: skip
    """The dialogue as evaluation asks it in one of `MODES`."""
    asked = plain(dialogue)
    if mode == "system":
        return with_system(asked, chance.choice(SYSTEM_PROMPTS))
    if mode == "history":
        return with_history(asked, chance.sample(others, chance.randint(1, 3)))
    if mode == "nothink":
        return replace(asked, thinking=False)
    if mode == "unseen":
        return with_system(asked, chance.choice(UNSEEN_PROMPTS))
    if mode == "variant":
        return with_variant(asked, chance)
    if mode == "tools" and dialogue.kind != "no_tool":
        return replace(asked, tools=TOOLS)
    return asked


def vary(dialogue: Dialogue, others: Sequence[Dialogue], chance: random.Random) -> Asked:
    """The dialogue as one training sample has it."""
    asked = plain(dialogue)
    asked = replace(asked, tools=_tools(dialogue, chance), thinking=chance.random() < 0.6)
    if chance.random() < 0.3:
        asked = with_variant(asked, chance)
    if chance.random() < 0.3:
        count = chance.choice((1, 1, 1, 2, 3))
        before = [*chance.sample(others, count), *exercises(chance, 1)]
        usable = [d for d in before if not d.tools and "name is" not in d.content]
        asked = with_history(asked, usable[-count:])
    drawn = chance.random()
    if drawn < 0.12:
        asked = with_system(asked, chance.choice(SYSTEM_PROMPTS))
    elif drawn < 0.45:
        asked = with_system(asked, system_prompt(chance))
    return asked


def _tools(dialogue: Dialogue, chance: random.Random) -> list[Json] | None:
    if not dialogue.tools:
        offered = dialogue.kind != "no_tool" and "no tool" not in dialogue.reasoning
        return _shuffled(TOOLS, chance) if offered and chance.random() < 0.1 else None
    needed = {name for name, _ in dialogue.calls}
    tools = list(TOOLS)
    if needed and chance.random() < 0.2:
        tools = [tool for tool in TOOLS if tool["function"]["name"] in needed]
    if chance.random() < 0.1:
        tools.append(other_tool(chance))
    return _shuffled(tools, chance)


def _shuffled(tools: list[Json], chance: random.Random) -> list[Json]:
    return tools if chance.random() < 0.6 else chance.sample(tools, len(tools))
