# SPDX-License-Identifier: GPL-3.0-or-later
"""Two lists of exact versions that agree, and name no host."""

import tree

LISTS = {
    name: (tree.ROOT / name).read_text() for name in ("constraints.txt", "constraints-engine.txt")
}
# As resolved by default they are built for another torch, and `import vllm` dies of them.
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec", "triton")


def versions(text: str) -> dict[str, str]:
    """Name to version."""
    pairs = (
        line.partition("==") for line in text.splitlines() if line and not line.startswith("#")
    )
    return {name: version for name, _, version in pairs}


def test_every_line_is_one_exact_version() -> None:
    for name, text in LISTS.items():
        assert all(versions(text).values()), f"{name}: lines are name==version, and nothing else"


def test_what_both_name_has_one_version() -> None:
    ours, engine = (versions(text) for text in LISTS.values())
    differing = {
        name: (ours[name], engine[name])
        for name in ours.keys() & engine.keys()
        if ours[name] != engine[name]
    }
    assert differing == {}, (
        "both are installed into one environment; `tools/nox -s lock` rewrites them together"
    )


def test_the_engine_comes_without_what_breaks_it() -> None:
    engine = versions(LISTS["constraints-engine.txt"])
    assert not engine.keys() & set(LEFT_OUT), "`import vllm` dies of them"
    assert engine["torch"].endswith("+cpu"), (
        "another build needs CUDA libraries that the lock has not"
    )
