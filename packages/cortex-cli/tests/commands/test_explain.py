# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex explain`, and the operators' key that all commands send."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from cortex_cli.command import main

STORY = {
    "request_id": "r1",
    "at": 0.0,
    "dialect": "openai_chat",
    "model": "fast",
    "stream": True,
    "outcome": "answered",
    "served_model": "org/m",
    "node": "b",
    "status": 200,
    "queue_wait_s": 1.0,
    "load_wait_s": 4.5,
    "duration_s": 5.25,
    "error_code": None,
    "new": 1,
    "steps": [
        {
            "after_s": 0.0,
            "decision": "queue",
            "model": "fast",
            "node": "b",
            "reason": "b: other works",
            "times": 3,
            "candidates": [
                {"node": "a", "says": "does not answer"},
                {"node": "b", "says": "no room: other works"},
            ],
        },
        {"after_s": 4.5, "decision": "serve", "model": "fast", "node": "b", "reason": "ready"},
    ],
}


class Answers(BaseHTTPRequestHandler):
    answer: tuple[int, Any] = (200, STORY)
    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        Answers.asked.append((self.path, self.headers["authorization"]))
        status, answer = self.answer
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the library's name

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def gateway() -> Iterator[str]:
    """In a thread of its own: the command under test runs its own event loop."""
    Answers.asked, Answers.answer = [], (200, STORY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(*words: str, **environ: str) -> tuple[int, list[str]]:
    answer = CliRunner(env={"COLUMNS": "200", **environ}).invoke(main, words)
    return answer.exit_code, [" ".join(line.split()) for line in answer.output.splitlines() if line]


def test_a_story_is_told_step_by_step(gateway: str) -> None:
    assert run("explain", "r1", "--endpoint", gateway) == (
        0,
        [
            "r1: fast, served by org/m, answered on b with 200",
            "It came at 1970-01-01T00:00:00+00:00 (openai_chat) and took 5.250 s, 4.500 s of them waiting for "
            "its model, 1.000 s of those for room.",
            "after decision node why considered",
            "0.000 s queue (x3) b b: other works a: does not answer",
            "b: no room: other works",
            "4.500 s serve b ready",
        ],
    )
    assert Answers.asked == [("/fleet/requests/r1", None)]


def test_what_ended_badly_says_in_what(gateway: str) -> None:
    ended = {"outcome": "refused", "node": None, "served_model": None, "status": 503}
    Answers.answer = (200, {**STORY, **ended, "error_code": "no_healthy_node", "steps": []})
    assert (
        run("explain", "r1", "--endpoint", gateway)[1][0]
        == "r1: fast, refused with 503 no_healthy_node"
    )
    Answers.answer = (200, {**STORY, "outcome": "left", "steps": []})
    assert "the client left on b" in run("explain", "r1", "--endpoint", gateway)[1][0]


def test_json_is_everything_and_an_id_is_quoted(gateway: str) -> None:
    code, said = run("explain", "a b/c?d", "--json", "--endpoint", gateway)
    assert (code, json.loads("".join(said))) == (0, STORY)
    assert Answers.asked == [("/fleet/requests/a%20b/c%3Fd", None)]


def test_a_request_that_is_not_known_is_told(gateway: str) -> None:
    Answers.answer = (404, {"error": {"message": "It is not known.", "code": "request_not_found"}})
    assert run("explain", "r1", "--endpoint", gateway) == (1, ["Error: It is not known."])


@pytest.mark.parametrize(
    "words",
    [("status",), ("explain", "r1"), ("plan", "m"), ("load", "m"), ("pin", "m"), ("drain", "a")],
)
def test_every_command_sends_the_operators_key_and_says_when_it_is_wrong(
    gateway: str, words: tuple[str, ...]
) -> None:
    Answers.answer = (401, {"error": {"message": "no", "code": "invalid_api_key"}})
    code, said = run(*words, "--endpoint", gateway)
    assert code == 1
    assert "takes no orders without the operators' key" in " ".join(said)
    code, said = run(*words, "--endpoint", gateway, "--key", "hush")
    assert code == 1
    assert "does not know this key" in " ".join(said)
    assert "hush" not in " ".join(said)
    run(*words, CORTEX_ENDPOINT=gateway, CORTEX_KEY="mine")
    assert [shown for _, shown in Answers.asked] == [None, "Bearer hush", "Bearer mine"]
