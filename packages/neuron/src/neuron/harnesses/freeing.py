# SPDX-License-Identifier: GPL-3.0-or-later
"""Did an engine that sleeps, or has gone, give back what it had? Pure."""

from collections.abc import Mapping

# A sleeping engine keeps its context and graphs, and a claim has a reserve; most of it is weights and KV cache.
LEAST_FREED_RATIO = 0.5


def undisturbed(
    claims_mb: Mapping[int, int], before: Mapping[int, int], after: Mapping[int, int]
) -> dict[int, int]:
    """The claims on devices where nobody took memory meanwhile: those whose starts, as Shared counts them, stand still."""
    return {
        device: claim_mb
        for device, claim_mb in claims_mb.items()
        if before[device] == after[device] and before[device] % 2 == 0
    }


def freed_too_little(
    claims_mb: Mapping[int, int], before_mb: Mapping[int, int], after_mb: Mapping[int, int]
) -> str | None:
    """Compare what is free on each device with what was promised; None: all is well, or the driver does not tell.

    Returns the devices and numbers in words.
    """
    short = [
        f"device {device} has {after_mb[device] - before_mb[device]} MiB more free, and {claim_mb} MiB were claimed"
        for device, claim_mb in claims_mb.items()
        if device in before_mb
        and device in after_mb
        and after_mb[device] - before_mb[device] < claim_mb * LEAST_FREED_RATIO
    ]
    return "; ".join(short) or None
