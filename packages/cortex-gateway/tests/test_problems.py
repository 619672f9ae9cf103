# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from cortex_core.errors import (
    UpstreamConnectionError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from cortex_gateway.problems import name_twin, read_problem

LOST = UpstreamConnectionError(upstream="http://x", reason="Connection refused")
STRANGE = UpstreamProtocolError(upstream="http://x", reason="JSON is malformed")


@pytest.mark.parametrize(
    ("error", "status", "has_secret", "kind", "text"),
    [
        (Exception("401: no"), 401, True, "secret", "it refuses our secret"),
        (Exception("403: no"), 403, True, "secret", "it refuses our secret"),
        (Exception("401: no"), 401, False, "secret", "it wants a secret, and none is configured"),
        (Exception("404: no"), 404, True, "stranger", "no neuron answers there: GET /models is 404"),
        (STRANGE, None, True, "stranger", "no neuron answers there: JSON is malformed"),
        (Exception("500: oh"), 500, True, "silent", "500: oh"),
        (LOST, None, True, "silent", "The connection to http://x failed: Connection refused."),
        (UpstreamTimeoutError(upstream="http://x", idle_s=5), None, True, "silent",
         "http://x was silent for 5 s, longer than it may be."),
    ],
)  # fmt: skip
def test_what_is_the_matter_is_told_from_how_a_look_failed(
    error: Exception, status: int | None, has_secret: bool, kind: str, text: str
) -> None:
    problem = read_problem(error, status, has_secret=has_secret)
    assert (problem.kind, problem.text) == (kind, text)
    assert problem.is_told is (kind != "silent")


def test_a_twin_is_told_with_the_name_that_counts() -> None:
    assert name_twin("a").text == "it is the neuron that 'a' names already"
    assert name_twin("a").is_told
