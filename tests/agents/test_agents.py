# SPDX-License-Identifier: GPL-3.0-or-later
"""Claude Code and Codex, headless, against a gateway before a neuron that speaks chat alone and calls a tool first."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from cortex_core.node import Health
from cortex_core.testing import make_discovery, make_state, read_body, serving

pytestmark = pytest.mark.slow

MODEL = "org/m"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SAY_IT = "Say it with the tool."
SAID = "the-tool-has-run"
# The tool of each agent that runs a command, and the name of its argument.
SHELLS = {"Bash": "command", "exec_command": "cmd"}
# The tool by which Claude Code has an answer of a given form.
FORMER = "StructuredOutput"
FORM = {"city": "Paris"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def chunk(delta: Any, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'chatcmpl-1', 'created': 1, 'model': MODEL, 'choices': [choice]})}\n\n"


def call(tool: str, fields: dict[str, str]) -> str:
    """A call that comes in two pieces."""
    arguments = json.dumps(fields)
    pieces: list[dict[str, Any]] = [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": tool, "arguments": arguments[:9]},
        },
        {"function": {"arguments": arguments[9:]}},
    ]
    deltas = [chunk({"tool_calls": [{"index": 0, **piece}]}) for piece in pieces]
    return "".join([chunk({"reasoning_content": "A tool."}), *deltas, chunk({}, "tool_calls")])


def gather(stream: str) -> bytes:
    """The whole answer that a stream gives."""
    chunks = [json.loads(event[6:]) for event in stream.split("\n\n")[:-2]]
    choices = [choice for told in chunks for choice in told["choices"]]
    deltas = [choice["delta"] for choice in choices]
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if said := "".join(delta.get("content", "") for delta in deltas):
        message["content"] = said
    if called := [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]:
        arguments = "".join(piece["function"]["arguments"] for piece in called)
        function = {**called[0]["function"], "arguments": arguments}
        message["tool_calls"] = [{**called[0], "function": function}]
    whole = {"index": 0, "message": message, "finish_reason": choices[-1]["finish_reason"]}
    return json.dumps({**chunks[0], "choices": [whole], "usage": chunks[-1]["usage"]}).encode()


class CallingNeuron:
    """Calls the shell that a request offers, then repeats what came of it.

    Attributes:
        asked: the chat requests, and the paths of what it does not know.
        command: what the shell is to run.
        breaks: how many of the next answers break off in the middle.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.command = f"echo {SAID}"
        self.breaks = 0
        self._told = {
            "/discovery": make_discovery(harnesses=("echo",)),
            "/health": Health(uptime_secs=1.0),
            "/models": [make_state(MODEL)],
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        path = scope["path"]
        if path in self._told:
            await _answer(send, 200, b"application/json", msgspec.json.encode(self._told[path]))
        elif path == "/v1/chat/completions":
            asked = json.loads(body)
            self.asked.append(asked)
            said = self._speak(asked)
            if self.breaks:
                self.breaks -= 1
                said = said[: len(said) // 3]
            if asked.get("stream"):
                await _answer(send, 200, b"text/event-stream", said.encode())
            else:
                await _answer(send, 200, b"application/json", gather(said))
        else:
            self.asked.append(path)
            await _answer(send, 404, b"application/json", b'{"error":{"code":"route_not_found"}}')

    def _speak(self, asked: Any) -> str:
        tools = [tool["function"]["name"] for tool in asked.get("tools", [])]
        shell = next((name for name in tools if name in SHELLS), None)
        last = asked["messages"][-1]
        is_called = any(message["role"] == "tool" for message in asked["messages"])
        if FORMER in tools and not is_called:
            out = call(FORMER, FORM)
        elif shell and not is_called:
            out = call(shell, {SHELLS[shell]: self.command, "description": "Say it"})
        elif tools and "response_format" in asked:
            out = chunk({"content": json.dumps(FORM)}) + chunk({}, "stop")
        else:
            said = last["content"] if last["role"] == "tool" else "a title"
            out = chunk({"content": f"It said: {said}"}) + chunk({}, "stop")
        usage = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}
        return f"{out}data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


async def _answer(send: Any, status: int, kind: bytes, body: bytes) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
    )
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def served(fleet: Any) -> AsyncIterator[tuple[CallingNeuron, Any]]:
    neuron = CallingNeuron()
    async with serving(neuron) as endpoint:
        # Agents ask for models that nobody has told them of.
        yield neuron, await fleet.gateway(endpoint, config=f'default_model = "{MODEL}"\n')


def chats(neuron: CallingNeuron) -> list[Any]:
    return [asked for asked in neuron.asked if isinstance(asked, dict) and asked.get("tools")]


async def test_claude_code_calls_a_tool(served: Any, agents: Any) -> None:
    neuron, gateway = served
    answer = await agents.claude(gateway, SAY_IT)
    assert not answer["is_error"]
    assert SAID in answer["result"]
    first, second = chats(neuron)[:2]
    assert [turn["role"] for turn in second["messages"]][-2:] == ["assistant", "tool"]
    assert "x-anthropic-billing-header" not in json.dumps(first)
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assert second["messages"][-2]["reasoning_content"] == "A tool."


async def test_claude_code_has_an_answer_of_a_given_form(served: Any, agents: Any) -> None:
    neuron, gateway = served
    answer = await agents.claude(gateway, SAY_IT, f"--json-schema={json.dumps(SCHEMA)}")
    assert not answer["is_error"]
    assert answer["structured_output"] == FORM
    functions = [tool["function"] for tool in chats(neuron)[0]["tools"]]
    (former,) = [function for function in functions if function["name"] == FORMER]
    assert former["parameters"] == SCHEMA


async def test_claude_code_shows_an_image(served: Any, agents: Any) -> None:
    neuron, gateway = served
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": SAY_IT}]
    answer = await agents.claude_blocks(gateway, blocks)
    assert not answer["is_error"]
    assert SAID in answer["result"]
    for asked in chats(neuron):
        turn = next(turn for turn in asked["messages"] if turn["role"] == "user")
        seen = [part["image_url"]["url"] for part in turn["content"] if "image_url" in part]
        assert seen == [f"data:image/png;base64,{PIXEL}"]


async def test_claude_code_tells_of_a_tool_that_fails(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.command = f"echo {SAID}; exit 3"
    answer = await agents.claude(gateway, SAY_IT)
    assert not answer["is_error"]
    result = chats(neuron)[1]["messages"][-1]
    assert result["role"] == "tool"
    assert result["content"].startswith("Error:")
    assert SAID in result["content"]


async def test_claude_code_asks_again_what_broke_off(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.breaks = 1
    answer = await agents.claude(gateway, SAY_IT)
    assert not answer["is_error"]
    assert SAID in answer["result"]
    broken, again = chats(neuron)[:2]
    assert broken["messages"] == again["messages"]


async def test_codex_sees_an_image_and_calls_a_tool(served: Any, agents: Any) -> None:
    neuron, gateway = served
    picture = agents.folder / "pixel.png"
    picture.write_bytes(base64.b64decode(PIXEL))
    assert SAID in await agents.codex(gateway, SAY_IT, f"--image={picture}")
    assert neuron.asked.count("/v1/responses") == 2
    first, second = chats(neuron)
    assert first["messages"][0]["role"] == "system"
    seen = [part for turn in first["messages"] for part in turn["content"] if "image_url" in part]
    assert seen[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert [turn["role"] for turn in second["messages"]][-2:] == ["assistant", "tool"]
    assert second["messages"][-2]["reasoning_content"] == "A tool."


async def test_codex_has_an_answer_of_a_given_form(served: Any, agents: Any) -> None:
    neuron, gateway = served
    form = agents.folder / "form.json"
    form.write_text(json.dumps(SCHEMA))
    said = await agents.codex(gateway, SAY_IT, f"--output-schema={form}")
    assert json.loads(said) == FORM
    formats = [asked["response_format"] for asked in chats(neuron)]
    assert [form["json_schema"]["schema"] for form in formats] == [SCHEMA, SCHEMA]


async def test_codex_asks_again_what_broke_off(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.breaks = 1
    assert SAID in await agents.codex(gateway, SAY_IT)
    broken, again = chats(neuron)[:2]
    assert broken["messages"] == again["messages"]


async def test_codex_tells_of_a_tool_that_fails(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.command = f"echo {SAID}; exit 3"
    await agents.codex(gateway, SAY_IT)
    result = chats(neuron)[1]["messages"][-1]
    assert result["role"] == "tool"
    assert SAID in result["content"]
    assert "exited with code 3" in result["content"]
