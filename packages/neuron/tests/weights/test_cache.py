# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

from neuron.weights.cache import Cache, names_in
from neuron.weights.testing import make_model


def make(tmp_path: Path, *commits: str, main: str | None = None) -> Cache:
    repo = tmp_path / "models--org--name"
    for commit in commits:
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        for name, content in make_model().items():
            (folder / name).write_bytes(content)
    if main:
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(f"{main}\n")
    return Cache(tmp_path)


def place(cache: Cache, revision: str, files: dict[str, bytes]) -> None:
    """As a download does it: each file is its own blob."""
    blobs = cache.folder("org/name") / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (blobs / f"blob-{name.replace('/', '-')}").write_bytes(content)
    cache.place("org/name", revision, {name: f"blob-{name.replace('/', '-')}" for name in files})


def test_the_cache_is_read_as_the_libraries_write_it(tmp_path: Path) -> None:
    cache = make(tmp_path, "abc", "def", main="def")
    assert cache.snapshot("org/name") == tmp_path / "models--org--name/snapshots/def"
    assert cache.whole("org/name", None) == cache.snapshot("org/name")


def test_the_only_snapshot_will_do_and_of_two_neither(tmp_path: Path) -> None:
    cache = make(tmp_path, "abc")
    assert cache.snapshot("org/name") == tmp_path / "models--org--name/snapshots/abc"
    make(tmp_path, "def")
    assert cache.snapshot("org/name") is None


def test_a_snapshot_that_the_ref_names_and_is_not_there_is_none(tmp_path: Path) -> None:
    cache = make(tmp_path, "abc", main="def")
    assert cache.snapshot("org/name") is None
    assert Cache(tmp_path / "nowhere").snapshot("org/name") is None


def test_a_link_that_leads_nowhere_is_a_file_that_is_missing(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place(cache, "abc", make_model())
    assert cache.whole("org/name", None)
    (tmp_path / "models--org--name/blobs/blob-model.safetensors").unlink()
    assert cache.snapshot("org/name")
    assert cache.whole("org/name", None) is None
    (found,) = cache.scan()
    assert not found.complete
    place(cache, "abc", make_model())
    assert cache.whole("org/name", None)


def test_a_snapshot_appears_with_all_of_its_files(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place(cache, "abc", {"config.json": b"{}", "1_Pooling/config.json": b"deep"})
    snapshot = cache.snapshot("org/name")
    assert snapshot
    assert (snapshot / "1_Pooling/config.json").read_bytes() == b"deep"
    assert (snapshot / "config.json").readlink() == Path("../../blobs/blob-config.json")
    assert names_in(snapshot) == ["1_Pooling/config.json", "config.json"]
    assert [path.name for path in snapshot.parent.iterdir()] == ["abc"]


def test_sizes_count_what_takes_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    place(cache, "abc", {"m-Q4_0.gguf": bytes(1000), "m-Q8_0.gguf": bytes(2000)})
    (tmp_path / "models--org--name/blobs/x.incomplete").write_bytes(bytes(500))
    (found,) = cache.scan()
    assert found == cache.look("org/name")
    assert (found.name, found.revision, found.complete) == ("org/name", "abc", True)
    assert 3500 <= found.size_bytes < 3600
    assert found.size_mb == 1
    assert found.quants == ["Q4_0", "Q8_0"]


def test_a_download_that_broke_off_is_listed_as_no_model(tmp_path: Path) -> None:
    blobs = tmp_path / "models--org--name/blobs"
    blobs.mkdir(parents=True)
    (blobs / "x.incomplete").write_bytes(bytes(500))
    (found,) = Cache(tmp_path).scan()
    assert (found.revision, found.complete, found.size_bytes) == (None, False, 500)


def test_what_is_removed_is_gone_with_its_locks(tmp_path: Path) -> None:
    cache = make(tmp_path, "abc")
    locks = tmp_path / ".locks/models--org--name"
    locks.mkdir(parents=True)
    # Of a removal that was cut off.
    (tmp_path / ".cortex-removed-models--a--b").mkdir()
    cache.remove("org/name")
    assert cache.scan() == []
    assert cache.look("org/name") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks"]
    assert not locks.exists()


def test_the_last_use_is_kept_and_else_the_newest_file_s(tmp_path: Path) -> None:
    cache = make(tmp_path, "abc")
    (found,) = cache.scan()
    newest = max(path.stat().st_mtime for path in tmp_path.rglob("*") if path.is_file())
    assert found.last_used_s == newest
    cache.note_used("org/name", 123.0)
    cache.note_used("is/gone", 5.0)
    (found,) = Cache(tmp_path).scan()
    assert found.last_used_s == 123.0
    record = tmp_path / ".cortex-last-used.json"
    assert record.read_text() == '{"org/name":123.0}'
    record.write_text("{broken")
    assert Cache(tmp_path).scan()[0].last_used_s == newest
