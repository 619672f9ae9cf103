# SPDX-License-Identifier: GPL-3.0-or-later
"""Any request of either dialect says the same in chat: the two are read here, by code that shares nothing with the translation."""

import json
import random
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_gateway.dialects.anthropic_request import read_messages
from cortex_gateway.dialects.responses_request import read_response_request

Fields = dict[str, Any]

TEXTS = ["a", " b", "\n", "", "ü€😀", '"quoted"', "\\", "\u2028", "Error: none", "<think>", "{}"]
INPUTS: list[Fields] = [{}, {"a": 1.5}, {"b": "}", "c": {"d": [{}, None, "\n\\ü"]}}, {"": [[]]}]


class Told(NamedTuple):
    """What a request says, however it is put.

    Attributes:
        system: all that the system says, in one.
        user: the user's texts, in order.
        images: their addresses, sorted: those of tools go to another place of their turn.
        model: what the model said before, in one.
        thoughts: and thought.
        calls: id, name and arguments of its calls.
        results: id and text of what came of them.
    """

    system: str
    user: list[str]
    images: list[str]
    model: str
    thoughts: str
    calls: list[tuple[str, str, Any]]
    results: list[tuple[str, str]]


def read_chat(body: bytes) -> Told:
    """What a chat request says; its form is one that every template takes."""
    messages = json.loads(body)["messages"]
    roles = [message["role"] for message in messages]
    assert "system" not in roles[1:]
    assert ("assistant", "assistant") not in pairwise(roles)
    told = Told("", [], [], "", "", [], [])
    waiting: set[str] = set()
    for message in messages:
        content = message["content"]
        match message["role"]:
            case "system":
                assert content
                told = told._replace(system=content)
            case "user":
                assert not waiting
                text = {"type": "text", "text": content}
                parts: list[Any] = [text] if isinstance(content, str) else content
                for part in parts:
                    if part["type"] == "text":
                        told.user.append(part["text"])
                    else:
                        told.images.append(part["image_url"]["url"])
            case "tool":
                waiting.remove(message["tool_call_id"])
                told.results.append((message["tool_call_id"], content))
            case "assistant":
                assert not waiting
                calls = message.get("tool_calls", [])
                waiting = {call["id"] for call in calls}
                for call in calls:
                    function = call["function"]
                    given = json.loads(function["arguments"])
                    told.calls.append((call["id"], function["name"], given))
                told = told._replace(
                    model=told.model + (content or ""),
                    thoughts=told.thoughts + message.get("reasoning_content", ""),
                )
    assert not waiting
    return told._replace(user=[text for text in told.user if text], images=sorted(told.images))  # fmt: skip


def weave(rng: random.Random, some: list[Fields], others: list[Fields]) -> list[Fields]:
    """Both in one, each in its own order."""
    woven = [*some, *others]
    places = set(rng.sample(range(len(woven)), len(some)))
    left, right = iter(some), iter(others)
    return [next(left if at in places else right) for at in range(len(woven))]


class Writer:
    """Makes up a conversation in one dialect, and keeps what it says."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.number = 0
        self.system: list[str] = []
        self.user: list[str] = []
        self.images: list[str] = []
        self.model: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[tuple[str, str, Any]] = []
        self.results: list[tuple[str, str]] = []

    @property
    def told(self) -> Told:
        return Told(
            "\n\n".join(text for text in self.system if text),
            [text for text in self.user if text],
            sorted(self.images),
            "".join(self.model),
            "".join(self.thoughts),
            self.calls,
            self.results,
        )

    def text(self) -> str:
        self.number += 1
        text = self.rng.choice(TEXTS)
        return f"{self.number}{text}" if text else ""

    def image(self) -> str:
        self.number += 1
        return f"data:image/png;base64,{self.number:08d}"

    def call(self) -> tuple[str, str, Any]:
        self.number += 1
        made = (f"call_{self.number}", f"f{self.number}", self.rng.choice(INPUTS))
        self.calls.append(made)
        return made

    def often(self) -> bool:
        return self.rng.random() < 0.5


class Messages(Writer):
    """Anthropic's."""

    def request(self) -> Fields:
        fields: Fields = {"model": "m", "max_tokens": 9}
        if self.often():
            fields["system"] = self.system_content()
        turns: list[Fields] = [{"role": "user", "content": self.user_blocks([])}]
        for _ in range(self.rng.randrange(4)):
            blocks, ids = self.model_blocks()
            turns.append({"role": "assistant", "content": blocks})
            if self.often():
                turns.append({"role": "system", "content": self.system_content()})
            blocks = self.user_blocks(ids)
            cut = self.rng.randrange(len(blocks) + 1) if self.often() else len(blocks)
            turns += [
                {"role": "user", "content": part} for part in (blocks[:cut], blocks[cut:]) if part
            ]
        return {**fields, "messages": turns}

    def system_content(self) -> Any:
        texts = [self.text() for _ in range(self.rng.randrange(1, 3))]
        if len(texts) == 1 and self.often():
            self.system += texts
            return texts[0]
        self.system += texts
        return [{"type": "text", "text": text} for text in texts]

    def user_blocks(self, ids: list[str]) -> list[Fields]:
        """A turn of the user, with the result of every call."""
        results = [self.result(own_id) for own_id in ids]
        others = [self.shown() for _ in range(self.rng.randrange(0 if ids else 1, 4))]
        return weave(self.rng, results, others)

    def shown(self) -> Fields:
        kind = self.rng.choice(["text", "text", "image", "document"])
        if kind == "image":
            return self.image_block()
        if kind == "document":
            texts = {name: self.text() for name in ("title", "context") if self.often()}
            data = self.text()
            self.user.append("\n\n".join(text for text in [*texts.values(), data] if text))
            source = {"type": "text", "media_type": "text/plain", "data": data}
            return {"type": "document", "source": source, **texts}
        text = self.text()
        self.user.append(text)
        return {"type": "text", "text": text}

    def image_block(self) -> Fields:
        url = self.image()
        self.images.append(url)
        data = url.rpartition(",")[2]
        return {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": data},
        }

    def result(self, own_id: str) -> Fields:
        texts = [self.text() for _ in range(self.rng.randrange(3))]
        said = "\n".join(text for text in texts if text)
        failed = self.often()
        head = ["Error:"] if failed else []
        self.results.append((own_id, " ".join([*head, *([said] if said else [])])))
        content: Any = [{"type": "text", "text": text} for text in texts]
        if self.often():
            content.append(self.image_block())
        elif len(texts) == 1 and self.often():
            content = texts[0]
        return {
            "type": "tool_result",
            "tool_use_id": own_id,
            "content": content,
            "is_error": failed,
        }

    def model_blocks(self) -> tuple[list[Fields], list[str]]:
        blocks: list[Fields] = []
        ids = []
        for kind in self.rng.choices(["thinking", "text", "tool_use"], k=self.rng.randrange(1, 5)):
            if kind == "thinking":
                self.thoughts.append(self.text())
                blocks.append({"type": kind, "thinking": self.thoughts[-1], "signature": "s"})
            elif kind == "text":
                self.model.append(self.text())
                blocks.append({"type": kind, "text": self.model[-1]})
            else:
                own_id, name, given = self.call()
                ids.append(own_id)
                blocks.append({"type": kind, "id": own_id, "name": name, "input": given})
        return blocks, ids


class Items(Writer):
    """OpenAI's Responses."""

    def request(self) -> Fields:
        fields: Fields = {"model": "m"}
        if self.often():
            fields["instructions"] = self.text()
            self.system.append(fields["instructions"])
        items = [self.user_item()]
        for _ in range(self.rng.randrange(4)):
            ids = []
            for kind in self.rng.choices(["reasoning", "text", "call"], k=self.rng.randrange(1, 5)):
                item = self.model_item(kind)
                ids += [item["call_id"]] if kind == "call" else []
                items.append(item)
            if self.often():
                items.append(self.system_item())
            items += [self.output(own_id) for own_id in ids]
            if not ids or self.often():
                items.append(self.user_item())
        return {**fields, "input": items}

    def typed(self, fields: Fields) -> Fields:
        return (
            {"type": "message", "id": "msg_1", "status": "completed", **fields}
            if self.often()
            else fields
        )

    def system_item(self) -> Fields:
        text = self.text()
        self.system.append(text)
        content: Any = [{"type": "input_text", "text": text}] if self.often() else text
        return self.typed({"role": self.rng.choice(["system", "developer"]), "content": content})

    def user_item(self) -> Fields:
        texts = [self.text() for _ in range(self.rng.randrange(1, 3))]
        self.user += texts
        content: Any = [{"type": "input_text", "text": text} for text in texts]
        if self.often():
            content.append(self.image_part())
        elif len(texts) == 1 and self.often():
            content = texts[0]
        return self.typed({"role": "user", "content": content})

    def image_part(self) -> Fields:
        self.images.append(self.image())
        return {"type": "input_image", "image_url": self.images[-1]}

    def model_item(self, kind: str) -> Fields:
        if kind == "call":
            own_id, name, given = self.call()
            arguments = json.dumps(given) if self.often() else given
            return {
                "type": "function_call",
                "call_id": own_id,
                "name": name,
                "arguments": arguments,
            }
        text = self.text()
        if kind == "reasoning":
            self.thoughts.append(text)
            field, part = self.rng.choice(
                [("content", "reasoning_text"), ("summary", "summary_text")]
            )
            return {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                field: [{"type": part, "text": text}],
            }
        self.model.append(text)
        content: Any = (
            [{"type": "output_text", "text": text, "annotations": []}] if self.often() else text
        )
        return self.typed({"role": "assistant", "content": content})

    def output(self, own_id: str) -> Fields:
        texts = [self.text() for _ in range(self.rng.randrange(1, 3))]
        self.results.append((own_id, "\n".join(text for text in texts if text)))
        content: Any = [{"type": "input_text", "text": text} for text in texts]
        if self.often():
            content.append(self.image_part())
        elif len(texts) == 1 and self.often():
            content = texts[0]
        return {"type": "function_call_output", "call_id": own_id, "output": content}


@pytest.mark.slow
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_a_request_of_messages_says_the_same_in_chat(rng: random.Random) -> None:
    writer = Messages(rng)
    body = json.dumps(writer.request()).encode()
    assert read_chat(read_messages(body).body) == writer.told


@pytest.mark.slow
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_a_request_of_responses_says_the_same_in_chat(rng: random.Random) -> None:
    writer = Items(rng)
    body = json.dumps(writer.request()).encode()
    assert read_chat(read_response_request(body).body) == writer.told
