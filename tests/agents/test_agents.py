# SPDX-License-Identifier: GPL-3.0-or-later
"""Claude Code and Codex, headless, against a gateway before a neuron that speaks chat alone and calls a tool first."""

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from cortex_core.node import Health
from cortex_core.testing import make_discovery, make_state, serving

pytestmark = pytest.mark.slow

MODEL = "org/m"
SAID = "the-tool-has-run"
# The tool of each agent that runs a command, and the name of its argument.
SHELLS = {"Bash": "command", "exec_command": "cmd"}


def chunk(delta: Any, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'chatcmpl-1', 'created': 1, 'model': MODEL, 'choices': [choice]})}\n\n"


def call(tool: str, command: str) -> str:
    """A call that comes in two pieces."""
    arguments = json.dumps({SHELLS[tool]: command, "description": "Say it"})
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


class CallingNeuron:
    """Calls the shell that a request offers, then repeats what came of it.

    Attributes:
        asked: the chat requests, and the paths of what it does not know.
        command: what the shell is to run.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.command = f"echo {SAID}"
        self._told = {
            "/discovery": make_discovery(harnesses=("echo",)),
            "/health": Health(uptime_secs=1.0),
            "/models": [make_state(MODEL)],
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        if path in self._told:
            await _answer(send, 200, b"application/json", msgspec.json.encode(self._told[path]))
        elif path == "/v1/chat/completions":
            asked = json.loads(body)
            self.asked.append(asked)
            await _answer(send, 200, b"text/event-stream", self._speak(asked).encode())
        else:
            self.asked.append(path)
            await _answer(send, 404, b"application/json", b'{"error":{"code":"route_not_found"}}')

    def _speak(self, asked: Any) -> str:
        tools = [tool["function"]["name"] for tool in asked.get("tools", [])]
        shell = next((name for name in tools if name in SHELLS), None)
        last = asked["messages"][-1]
        if shell and not any(message["role"] == "tool" for message in asked["messages"]):
            out = call(shell, self.command)
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


async def run_claude(gateway: Any, agents: Any) -> Any:
    """Claude Code's own account of a run with one prompt."""
    ran = await agents.program(
        "claude",
        *("-p", "Say it with the tool.", "--allowedTools", "Bash", "--output-format", "json"),
        ANTHROPIC_BASE_URL=gateway.endpoint,
        ANTHROPIC_API_KEY="none",
        DISABLE_TELEMETRY="1",
        DISABLE_ERROR_REPORTING="1",
        DISABLE_AUTOUPDATER="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    assert ran.code == 0, ran.out + ran.err
    return json.loads(ran.out)


async def test_claude_code_calls_a_tool(served: Any, agents: Any) -> None:
    neuron, gateway = served
    answer = await run_claude(gateway, agents)
    assert not answer["is_error"]
    assert SAID in answer["result"]
    first, second = chats(neuron)[:2]
    assert [turn["role"] for turn in second["messages"]][-2:] == ["assistant", "tool"]
    assert "x-anthropic-billing-header" not in json.dumps(first)


async def test_claude_code_tells_of_a_tool_that_fails(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.command = f"echo {SAID}; exit 3"
    answer = await run_claude(gateway, agents)
    assert not answer["is_error"]
    result = chats(neuron)[1]["messages"][-1]
    assert result["role"] == "tool"
    assert result["content"].startswith("Error:")
    assert SAID in result["content"]


async def run_codex(gateway: Any, agents: Any) -> str:
    """What Codex says at the end of a run with one prompt."""
    provider = {
        "name": '"cortex"',
        "base_url": f'"{gateway.endpoint}/v1"',
        "env_key": '"KEY"',
        "wire_api": '"responses"',
        "supports_websockets": "true",
    }
    options = [
        'model_provider="cortex"',
        *(f"model_providers.cortex.{name}={value}" for name, value in provider.items()),
        "check_for_update_on_startup=false",
        "analytics.enabled=false",
    ]
    ran = await agents.program(
        *("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        *(word for option in options for word in ("-c", option)),
        *("-m", "gpt-none", "Say it with the tool."),
        KEY="none",
    )
    assert ran.code == 0, ran.out + ran.err
    said: str = ran.out
    return said


async def test_codex_calls_a_tool(served: Any, agents: Any) -> None:
    neuron, gateway = served
    assert SAID in await run_codex(gateway, agents)
    assert neuron.asked.count("/v1/responses") == 2
    first, second = chats(neuron)
    assert first["messages"][0]["role"] == "system"
    assert [turn["role"] for turn in second["messages"]][-2:] == ["assistant", "tool"]
    assert second["messages"][-2]["reasoning_content"] == "A tool."


async def test_codex_tells_of_a_tool_that_fails(served: Any, agents: Any) -> None:
    neuron, gateway = served
    neuron.command = f"echo {SAID}; exit 3"
    await run_codex(gateway, agents)
    result = chats(neuron)[1]["messages"][-1]
    assert result["role"] == "tool"
    assert SAID in result["content"]
    assert "exited with code 3" in result["content"]
