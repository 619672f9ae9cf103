# SPDX-License-Identifier: GPL-3.0-or-later
"""The real engine on the demo model, once for all tests that only ask."""

import importlib.util
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import neuron
from cortex_core.control import ModelSpec
from cortex_core.http.front import Front
from cortex_core.http.headers import Headers
from cortex_core.testing import Collected, collect
from neuron.host.engines.vllm import VllmEngine
from neuron.host.messages import Phase, Ready, Start, Steps

DEMO = Path(neuron.__file__).parent / "demo"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    missing = importlib.util.find_spec("vllm") is None
    if missing and here and os.environ.get("CI") == "true":
        raise pytest.UsageError("vLLM is not installed here, and CI must run tests/engine")
    for item in here:
        item.add_marker(pytest.mark.vllm)
        # Warnings of vLLM's and torch's own code are theirs.
        item.add_marker(pytest.mark.filterwarnings("default"))
        if missing:
            item.add_marker(pytest.mark.skip(reason="not run: vLLM is not installed here"))


def _make_start(run_dir: Path, model_path: Path = DEMO, **spec: Any) -> Start:
    return Start(
        spec=ModelSpec(model_id="helexa/demo", **spec),
        model_path=str(model_path),
        socket=str(run_dir / "socket"),
        run_dir=str(run_dir),
        settings={"platform": "cpu", "kv_cache_mb": 64},
    )


class Model:
    """An engine that is up, and how it is asked. `phases`: of its start, and when each began; monotonic seconds."""

    def __init__(self, engine: VllmEngine, ready: Ready, phases: dict[str, float]) -> None:
        self.engine = engine
        self.ready = ready
        self.phases = phases
        self._app = Front(daemon="neuron", hot=engine.routes(), routes=[])

    async def post(
        self, path: str, fields: Any, *, headers: Headers | None = None, **how: Any
    ) -> Collected:
        body = fields if isinstance(fields, bytes) else msgspec.json.encode(fields)
        return await collect(self._app, "POST", path, body=body, headers=headers, **how)

    async def chat(self, said: Any, *, headers: Headers | None = None, **fields: Any) -> Collected:
        messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
        asked = {"model": "helexa/demo", "temperature": 0, "messages": messages, **fields}
        return await self.post("/v1/chat/completions", asked, headers=headers)

    def read_stream(self, answer: Collected) -> list[Any]:
        """The chunks of a stream, which must end as it should."""
        events = answer.body.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [msgspec.json.decode(e[6:]) for e in events[:-2] if not e.startswith(":")]


async def _start_model(run_dir: Path, **spec: Any) -> Model:
    engine = VllmEngine()
    phases: dict[str, float] = {}

    def report(told: Phase | Steps) -> None:
        if isinstance(told, Phase):
            phases.setdefault(told.phase, time.monotonic())

    ready = await engine.start(_make_start(run_dir, **spec), report)
    return Model(engine, ready, phases)


@pytest.fixture
def make_start() -> Callable[..., Start]:
    """The line to a host that runs the demo model, or another: `make_start(run_dir, path, **spec)`."""
    return _make_start


@pytest.fixture(scope="session")
def start_model() -> Callable[..., Awaitable[Model]]:
    """Starts one more engine: `await start_model(run_dir, **spec)`."""
    return _start_model


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path, which tmp_path is not: those of unix sockets have room for about 100 bytes."""
    return tmp_path_factory.mktemp("r")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def model(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Model]:
    run_dir = tmp_path_factory.mktemp("run")
    # Small blocks: a prompt shorter than one is never found in the cache.
    model = await _start_model(run_dir, engine_args={"block_size": 32, "max_num_seqs": 8})
    yield model
    await model.engine.stop()
    assert list(run_dir.iterdir()) == []
