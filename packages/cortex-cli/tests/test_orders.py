# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that order a gateway: what is sent, what is shown, and how it ends."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner

from cortex_cli.command import main


class Answers(BaseHTTPRequestHandler):
    answer: tuple[int, Any] = (200, {})
    asked: list[tuple[str, Any]] = []

    def do_POST(self) -> None:
        size = int(self.headers["content-length"])
        Answers.asked.append((self.path, json.loads(self.rfile.read(size))))
        status, answer = self.answer
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def gateway() -> Iterator[str]:
    """In a thread of its own: the command under test runs its own event loop."""
    Answers.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def run(gateway: str, *words: str) -> tuple[int, list[str]]:
    answer = CliRunner().invoke(main, [*words, "--endpoint", gateway])
    return answer.exit_code, [" ".join(line.split()) for line in answer.output.splitlines() if line]


DONE = {"done": [{"status": "loaded", "model_id": "m", "node": "a", "already": True, "new": 1}]}


@pytest.mark.parametrize("verb", ["load", "unload", "sleep", "wake", "pin", "unpin"])
def test_an_order_for_a_model_is_sent_and_told(gateway: str, verb: str) -> None:
    Answers.answer = (200, DONE)
    code, said = run(gateway, verb, "org/m")
    assert (code, said) == (0, ["model node status note", "m a loaded it was already"])
    assert run(gateway, verb, "org/m", "--node", "a")[0] == 0
    assert Answers.asked == [
        (f"/fleet/models/{verb}", {"model_id": "org/m"}),
        (f"/fleet/models/{verb}", {"model_id": "org/m", "node": "a"}),
    ]


@pytest.mark.parametrize("verb", ["drain", "undrain"])
def test_an_order_for_a_node_is_sent_and_told(gateway: str, verb: str) -> None:
    Answers.answer = (200, {"done": [{"status": "drained", "node": "a"}]})
    assert run(gateway, verb, "a") == (0, ["model node status note", "- a drained"])
    assert Answers.asked == [(f"/fleet/nodes/{verb}", {"node": "a"})]


def test_nothing_to_do_is_told_and_json_is_everything(gateway: str) -> None:
    Answers.answer = (200, {"done": []})
    assert run(gateway, "unload", "m") == (0, ["It is nowhere; nothing had to be done."])
    Answers.answer = (200, DONE)
    code, said = run(gateway, "load", "m", "--json")
    assert (code, json.loads("".join(said))) == (0, DONE)


def test_a_refusal_ends_with_1_and_in_the_gateway_s_words(gateway: str) -> None:
    Answers.answer = (503, {"error": {"message": "x works", "code": "insufficient_vram"}})
    assert run(gateway, "load", "m") == (1, ["Error: x works"])
    assert run(gateway, "plan", "m") == (1, ["Error: x works"])


NODES = [
    {
        "node": "a",
        "fits": True,
        "decision": "load",
        "reason": "made",
        "needed_mb": {"0": 5, "1": 6},
        "would_displace": {"x": "sleep"},
        "expected_s": 8.52,
    },
    {"node": "b", "fits": False, "decision": "refuse", "reason": "no devices"},
]
PLAN = {"model_id": "m", "decision": "load", "reason": "made", "chosen": "a", "nodes": NODES}


def test_a_plan_is_shown_node_by_node(gateway: str) -> None:
    Answers.answer = (200, PLAN)
    assert run(gateway, "plan", "m") == (
        0,
        [
            "m: load on a (made)",
            "node fits would takes needs makes room why",
            "a yes load 8.5 s 5 MiB, 6 MiB x (sleep) made",
            "b no refuse - - - no devices",
        ],
    )
    assert Answers.asked == [("/fleet/plan", {"model_id": "m"})]
    code, said = run(gateway, "plan", "m", "--json")
    assert (code, json.loads("".join(said))) == (0, PLAN)


def test_a_plan_that_leads_nowhere_ends_with_1(gateway: str) -> None:
    Answers.answer = (200, {**PLAN, "decision": "queue", "chosen": None})
    code, said = run(gateway, "plan", "m")
    assert (code, said[0]) == (1, "m: queue (made)")
