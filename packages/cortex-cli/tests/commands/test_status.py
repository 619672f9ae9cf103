# SPDX-License-Identifier: GPL-3.0-or-later
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from cortex_cli.command import main

FLEET = {
    "nodes": [{"name": "box", "endpoint": "http://box:1", "up": True, "new_field": 1}],
    "more": [],
}


class Answers(BaseHTTPRequestHandler):
    answer = (200, json.dumps(FLEET).encode())

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def gateway() -> Iterator[str]:
    """In a thread of its own: the command under test runs its own event loop."""
    Answers.answer = (200, json.dumps(FLEET).encode())
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def status(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["status", *words])
    return answer.exit_code, answer.output


def test_the_fleet_is_shown_as_tables(gateway: str) -> None:
    code, said = status("--endpoint", gateway)
    assert code == 0
    assert "box" in said
    assert "No model is loaded." in said


def test_json_is_everything_that_the_gateway_tells(gateway: str) -> None:
    code, said = status("--endpoint", gateway, "--json")
    assert (code, json.loads(said)) == (0, FLEET)


def test_a_gateway_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
    code, said = status("--endpoint", endpoint)
    assert code == 1
    assert said.startswith(f"Error: No gateway answers at {endpoint}. `cortex serve` starts one")


def test_what_is_no_gateway_is_told(gateway: str) -> None:
    Answers.answer = (200, b"<html>")
    code, said = status("--endpoint", gateway)
    assert code == 1
    assert "answered something that cannot be understood" in said


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "There is no route", "code": "route_not_found"}}',
        b"There is no route",
    ],
)
def test_what_has_no_routes_of_a_gateway_is_told(gateway: str, body: bytes) -> None:
    Answers.answer = (404, body)
    code, said = status("--endpoint", gateway)
    assert code == 1
    assert said == (
        f"Error: What answers at {gateway} is no gateway's API; --endpoint says where that is. (There is no route)\n"
    )


def test_a_refusal_is_told_in_the_gateway_s_words(gateway: str) -> None:
    Answers.answer = (503, b'{"error": {"message": "no time", "code": "shutting_down"}}')
    assert status("--endpoint", gateway) == (1, "Error: no time\n")


def test_an_endpoint_that_is_none_is_wrong_usage() -> None:
    code, said = status("--endpoint", "localhost:31313")
    assert code == 2
    assert "'localhost:31313' is no endpoint, such as http://127.0.0.1:31313" in said


def test_json_and_watch_do_not_go_together() -> None:
    assert status("--json", "--watch")[0] == 2
