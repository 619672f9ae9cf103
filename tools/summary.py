# SPDX-License-Identifier: GPL-3.0-or-later
"""One closing line, `N passed, N failed`, over pytest's own closing lines and nox's reports."""

import json
import re
import sys
from pathlib import Path

_CLOSING = re.compile(r"^=+ (.*\b(?:passed|failed|errors?)\b.*) in [\d.]+s.* =+$", re.MULTILINE)
_COUNT = re.compile(r"(\d+) (passed|failed|errors?)")


def summary(output: str, reports: list[str]) -> tuple[int, int]:
    """Tests and sessions that passed, and that failed. A report that is missing is a failure."""
    passed = failed = 0
    for line in _CLOSING.findall(output):
        for count, word in _COUNT.findall(line):
            passed += int(count) * (word == "passed")
            failed += int(count) * (word != "passed")
    for report in reports:
        sessions = json.loads(report)["sessions"] if report else [{"result": "missing"}]
        good = sum(session["result"] == "success" for session in sessions)
        passed += good
        failed += len(sessions) - good
    return passed, failed


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in paths]
    passed, failed = summary(texts[0], texts[1:])
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
