# SPDX-License-Identifier: GPL-3.0-or-later
"""A daemon in this process, with real engine hosts."""

from collections.abc import AsyncIterator

import pytest

from neuron.testing import Served, make_config, serve


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A daemon with the harness `echo` alone, which waits shortly for running requests."""
    async with serve(make_config(drain_s=0.3)) as made:
        yield made
