# SPDX-License-Identifier: GPL-3.0-or-later
"""Real downloads by the real child, from a hub on loopback."""

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cortex_core.weights import DownloadProgress
from neuron.weights.cache import Cache
from neuron.weights.downloads import Downloads, Flight
from neuron.weights.messages import Fetch, Planned
from neuron.weights.refusals import WeightsError
from neuron.weights.testing import FakeHub, Fault, make_model, open_hub

pytestmark = pytest.mark.slow

REPO = "org/name"
BIG = 3 * 1024 * 1024
WEIGHTS = "model.safetensors"
# What the library reads at once, which is lost where it is cut.
CHUNK = 256 * 1024


class Made:
    """A hub, downloads from it, and what was told of them."""

    def __init__(self, hub: FakeHub, endpoint: str, cache: Path, downloads: Downloads) -> None:
        self.hub = hub
        self.endpoint = endpoint
        self.cache = Cache(cache)
        self.downloads = downloads
        self.told: list[DownloadProgress] = []
        self.folder = self.cache.folder(REPO)

    async def fetch(self, **fields: Any) -> Flight:
        asked = {"repo": REPO, "endpoint": self.endpoint, "cache_dir": str(self.cache.path)}
        fetch = Fetch(**{**asked, "wait_s": 0.01, **fields})
        folder = self.cache.folder(fetch.repo)
        return await self.downloads.fetch(f"hub:{fetch.repo}", fetch, folder, self.told.append)

    def content(self, name: str = WEIGHTS) -> bytes:
        snapshot = self.cache.snapshot(REPO)
        assert snapshot
        return (snapshot / name).read_bytes()


async def no_limit(flight: Flight, planned: Planned) -> None:
    """There is room for all."""


@asynccontextmanager
async def make(cache: Path, environ: dict[str, str] | None = None) -> AsyncIterator[Made]:
    async with open_hub() as (hub, endpoint), asyncio.TaskGroup() as tasks:
        hub.repos[REPO] = make_model(BIG)
        downloads = Downloads(tasks, no_limit, {**os.environ, **(environ or {})})
        try:
            yield Made(hub, endpoint, cache, downloads)
        finally:
            downloads.close()


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    async with make(tmp_path / "hub") as made:
        yield made


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def refused(made: Made, **fields: Any) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        await made.fetch(**fields)
    return caught.value


async def test_all_that_a_model_needs_comes_and_no_more(made: Made) -> None:
    made.hub.repos[REPO] |= {"model.onnx": b"x" * 2000, "pytorch_model.bin": b"y" * 2000}
    flight = await made.fetch()
    snapshot = made.cache.snapshot(REPO)
    assert snapshot
    assert snapshot.name == made.hub.revision(REPO)
    assert sorted(p.name for p in snapshot.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert made.content() == made.hub.repos[REPO][WEIGHTS]
    assert made.cache.whole(REPO, None) == snapshot
    assert flight.planned
    assert made.told[-1].ratio == pytest.approx(flight.progress.ratio)
    assert flight.planned.missing_bytes == flight.planned.total_bytes > BIG


async def test_what_is_here_is_not_fetched_again(made: Made) -> None:
    await made.fetch()
    made.hub.asked.clear()
    flight = await made.fetch()
    assert flight.planned
    assert flight.planned.missing_bytes == 0
    assert [asked.path for asked in made.hub.asked] == [f"/api/models/{REPO}/revision/main"]


async def test_a_newer_revision_brings_what_is_new_of_it(made: Made) -> None:
    await made.fetch()
    made.hub.asked.clear()
    made.hub.repos[REPO]["config.json"] = b'{"model_type": "other"}'
    await made.fetch()
    assert made.content("config.json") == b'{"model_type": "other"}'
    assert made.hub.count(WEIGHTS) == 0, "the same blob"


async def test_a_cut_stream_goes_on_where_it_was(made: Made) -> None:
    made.hub.faults = [
        Fault(path=WEIGHTS, method="GET", cut_after=BIG // 2),
        Fault(path=WEIGHTS, method="GET", cut_after=BIG // 3),
    ]
    await made.fetch()
    assert made.content() == made.hub.repos[REPO][WEIGHTS]
    starts = [a.start for a in made.hub.asked if a.path.endswith(WEIGHTS) and a.method == "GET"]
    assert starts[0] == 0 < BIG // 2 - CHUNK <= starts[1] < starts[2]
    sent = sum(made.hub.sent[path] for path in made.hub.sent if path.endswith(WEIGHTS))
    assert sent <= len(made.hub.repos[REPO][WEIGHTS]) + 2 * CHUNK


async def test_a_stream_that_stands_still_is_taken_up_again(tmp_path: Path) -> None:
    async with make(tmp_path / "hub", {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}) as made:
        made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
        await made.fetch()
        assert made.content() == made.hub.repos[REPO][WEIGHTS]
        assert made.hub.asked[-1].start >= BIG // 2 - CHUNK


async def test_a_server_without_ranges_is_asked_for_the_whole(made: Made) -> None:
    made.hub.faults = [
        Fault(path=WEIGHTS, method="GET", cut_after=BIG // 2),
        Fault(path=WEIGHTS, method="GET", ignores_range=True),
    ]
    await made.fetch()
    assert made.content() == made.hub.repos[REPO][WEIGHTS]


async def test_a_killed_child_is_started_again_and_goes_on(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    fetching = asyncio.create_task(made.fetch())
    await made.hub.paused.wait()
    await until_part(made)
    (flight,) = made.downloads.all()
    assert flight.pid
    os.kill(flight.pid, signal.SIGKILL)
    await fetching
    assert made.content() == made.hub.repos[REPO][WEIGHTS]
    assert made.hub.asked[-1].start >= BIG // 2 - CHUNK


async def until_part(made: Made) -> Path:
    """Until about half of the weights is on disk."""
    async with asyncio.timeout(10):
        while True:
            for part in made.folder.glob("blobs/*.incomplete"):
                # A small file may be made whole in this instant.
                with contextlib.suppress(FileNotFoundError):
                    if part.stat().st_size >= BIG // 2 - CHUNK:
                        return part
            await asyncio.sleep(0.01)


async def test_a_child_that_ends_each_time_is_told_as_what_it_is(tmp_path: Path) -> None:
    async with make(tmp_path / "hub", {"PYTHONPATH": str(tmp_path)}) as made:
        (tmp_path / "sitecustomize.py").write_text("import os; os.abort()")
        error = await refused(made)
    assert error.kind == "repo_fetch_failed"
    assert "killed by SIGABRT" in str(error)


async def test_who_leaves_last_ends_it_and_the_next_goes_on(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    first, second = (asyncio.create_task(made.fetch()) for _ in range(2))
    await made.hub.paused.wait()
    await until_part(made)
    (flight,) = made.downloads.all()
    pid = flight.pid
    assert pid
    first.cancel()
    await asyncio.wait({first})
    assert made.downloads.all() == [flight], "one still wants it"
    second.cancel()
    await asyncio.wait({second})
    await flight.ended.wait()
    assert is_gone(pid)
    assert made.cache.snapshot(REPO) is None, "half a model is no model"
    assert made.cache.whole(REPO, None) is None
    await made.fetch()
    assert made.hub.asked[-1].start >= BIG // 2 - CHUNK


async def test_two_who_want_it_share_one_download(made: Made) -> None:
    await asyncio.gather(made.fetch(), made.fetch(with_gguf=False), made.fetch())
    assert made.hub.count("/revision/main") == 1
    assert made.hub.count(WEIGHTS) == 1


async def test_two_daemons_on_one_cache_fetch_each_file_once(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    async with asyncio.TaskGroup() as tasks:
        other = Made(
            made.hub, made.endpoint, made.cache.path, Downloads(tasks, no_limit, os.environ)
        )
        both = [tasks.create_task(one.fetch()) for one in (made, other)]
        await made.hub.paused.wait()
        async with asyncio.timeout(20):
            # Each child has asked for what it lacks; one of them has the file, and the other waits for that.
            while made.hub.count(WEIGHTS, "HEAD") < 2:
                await asyncio.sleep(0.01)
        made.hub.going_on.set()
        await asyncio.gather(*both)
    assert made.hub.count(WEIGHTS) == 1
    assert made.content() == made.hub.repos[REPO][WEIGHTS]


async def test_trouble_that_passes_is_waited_out(made: Made) -> None:
    made.hub.faults = [
        Fault(path="/revision/main", status=500, times=2),
        Fault(path="config.json", method="HEAD", status=503),
        Fault(path=WEIGHTS, method="GET", status=502, times=2),
        Fault(path="tokenizer.json", method="GET", status=429),
    ]
    await made.fetch()
    assert made.content() == made.hub.repos[REPO][WEIGHTS]


async def test_trouble_that_stays_is_told_as_what_may_pass(made: Made) -> None:
    made.hub.faults = [Fault(path="/revision/main", status=500, times=99)]
    error = await refused(made)
    assert error.passing
    assert made.hub.count("/revision/main") == 5
    assert "cannot be reached: it answers with status 500" in str(error)


async def test_a_source_that_is_not_there_is_told_as_what_may_pass(made: Made) -> None:
    error = await refused(made, endpoint="http://127.0.0.1:9")
    assert error.passing
    assert "http://127.0.0.1:9 cannot be reached" in str(error)


@pytest.mark.parametrize(
    ("status", "code", "token", "reason", "suggestion"),
    [
        (401, None, None, "wants a token (status 401)", "set HF_TOKEN"),
        (401, None, "secret", "does not take the token", "set HF_TOKEN"),
        (403, None, "secret", "does not take the token", "set HF_TOKEN"),
        (403, "GatedRepo", "secret", "is gated", "Ask for access at http://"),
        (404, "RepoNotFound", None, "has no repository org/name", "Check the id"),
        (404, "RevisionNotFound", None, "has no main", "Check the id"),
        (418, None, None, "answers with status 418", "Check the source"),
    ],
)
async def test_what_a_source_refuses_is_told_with_what_to_do(
    made: Made, status: int, code: str | None, token: str | None, reason: str, suggestion: str
) -> None:
    made.hub.faults = [Fault(path="/revision/main", status=status, code=code, times=99)]
    error = await refused(made, token=token, auth_env="HF_TOKEN")
    assert (error.kind, error.passing) == ("repo_fetch_failed", False)
    assert reason in str(error)
    assert suggestion in error.suggestion
    assert "secret" not in f"{error}{error.suggestion}"
    assert made.hub.count("/revision/main") == 1, "structural: not tried again"


async def test_a_repository_without_weights_is_empty(made: Made) -> None:
    made.hub.repos[REPO] = {"README.md": b"", "config.json": b"{}"}
    assert (await refused(made)).kind == "empty_repo"


async def test_content_with_another_checksum_is_no_model(made: Made) -> None:
    weights = made.hub.repos[REPO][WEIGHTS]
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", content=bytes(len(weights)), times=99)]
    error = await refused(made)
    assert error.kind == "corrupt_weights"
    assert "another checksum" in str(error)
    assert made.cache.snapshot(REPO) is None
    assert not list(made.folder.glob("blobs/*.incomplete"))
    made.hub.faults = []
    await made.fetch()
    assert made.content() == weights


@pytest.mark.parametrize("lists_sizes", [True, False])
async def test_a_source_that_tells_no_length_is_taken_at_its_listing(
    made: Made, lists_sizes: bool
) -> None:
    made.hub.tells_lengths, made.hub.lists_sizes = False, lists_sizes
    flight = await made.fetch()
    assert made.content() == made.hub.repos[REPO][WEIGHTS]
    assert flight.planned
    assert flight.planned.missing_files == 4
    assert (flight.planned.missing_bytes > BIG) is lists_sizes
    assert flight.planned.total_bytes == flight.planned.missing_bytes


@pytest.mark.parametrize("is_whole", [True, False])
async def test_what_an_earlier_download_left_is_given_up_where_it_cannot_be_gone_on_with(
    made: Made, is_whole: bool
) -> None:
    weights = made.hub.repos[REPO][WEIGHTS]
    made.hub.tells_lengths = made.hub.lists_sizes = not is_whole
    part = made.folder / "blobs" / f"{hashlib.sha256(weights).hexdigest()}.incomplete"
    part.parent.mkdir(parents=True)
    left = part.write_bytes(weights if is_whole else bytes(BIG // 3))
    await made.fetch()
    assert made.content() == weights
    starts = [a.start for a in made.hub.asked if a.path.endswith(WEIGHTS) and a.method == "GET"]
    assert starts == [left, 0]


async def test_small_files_are_checked_as_git_does(made: Made) -> None:
    config = made.hub.repos[REPO]["config.json"]
    made.hub.faults = [
        Fault(path="/config.json", method="GET", content=b"x" * len(config), times=99)
    ]
    error = await refused(made)
    assert error.kind == "corrupt_weights"
    assert "config.json has another checksum" in str(error)


async def test_content_of_another_length_is_no_model(made: Made) -> None:
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", content=b"short", times=99)]
    error = await refused(made)
    assert error.kind == "corrupt_weights"
    assert "length" in str(error)
    assert made.cache.snapshot(REPO) is None


async def test_a_page_that_is_no_hub_is_told(made: Made) -> None:
    made.hub.repos[REPO] = {}
    error = await refused(made, endpoint=f"{made.endpoint}/somewhere")
    assert error.kind == "repo_fetch_failed"


async def test_a_disk_that_is_full_is_told_and_not_kept_full(made: Made) -> None:
    """By a limit on how large a file of the child may become: its writes fail as on a full disk, with EFBIG."""
    made.hub.faults = [Fault(path=WEIGHTS, method="GET", pause_after=BIG // 2)]
    fetching = asyncio.create_task(made.fetch())
    await made.hub.paused.wait()
    part = await until_part(made)
    (flight,) = made.downloads.all()
    assert flight.pid
    limit = part.stat().st_size
    resource.prlimit(flight.pid, resource.RLIMIT_FSIZE, (limit, limit))
    made.hub.going_on.set()
    with pytest.raises(WeightsError) as caught:
        await fetching
    assert caught.value.kind == "insufficient_disk"
    assert not part.exists()


async def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with make(tmp_path / "file" / "hub") as made:
        error = await refused(made)
    assert error.kind == "repo_fetch_failed"
    assert "cache cannot be written" in str(error)


async def test_a_token_goes_to_its_source_and_nowhere_else(made: Made) -> None:
    async with open_hub() as (cdn, elsewhere):
        cdn.repos = made.hub.repos
        made.hub.token = "secret"
        made.hub.elsewhere = elsewhere
        await made.fetch(token="secret")
        assert made.content() == made.hub.repos[REPO][WEIGHTS]
        assert {asked.token for asked in made.hub.asked} == {"secret"}
        assert cdn.count(WEIGHTS) == 1
        assert {asked.token for asked in cdn.asked} == {None}


async def test_not_even_a_host_that_the_library_trusts_gets_it(tmp_path: Path) -> None:
    async with open_hub() as (cdn, elsewhere):
        # The library follows redirects to this one itself, and would send it the token.
        async with make(tmp_path / "hub", {"HF_ENDPOINT": elsewhere}) as made:
            cdn.repos = made.hub.repos
            made.hub.elsewhere = elsewhere
            await made.fetch(token="secret")
        assert cdn.count(WEIGHTS, "HEAD") == 1
        assert {asked.token for asked in cdn.asked} == {None}


async def test_no_token_is_found_that_was_not_given(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("found")
    environ = {"HF_TOKEN_PATH": str(tmp_path / "token")}
    async with make(tmp_path / "hub", environ) as made:
        await made.fetch()
        assert {asked.token for asked in made.hub.asked} == {None}


@pytest.mark.parametrize("name", ["../../evil.json", "/evil.json", ".git/config.json"])
async def test_a_name_never_leads_out_of_the_cache(made: Made, name: str) -> None:
    made.hub.repos[REPO][name] = b"{}"
    await made.fetch()
    assert not list(made.cache.path.parent.rglob("evil.json"))
    assert not any(asked.path.endswith(name) for asked in made.hub.asked)


async def test_the_quant_that_is_named_comes_with_the_tokenizer_of_its_base(made: Made) -> None:
    made.hub.repos["org/name-GGUF"] = {
        "name-Q4_K_M-00001-of-00002.gguf": b"one",
        "name-Q4_K_M-00002-of-00002.gguf": b"two",
        "name-Q8_0.gguf": b"large",
        "mmproj-F16.gguf": b"eyes",
    }
    await made.fetch(repo="org/name-GGUF", quant="q4-k-m")
    snapshot = made.cache.snapshot("org/name-GGUF")
    assert snapshot
    assert [path.name for path in sorted(snapshot.iterdir())] == [
        "config.json",
        "name-Q4_K_M-00001-of-00002.gguf",
        "name-Q4_K_M-00002-of-00002.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    base = made.cache.snapshot(REPO)
    assert base
    assert sorted(path.name for path in base.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert made.cache.whole(REPO, None) is None, "without weights it is not that model"


async def test_a_gguf_that_no_engine_runs_is_refused_before_it_comes(made: Made) -> None:
    made.hub.repos[REPO] = {"name-Q4_K_M.gguf": b"x"}
    error = await refused(made, with_gguf=False)
    assert error.kind == "unsupported_architecture"
    assert "vllm-gguf-plugin" in str(error)
    assert made.hub.count(".gguf") == 0


async def test_who_pulls_a_gguf_is_not_refused_with_who_loads_it(made: Made) -> None:
    made.hub.repos[REPO] = {"name-Q4_K_M.gguf": b"x"}
    load = asyncio.create_task(made.fetch(with_gguf=False))
    pull = asyncio.create_task(made.fetch())
    await asyncio.wait({load, pull})
    assert isinstance(load.exception(), WeightsError)
    assert pull.exception() is None
