# SPDX-License-Identifier: GPL-3.0-or-later
"""What a cache of models has on disk, in the layout that the Hugging Face libraries share.

`models--org--name/blobs/ETAG` are the files, `…/snapshots/COMMIT/NAME` link to them, `…/refs/main` names the commit.
Here a blob gets its name when it is whole, a snapshot appears when it has all of its blobs, and the ref is
written last: whatever breaks off in between is never taken for a model.
"""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from neuron.weights.choosing import missing_files
from neuron.weights.quants import group_ggufs
from neuron.weights.room import MIB

PREFIX = "models--"
INCOMPLETE = ".incomplete"
_REMOVED = ".cortex-removed-"
_LAST_USED = ".cortex-last-used.json"
_LOCK = ".lock"
MAIN = "main"


class OnDisk(msgspec.Struct, frozen=True, kw_only=True):
    """One repository in a cache.

    Attributes:
        name: `org/name`.
        revision: the commit that counts; None: none does, a download broke off.
        size_bytes: of all its files, whole or not, of every revision.
        complete: whether the revision can be loaded.
        quants: tags of its GGUF files.
        last_used_s: Unix seconds of its last load; of its newest file where it never was loaded.
    """

    name: str
    revision: str | None
    size_bytes: int
    complete: bool
    quants: list[str]
    last_used_s: float

    @property
    def size_mb(self) -> int:
        """In MiB, the begun one counted."""
        return -(-self.size_bytes // MIB)


class _Index(msgspec.Struct):
    weight_map: dict[str, str] = {}


_READ_INDEX = msgspec.json.Decoder(_Index)
_READ_LAST_USED = msgspec.json.Decoder(dict[str, float])


class Cache:
    """One cache directory. It need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def folder(self, name: str) -> Path:
        """Of a repository, whether it is there or not."""
        return self.path / f"{PREFIX}{name.replace('/', '--')}"

    def snapshot(self, name: str) -> Path | None:
        """The snapshot that `main` names; of a cache that was copied by hand, its only one. None: there is none."""
        snapshots = self.folder(name) / "snapshots"
        try:
            named = snapshots / (self.folder(name) / "refs" / MAIN).read_text().strip()
        except (OSError, UnicodeDecodeError):
            found = [s for s in snapshots.glob("*") if not s.name.startswith(".")]
            return found[0] if len(found) == 1 else None
        return named if named.is_dir() else None

    def whole(self, name: str, quant: str | None) -> Path | None:
        """The snapshot, where it has all that a load of the model needs; None: something is missing."""
        snapshot = self.snapshot(name)
        if snapshot is None or lacks(snapshot, quant):
            return None
        return snapshot

    def scan(self) -> list[OnDisk]:
        """Every repository, by name."""
        last_used = self._read_last_used()
        return [
            _read_repo(self, folder, last_used) for folder in sorted(self.path.glob(f"{PREFIX}*/"))
        ]

    def look(self, name: str) -> OnDisk | None:
        """One repository; None: nothing of it is here."""
        folder = self.folder(name)
        return _read_repo(self, folder, self._read_last_used()) if folder.is_dir() else None

    def free_bytes(self) -> int:
        """Of the disk that the cache is on."""
        there = next(p for p in [self.path, *self.path.parents] if p.exists())
        return shutil.disk_usage(there).free

    def remove(self, name: str) -> None:
        """Remove a repository: at once for who looks, whatever the disk takes to do it.

        Raises:
            OSError: it may not be removed.
        """
        for left in self.path.glob(f"{_REMOVED}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = self.folder(name)
        gone = self.path / f"{_REMOVED}{folder.name}"
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(self.path / ".locks" / folder.name, ignore_errors=True)

    def note_used(self, name: str, now_s: float) -> None:
        """It is loaded now. A cache that cannot be written keeps no record, and is none that is ever evicted from."""
        used = {**self._read_last_used(), name: now_s}
        known = {key: at_s for key, at_s in used.items() if self.folder(key).is_dir()}
        with contextlib.suppress(OSError):
            write_whole(self.path / _LAST_USED, msgspec.json.encode(known))

    def place(self, name: str, revision: str, blobs: Mapping[str, str]) -> Path:
        """Make the snapshot of whole blobs: file name to blob's name. Then `main` names it."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        # Another daemon may be making the same one.
        with (folder / _LOCK).open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            snapshot = self._place_held(folder / "snapshots", revision, blobs)
            ref = folder / "refs" / MAIN
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, revision.encode())
        return snapshot

    def _place_held(self, snapshots: Path, revision: str, blobs: Mapping[str, str]) -> Path:
        snapshot = snapshots / revision
        if snapshot.is_dir():
            _link(snapshot, blobs)
        else:
            staged = snapshots / f".{revision}"
            shutil.rmtree(staged, ignore_errors=True)
            _link(staged, blobs)
            staged.rename(snapshot)
        return snapshot

    def _read_last_used(self) -> dict[str, float]:
        try:
            return _READ_LAST_USED.decode((self.path / _LAST_USED).read_bytes())
        except (
            OSError,
            msgspec.DecodeError,
        ):  # nothing was ever loaded, or the file is somebody else's
            return {}


def lacks(snapshot: Path, quant: str | None) -> list[str]:
    """What a load of the model would miss in a folder; empty: nothing."""
    return missing_files(names_in(snapshot), quant, lambda index: _indexed(snapshot / index))


def names_in(folder: Path) -> list[str]:
    """Its files that can be read, by path from there: a link that leads nowhere is none."""
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in files]
        names += [path.relative_to(folder).as_posix() for path in paths if _is_readable(path)]
    return sorted(names)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that nobody ever reads half of it, and a power cut leaves the old or the new."""
    staged = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with staged.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    staged.replace(path)


def _is_readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False


def _indexed(index: Path) -> Iterable[str]:
    try:
        return set(_READ_INDEX.decode(index.read_bytes()).weight_map.values())
    except (
        OSError,
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # that it is broken is told by who loads it
        return []


def _link(snapshot: Path, blobs: Mapping[str, str]) -> None:
    for name, blob in blobs.items():
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)  # one that leads nowhere
            up = "../" * (2 + name.count("/"))
            link.symlink_to(f"{up}blobs/{blob}")


def _read_repo(cache: Cache, folder: Path, last_used: Mapping[str, float]) -> OnDisk:
    name = folder.name.removeprefix(PREFIX).replace("--", "/", 1)
    files = list(_files(folder))
    snapshot = cache.snapshot(name)
    quants = [gguf.tag for gguf in group_ggufs(names_in(snapshot))] if snapshot else []
    newest_s = max((status.st_mtime for status in files), default=0.0)
    # Of several quants each can be loaded by its name.
    complete = snapshot is not None and not lacks(snapshot, quants[0] if quants else None)
    return OnDisk(
        name=name,
        revision=snapshot.name if snapshot else None,
        size_bytes=sum(status.st_size for status in files),
        complete=complete,
        quants=quants,
        last_used_s=last_used.get(name, newest_s),
    )


def _files(folder: Path) -> Iterator[os.stat_result]:
    """What takes room; links do not."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a download has just made it whole
                status = Path(parent, name).lstat()
                if not stat.S_ISLNK(status.st_mode):
                    yield status
