# SPDX-License-Identifier: GPL-3.0-or-later
import pytest

from neuron.harnesses.freeing import freed_too_little, undisturbed


@pytest.mark.parametrize(
    ("claims_mb", "before_mb", "after_mb", "found"),
    [
        ({}, {}, {}, None),
        ({0: 1000}, {0: 100}, {0: 1100}, None),
        ({0: 1000}, {0: 100}, {0: 600}, None),  # its context stays
        (
            {0: 1000},
            {0: 100},
            {0: 599},
            "device 0 has 499 MiB more free, and 1000 MiB were claimed",
        ),
        (
            {0: 1000},
            {0: 900},
            {0: 100},
            "device 0 has -800 MiB more free, and 1000 MiB were claimed",
        ),
        ({0: 1000}, {}, {0: 100}, None),  # the driver does not tell
        (
            {0: 1000, 1: 1000, 2: 1000},
            {0: 0, 1: 0, 2: 0},
            {0: 0, 1: 1000, 2: 1},
            "device 0 has 0 MiB more free, and 1000 MiB were claimed; "
            "device 2 has 1 MiB more free, and 1000 MiB were claimed",
        ),
    ],
)
def test_what_was_promised_is_compared_with_what_is_free(
    claims_mb: dict[int, int],
    before_mb: dict[int, int],
    after_mb: dict[int, int],
    found: str | None,
) -> None:
    assert freed_too_little(claims_mb, before_mb, after_mb) == found


@pytest.mark.parametrize(
    ("before", "after", "left_mb"),
    [
        ({0: 4, 1: 0}, {0: 4, 1: 0}, {0: 10, 1: 20}),
        ({0: 4, 1: 0}, {0: 4, 1: 1}, {0: 10}),  # a start has begun
        ({0: 4, 1: 1}, {0: 4, 1: 1}, {0: 10}),  # one is under way
        ({0: 4, 1: 0}, {0: 4, 1: 2}, {0: 10}),  # one has come and gone
    ],
)
def test_a_device_where_another_starts_is_not_judged(
    before: dict[int, int], after: dict[int, int], left_mb: dict[int, int]
) -> None:
    assert undisturbed({0: 10, 1: 20}, before, after) == left_mb
