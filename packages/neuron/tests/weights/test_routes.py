# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole daemon, a hub on loopback, and the routes /weights."""

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cortex_core.control import ModelSpec
from neuron.config import Config, HarnessEntry, HarnessSettings, SourceSettings, VllmSettings
from neuron.harnesses.vllm import VllmHarness
from neuron.testing import Served, make_echo, serve
from neuron.weights.cache import Cache
from neuron.weights.testing import FakeHub, Fault, make_model, open_hub

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
BIG = 3 * MIB
WEIGHTS = "model.safetensors"


class Made:
    """A daemon and the hub that is its default source."""

    def __init__(self, served: Served, hub: FakeHub, cache: Path) -> None:
        self.served = served
        self.hub = hub
        self.cache = Cache(cache)

    async def pull(self, model_id: str, **fields: Any) -> tuple[int, Any]:
        status, body, _ = await self.served.post("/weights/pull", {"model_id": model_id, **fields})
        return status, body

    async def remove(self, model_id: str) -> tuple[int, Any]:
        status, body, _ = await self.served.post("/weights/remove", {"model_id": model_id})
        return status, body

    async def load(self, model_id: str, **fields: Any) -> tuple[int, Any, dict[bytes, bytes]]:
        return await self.served.post("/models/load", {"model_id": model_id, **fields})

    async def entry(self, model_id: str) -> Any:
        report = await self.served.get("/weights")
        return next((e for e in report["weights"] if e["id"] == f"hub:{model_id}"), None)

    async def until_paused(self) -> None:
        async with asyncio.timeout(10):
            await self.hub.paused.wait()


def is_gone(pid: int | None) -> bool:
    return pid is not None and not Path(f"/proc/{pid}").exists()


def environ_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@asynccontextmanager
async def make(tmp_path: Path, **settings: Any) -> AsyncIterator[Made]:
    async with open_hub() as (hub, endpoint):
        hub.repos["org/name"] = make_model(BIG)
        source = SourceSettings(
            endpoint=endpoint, auth_env="HUB_TOKEN", cache_dir=str(tmp_path / "hub")
        )
        vllm = VllmSettings(
            sources={"hub": source},
            default_source="hub",
            hf_cache=str(tmp_path / "other"),
            warm_spare=False,
            **settings,
        )
        defaults = [ModelSpec(model_id="org/default")]
        config = Config(
            harnesses=[HarnessEntry(name="vllm"), HarnessEntry(name="echo")],
            harness=HarnessSettings(vllm=vllm),
            default_models=defaults,
        )
        async with serve(config) as served:
            yield Made(served, hub, tmp_path / "hub")


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    async with make(tmp_path) as made:
        yield made


async def test_what_was_pulled_is_listed_and_what_is_removed_is_gone(made: Made) -> None:
    assert await made.entry("org/name") is None
    assert await made.pull("org/name") == (200, {"status": "downloaded", "model_id": "org/name"})
    entry = await made.entry("org/name")
    assert entry == {
        "id": "hub:org/name",
        "scheme": "hub",
        "revision": made.hub.revision("org/name"),
        "size_mb": 4,
        "last_used": entry["last_used"],
        "complete": True,
        "in_use": False,
        "pinned": False,
        "quants": [],
        "progress": None,
        "last_error": None,
        "capabilities": ["text"],
        "limits": {"context": None, "output": None},
    }
    assert abs(entry["last_used"] - time.time()) < 60
    again = {"status": "downloaded", "model_id": "hub:org/name", "already": True}
    assert await made.pull("hub:org/name") == (200, again)
    report = await made.served.get("/weights")
    assert report["used_mb"] == 4
    assert report["budget_mb"] is None
    assert report["free_mb"] > 0
    assert str(made.cache.path) not in str(report), "paths are the machine's own business"
    removed = {"status": "removed", "model_id": "org/name", "freed_mb": 4}
    assert await made.remove("org/name") == (200, removed)
    assert await made.entry("org/name") is None
    gone = {"status": "removed", "model_id": "org/name", "already": True}
    assert await made.remove("org/name") == (200, gone)


async def test_a_pull_of_what_nobody_tells_the_size_of_was_not_done_already(made: Made) -> None:
    made.hub.tells_lengths = made.hub.lists_sizes = False
    assert await made.pull("org/name") == (200, {"status": "downloaded", "model_id": "org/name"})


async def test_a_pull_that_nobody_waits_for_goes_on_with_progress(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    status, body = await made.pull("org/name", wait=False)
    assert (status, body["status"], body["progress"]["phase"]) == (
        202,
        "downloading",
        "downloading",
    )

    def is_half(report: Any) -> bool:
        found = [e["progress"] for e in report["weights"] if e["id"] == "hub:org/name"]
        return bool(found) and found[0] is not None and (found[0]["ratio"] or 0) > 0.4

    (entry,) = [e for e in (await made.served.get("/weights"))["weights"] if e["progress"]]
    assert (entry["id"], entry["scheme"], entry["in_use"]) == ("hub:org/name", "hub", True)
    report = await made.served.until("/weights", is_half, within_s=15)
    (entry,) = [e for e in report["weights"] if e["id"] == "hub:org/name"]
    assert (entry["in_use"], entry["complete"]) == (True, False)
    assert BIG // 2 - MIB < entry["progress"]["done_bytes"] < entry["progress"]["total_bytes"]
    assert await made.remove("org/name") == (
        409,
        {
            "error": {
                "message": "The files of 'org/name' stay: they are being downloaded. Unload the model, or wait for "
                "its download, and ask again.",
                "type": "invalid_request_error",
                "code": "weights_in_use",
                "param": None,
                "model": "org/name",
                "reason": "they are being downloaded",
                "suggestion": "Unload the model, or wait for its download, and ask again.",
            }
        },
    )
    joined = asyncio.create_task(made.pull("org/name"))
    made.hub.going_on.set()
    assert (await joined)[0] == 200
    assert made.hub.count(WEIGHTS) == 1


async def test_a_pull_that_the_daemon_s_end_ends_is_worth_a_retry(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    pulling = asyncio.create_task(made.served.post("/weights/pull", {"model_id": "org/name"}))
    await made.until_paused()
    made.served.daemon.weights.close()
    status, body, headers = await pulling
    assert (status, body["error"]["code"]) == (503, "shutting_down")
    assert b"retry-after" in headers


async def test_why_a_pull_failed_can_be_read_later(made: Made) -> None:
    assert (await made.pull("org/nothing", wait=False))[0] == 202

    def has_failed(report: Any) -> bool:
        return any(e["last_error"] for e in report["weights"])

    report = await made.served.until("/weights", has_failed, within_s=15)
    (entry,) = [e for e in report["weights"] if e["id"] == "hub:org/nothing"]
    assert "has no repository org/nothing" in entry["last_error"]
    status, body = await made.pull("org/nothing")
    assert (status, body["error"]["code"]) == (422, "repo_fetch_failed")


@pytest.mark.parametrize(
    ("model_id", "code", "message"),
    [
        ("hup:org/name", "repo_fetch_failed", "Did you mean `hub:org/name`?"),
        ("../etc", "invalid_spec", "org/name"),
        ("a/b/c", "invalid_spec", "Write `org/name`"),
    ],
)
async def test_an_id_that_cannot_be_had_is_refused(
    made: Made, model_id: str, code: str, message: str
) -> None:
    status, body = await made.pull(model_id)
    assert (status, body["error"]["code"]) == (422, code)
    assert message in body["error"]["message"]


async def test_a_quant_is_told_with_the_nearest(made: Made) -> None:
    made.hub.repos["org/g"] = {"g-Q4_K_M.gguf": b"a" * 10, "g-Q8_0.gguf": b"b"}
    status, body = await made.pull("org/g", quant="q4_k_s")
    assert (status, body["error"]["code"]) == (422, "quant_not_found")
    assert "Did you mean Q4_K_M? There are: Q4_K_M, Q8_0." in body["error"]["message"]
    assert (await made.pull("org/g", quant="q8-0"))[0] == 200
    assert (await made.pull("org/g", quant="Q4_K_M"))[0] == 200
    assert (await made.entry("org/g"))["quants"] == ["Q4_K_M", "Q8_0"]
    status, body, _ = await made.load("org/g", quant="q8_0")
    assert (status, body["error"]["code"]) == (422, "unsupported_architecture")
    assert "vllm-gguf-plugin" in body["error"]["message"]


async def test_what_is_loaded_or_not_ours_is_not_removed(made: Made) -> None:
    await made.pull("org/name")
    made.served.daemon.residents.note_load(ModelSpec(model_id="hub:org/name"), 0.0)
    status, body = await made.remove("org/name")
    assert status == 409
    assert "the model is loading" in body["error"]["message"]
    assert (await made.entry("org/name"))["in_use"]
    status, body = await made.remove("helexa/demo")
    assert status == 409
    assert "Only the operator removes them." in body["error"]["message"]


async def test_a_budget_evicts_what_was_used_least_and_is_not_pinned(tmp_path: Path) -> None:
    async with make(tmp_path, disk_budget_mb=12) as made:
        for name in ("org/old", "org/loaded", "org/default"):
            made.hub.repos[name] = make_model(BIG)
            await made.pull(name)
            made.cache.note_used(name, 1000.0 if name == "org/old" else 1.0)
        made.served.daemon.residents.note_load(ModelSpec(model_id="org/loaded"), 0.0)
        assert (await made.pull("org/name"))[0] == 200
        here = {found.name for found in made.cache.scan()}
        assert here == {"org/loaded", "org/default", "org/name"}
        made.hub.repos["org/large"] = make_model(7 * MIB)
        status, body = await made.pull("org/large")
        assert (status, body["error"]["code"]) == (422, "insufficient_disk")
        assert "of 12 MiB of the disk budget" in body["error"]["message"]
        assert {found.name for found in made.cache.scan() if found.complete} == here
        assert made.hub.count(f"large/resolve/x/{WEIGHTS}") == 0


async def test_a_disk_that_is_full_is_told_to_all_and_no_other_model_notices(made: Made) -> None:
    """By a limit on how large a file of the child may become: its writes fail as on a full disk."""
    await made.served.load("echo/m")
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    pulling = asyncio.create_task(made.pull("org/name"))
    loading = asyncio.create_task(made.load("org/name"))
    await made.until_paused()
    (flight,) = made.served.daemon.weights.downloads.all()
    pid = flight.pid
    assert pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (BIG // 2, BIG // 2))
    made.hub.going_on.set()
    while not (pulling.done() and loading.done()):
        prompt = {"model": "echo/m", "prompt": "a"}
        assert (await made.served.post("/v1/completions", prompt))[0] == 200
    for status, body in (await pulling, (await loading)[:2]):
        assert (status, body["error"]["code"]) == (422, "insufficient_disk")
        assert "the disk is full" in body["error"]["message"]
    assert is_gone(pid)
    models = {model["id"]: model for model in await made.served.get("/models")}
    assert models["echo/m"]["status"] == "loaded"
    assert models["org/name"]["status"] == "failed"
    assert "the disk is full" in models["org/name"]["last_error"]
    assert (await made.pull("org/name"))[0] == 200, "there is room again"


async def test_a_load_fetches_first_and_says_how_far_it_is(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    status, body, _ = await made.load("org/name", wait=False)
    assert status == 202
    assert body["progress"]["phase"] == "downloading"

    def is_half(models: Any) -> bool:
        return bool(models) and (models[0]["progress"]["ratio"] or 0) > 0.4

    (model,) = await made.served.until("/models", is_half, within_s=15)
    assert (model["status"], model["progress"]["phase"]) == ("loading", "downloading")
    assert model["progress"]["eta_s"] >= 0
    status, body = await made.pull("org/name", wait=False)
    assert body["progress"]["ratio"] > 0.4, "the same download"
    status, _, _ = await made.served.post("/models/unload", {"model_id": "org/name"})
    assert status == 200
    assert await made.served.get("/models") == []
    made.hub.going_on.set()
    assert (await made.pull("org/name"))[0] == 200, "the pull still wanted it"
    assert made.hub.count(WEIGHTS) == 1


async def test_unloading_ends_a_download_that_only_the_load_wanted(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    await made.load("org/name", wait=False)
    await made.until_paused()
    (flight,) = made.served.daemon.weights.downloads.all()
    pid = flight.pid
    await made.served.post("/models/unload", {"model_id": "org/name"})
    await flight.ended.wait()
    assert is_gone(pid)
    assert await made.served.get("/models") == []
    assert not (await made.entry("org/name"))["complete"]


async def test_a_load_whose_source_refuses_is_refused_even_without_waiting(made: Made) -> None:
    for wait in (True, False):
        status, body, headers = await made.load("org/nothing", wait=wait)
        assert (status, body["error"]["code"]) == (422, "repo_fetch_failed")
        assert "has no repository org/nothing" in body["error"]["message"]
        assert b"retry-after" not in headers
    assert await made.served.get("/models") == []


async def test_a_source_that_does_not_answer_is_worth_a_retry(tmp_path: Path) -> None:
    dead = SourceSettings(endpoint="http://127.0.0.1:9")
    vllm = VllmSettings(
        sources={"dead": dead}, default_source="dead", hf_cache=str(tmp_path), warm_spare=False
    )
    async with serve(Config(harness=HarnessSettings(vllm=vllm))) as served:
        harness = served.daemon.harnesses["vllm"]
        assert isinstance(harness, VllmHarness)
        served.daemon.weights._retry_s, harness._first_answer_s = 0.05, 0.1
        answer = asyncio.create_task(served.post("/models/load", {"model_id": "a/b"}))
        status, body, _ = await served.post("/models/load", {"model_id": "a/b", "wait": False})
        assert (status, answer.done()) == (202, False), "it is told before a gateway would give up"
        status, body, headers = await answer
    assert (status, body["error"]["code"]) == (422, "repo_fetch_failed")
    assert headers[b"retry-after"] == b"30"
    assert "cannot be reached" in body["error"]["message"]


async def test_without_network_what_is_here_is_loaded_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make(tmp_path) as made:
        await made.pull("org/name")
        made.hub.asked.clear()
        spec = ModelSpec(model_id="org/name")
        folder = await made.served.daemon.weights.ensure(spec, lambda progress: None)
        assert folder == made.cache.snapshot("org/name")
        assert made.hub.asked == []
        (found,) = made.cache.scan()
        assert abs(found.last_used_s - time.time()) < 60
    for settings, variable in (({"download": False}, "download = false"), ({}, "HF_HUB_OFFLINE")):
        if not settings:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        async with make(tmp_path, **settings) as made:
            folder = await made.served.daemon.weights.ensure(spec, lambda progress: None)
            assert folder == made.cache.snapshot("org/name")
            for status, body in (
                await made.pull("org/other"),
                (await made.load("org/other"))[:2],
            ):
                assert (status, body["error"]["code"]) == (422, "repo_fetch_failed")
                assert variable in body["error"]["message"]
            assert made.hub.asked == []


async def test_a_token_is_in_no_engine_s_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_TOKEN", "secret")
    monkeypatch.setenv("HF_TOKEN", "another")
    async with make(tmp_path) as made:
        assert "secret" not in os.environ.values()
        assert "another" not in os.environ.values()
        made.hub.token = "secret"
        assert (await made.pull("org/name"))[0] == 200
        await made.served.load("echo/m")
        (pid,) = made.served.host_pids
        environ = environ_of(pid)
        assert b"PATH=" in environ
        assert b"secret" not in environ
        assert b"another" not in environ


async def test_a_model_with_odd_files_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "models/org/odd"
    folder.mkdir(parents=True)
    config = b'{"architectures": ["LlamaForCausalLM"], "layer_types": 3, "rope_scaling": "x"}'
    nested = b'{"weight_map":{"\xff":' + b"[" * 100_000
    for name, content in {
        **make_model(),
        "config.json": config,
        "tokenizer.json": nested,
        "model.safetensors.index.json": nested,
    }.items():
        (folder / name).write_bytes(content)
    async with make(tmp_path, model_dirs=[str(tmp_path / "models")]) as made:
        report = await made.served.get("/weights")
        assert [entry["id"] for entry in report["weights"]] == ["helexa/demo", "org/odd"]
        status, body, _ = await made.load("org/odd")
    assert (status, body["error"]["code"]) == (422, "corrupt_weights")


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "models/org/name"
    folder.mkdir(parents=True)
    for name, content in make_model().items():
        (folder / name).write_bytes(content)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(tmp_path / "nowhere")
    async with make(tmp_path, model_dirs=[str(tmp_path / "models")]) as made:
        status, body, _ = await made.load("org/name")
    assert (status, body["error"]["code"]) == (422, "repo_fetch_failed")
    assert f"its file {folder / WEIGHTS} cannot be read" in body["error"]["message"]


async def test_a_default_model_without_its_source_holds_up_no_other(tmp_path: Path) -> None:
    dead = SourceSettings(endpoint="http://127.0.0.1:9")
    vllm = VllmSettings(sources={"dead": dead}, hf_cache=str(tmp_path / "hub"), warm_spare=False)
    config = Config(
        harnesses=[HarnessEntry(name="vllm"), HarnessEntry(name="echo")],
        harness=HarnessSettings(vllm=vllm),
        default_models=[ModelSpec(model_id="dead:a/b"), make_echo("echo/m")],
    )
    async with serve(config) as served:
        loading = asyncio.create_task(served.daemon.load_defaults())
        health = await served.until(
            "/health", lambda h: h["activation"]["completed"] == ["echo/m"], within_s=15
        )
        assert health["activation"]["in_progress"] == ["dead:a/b"]
        assert health["activation"]["state"] == "pre_warming"
        loading.cancel()
        await asyncio.wait({loading})


async def test_a_daemon_that_stops_ends_its_downloads(tmp_path: Path) -> None:
    async with make(tmp_path) as made:
        made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
        await made.pull("org/name", wait=False)
        await made.until_paused()
        (flight,) = made.served.daemon.weights.downloads.all()
        pid = flight.pid
    assert is_gone(pid)
