# SPDX-License-Identifier: GPL-3.0-or-later
"""The closing line of `.ci/run` counts what pytest and nox say."""

import json

import pytest
from summary import summary

GOOD = "===== 3 passed, 1 skipped in 0.10s =====\n"
SLOW = "===== 2 passed in 83.10s (0:01:23) =====\n"
BAD = "===== 1 failed, 4 passed, 2 errors in 1.00s =====\n"


def report(*results: str) -> str:
    return json.dumps({"sessions": [{"result": result} for result in results]})


@pytest.mark.parametrize(
    ("output", "reports", "counted"),
    [
        (GOOD, [report("success")], (4, 0)),
        (GOOD + "noise: 7 failed\n" + SLOW, [report("success"), report("success")], (7, 0)),
        (BAD, [report("failed", "success")], (5, 4)),
        ("", [report("skipped")], (0, 1)),
        ("", [""], (0, 1)),
    ],
)
def test_tests_and_sessions_are_counted(
    output: str, reports: list[str], counted: tuple[int, int]
) -> None:
    assert summary(output, reports) == counted
