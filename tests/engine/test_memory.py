# SPDX-License-Identifier: GPL-3.0-or-later
"""Our arithmetic of the KV cache, held against vLLM's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from neuron import demo
from neuron.harnesses.estimating import AUTO, Asked, choose_cache, estimate, fitting_tokens
from neuron.harnesses.model_figures import read_model
from neuron.host.engine import StartFailedError
from neuron.host.engines.vllm import VllmEngine
from neuron.host.messages import Start

CACHE_MB = 4
ASKED = Asked(platform="cpu", dtype="bfloat16", kv_cache_mb=CACHE_MB)


async def context_of(start: Start, max_model_len: int) -> int | None:
    """The context that an engine has with a small cache; fails as its start does."""
    settings = {"platform": "cpu", "kv_cache_mb": CACHE_MB, "max_model_len": max_model_len}
    engine = VllmEngine()
    try:
        ready = await engine.start(
            msgspec.structs.replace(start, settings=settings), lambda phase: None
        )
    finally:
        await engine.stop()
    return ready.limits.context


@pytest.mark.slow
async def test_the_context_that_we_choose_is_the_longest_that_vllm_takes(
    make_start: Callable[..., Start], run_dir: Path
) -> None:
    needs = estimate(read_model(demo.path()), ASKED)
    assert needs.kv_bytes_per_token is not None
    chosen = choose_cache(needs, ASKED, None).max_model_len
    assert chosen == fitting_tokens(CACHE_MB, needs.kv_bytes_per_token, ASKED) == 1920
    start: Any = make_start(run_dir)
    assert await context_of(start, chosen) == chosen
    # Left to itself, where our arithmetic does not know the model, it comes to the same.
    assert await context_of(start, AUTO) == chosen
    with pytest.raises(StartFailedError, match=f"estimated maximum model length is {chosen}"):
        await context_of(start, chosen + 1)
