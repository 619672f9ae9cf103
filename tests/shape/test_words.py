# SPDX-License-Identifier: GPL-3.0-or-later
"""What no file may name: a machine it was written on, a host that serves packages."""

from pathlib import Path

import tree

# Written in two parts, since this file is searched as well.
FORBIDDEN = {
    "/wo" + "rk/": "a path of one machine",
    "/ro" + "ot/": "a path of one machine",
    "tmp/" + "scratch": "a path of one machine",
    "sha" + "red/": "the repository is whole: it points at nothing outside itself",
    "py" + "pi.": "who installs decides where packages come from",
    "python" + "hosted": "who installs decides where packages come from",
    "download." + "pytorch": "who installs decides where packages come from",
    "npm" + "js": "who installs decides where packages come from",
    "crates" + ".io": "who installs decides where packages come from",
}


def found(texts: dict[Path, str]) -> list[str]:
    """Each file that holds one of them."""
    return [
        f"{path}: {word!r}: {why}"
        for path, text in texts.items()
        for word, why in FORBIDDEN.items()
        if word in text
    ]


def test_no_file_names_a_machine_or_a_package_host() -> None:
    assert found(tree.texts()) == []


def test_the_rule_can_fail() -> None:
    (fault,) = found({Path("a"): "see sha" + "red/x"})
    assert fault.startswith("a: ")
