# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m neuron.weights.fetch`: one download, told what to fetch by one line on standard input.

It may be killed at any moment: what it has of a file stays beside the whole ones, and the next goes on there. It
ends with the daemon, whose end of standard input closes.
"""

import fcntl
import hashlib
import os
import queue
import re
import sys
import threading
import traceback
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO, NoReturn

from neuron.weights.cache import INCOMPLETE, Cache, write_whole
from neuron.weights.choosing import (
    Chosen,
    choose_companions,
    choose_files,
    guess_base,
    needs_base,
    refuse_gguf,
)
from neuron.weights.hub import Hub, Listing, Remote, explain_os, is_large
from neuron.weights.messages import (
    Fetch,
    Fetched,
    Message,
    Order,
    Planned,
    Progressed,
    Refused,
    read_order,
    write_line,
)
from neuron.weights.refusals import WeightsError

# Files at once, as the library's own snapshot_download has them.
WORKERS = 8
REPORT_EVERY_S = 0.5
READ_BYTES = 4 * 1024 * 1024

_SANE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Download:
    """One repository on its way into a cache."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._hub = Hub(fetch)
        self._cache = Cache(Path(fetch.cache_dir))
        self._wanted: dict[str, Remote] = {}
        self._here = 0

    def plan(self) -> tuple[Listing, Chosen, Planned]:
        """Decide what to fetch. Raises WeightsError."""
        repo = self._fetch.repo
        listing = self._hub.list(repo)
        _check_name(listing.revision)
        chosen = choose_files(listing.hashes, self._fetch.quant)
        if chosen.gguf and not self._fetch.with_gguf:
            raise refuse_gguf(chosen.gguf.tag)
        self._look(repo, listing, chosen.files)
        total = self._here + sum(remote.size_bytes or 0 for remote in self._wanted.values())
        planned = Planned(
            revision=listing.revision,
            total_bytes=total,
            missing_bytes=max(0, total - self.done_bytes()),
            missing_files=len(self._wanted),
        )
        return listing, chosen, planned

    def run(self, listing: Listing, chosen: Chosen) -> Fetched:
        """Fetch it. Raises WeightsError."""
        self._fill(self._fetch.repo, listing)
        base = None
        if needs_base(chosen):
            base = self._fetch_base(guess_base(self._fetch.repo, listing.base))
        return Fetched(revision=listing.revision, base=base)

    def done_bytes(self) -> int:
        """Of the model's files, what is on disk, whole files and parts."""
        blobs = self._blobs(self._fetch.repo)
        return self._here + sum(_size(blobs / remote.etag) for remote in self._wanted.values())

    def _fetch_base(self, base: str | None) -> str | None:
        """Tokenizer and configuration of the model that a GGUF was made from; None: they cannot be had."""
        if base is None:
            return None
        self._wanted, self._here = {}, self.done_bytes()
        try:
            listing = self._hub.list(base)
            _check_name(listing.revision)
            names = choose_companions(listing.hashes)
            self._look(base, listing, names)
            self._fill(base, listing)
            self._copy(base, names)
        except WeightsError:
            return None
        return base

    def _copy(self, base: str, names: list[str]) -> None:
        """Put them beside the GGUF, but for what came with it: then its folder is a model's."""
        source, target = self._cache.snapshot(base), self._cache.snapshot(self._fetch.repo)
        if source is None or target is None:
            return
        for name in names:
            if not (target / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                write_whole(target / name, (source / name).read_bytes())

    def _look(self, repo: str, listing: Listing, names: list[str]) -> None:
        """Ask for each file that is not here yet."""
        snapshot = self._cache.folder(repo) / "snapshots" / listing.revision
        here = [name for name in names if (snapshot / name).is_file()]
        self._here += sum((snapshot / name).stat().st_size for name in here)
        missing = [name for name in names if name not in here]
        with ThreadPoolExecutor(WORKERS) as pool:
            remotes = pool.map(lambda name: self._hub.look(repo, listing, name), missing)
            self._wanted = dict(zip(missing, remotes, strict=True))
        for remote in self._wanted.values():
            _check_name(remote.etag)

    def _fill(self, repo: str, listing: Listing) -> None:
        self._blobs(repo).mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(WORKERS)
        running = [
            pool.submit(self._get, repo, listing, name, remote)
            for name, remote in self._wanted.items()
        ]
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for task in done:
            task.result()
        blobs = {name: remote.etag for name, remote in self._wanted.items()}
        self._cache.place(repo, listing.revision, blobs)

    def _get(self, repo: str, listing: Listing, name: str, remote: Remote) -> None:
        """One blob, whole. Of two processes that want it, the second waits for the first."""
        blob = self._blobs(repo) / remote.etag
        part = blob.with_name(blob.name + INCOMPLETE)
        with part.open("ab") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if not blob.exists():
                self._get_held(repo, listing, name, remote, part)
            else:  # another made it whole meanwhile
                part.unlink(missing_ok=True)

    def _get_held(self, repo: str, listing: Listing, name: str, remote: Remote, part: Path) -> None:
        if is_large(remote):
            self._hub.get_large(repo, listing.revision, name)
            part.unlink(missing_ok=True)
            return
        try:
            self._get_checked(repo, listing, name, remote, part)
        except WeightsError as error:
            if error.kind in ("corrupt_weights", "insufficient_disk"):
                # What is wrong cannot be gone on with; and a full disk does others harm.
                part.unlink(missing_ok=True)
            raise
        part.replace(part.with_name(remote.etag))

    def _get_checked(
        self, repo: str, listing: Listing, name: str, remote: Remote, part: Path
    ) -> None:
        left_bytes = part.stat().st_size
        while True:
            try:
                self._hub.get(repo, listing.revision, name, remote.size_bytes, part)
                wanted = listing.hashes[name]
                if wanted is not None and listing.tells_of(name, remote.etag):
                    _check_content(name, part, wanted)
            except WeightsError as error:
                # It may be what an earlier download left that is wrong.
                if error.kind != "corrupt_weights" or not left_bytes:
                    raise
                left_bytes = 0
                os.truncate(part, 0)
            else:
                return

    def _blobs(self, repo: str) -> Path:
        return self._cache.folder(repo) / "blobs"


def _check_content(name: str, part: Path, wanted: str) -> None:
    """Raises WeightsError: it is not what the source's own listing says."""
    digest = hashlib.sha256()
    if len(wanted) != 64:
        digest = hashlib.sha1(usedforsecurity=False)
        digest.update(f"blob {part.stat().st_size}\0".encode())
    with part.open("rb") as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    if digest.hexdigest() != wanted:
        raise WeightsError(
            "corrupt_weights",
            f"{name} has another checksum than the source tells of",
            "Try again later, or another source.",
        )


def _check_name(name: str) -> None:
    """Commits and ETags come from a server, and become names of files here."""
    if not _SANE_NAME.fullmatch(name) or name.endswith(INCOMPLETE):
        raise WeightsError(
            "repo_fetch_failed",
            f"the source names a commit or a file {name[:80]!r}",
            "Check the `endpoint` of the source.",
        )


def _size(blob: Path) -> int:
    for path in (blob, blob.with_name(blob.name + INCOMPLETE)):
        try:
            return path.stat().st_size
        except FileNotFoundError:
            continue
    return 0


class Pipe:
    """The daemon, as the child hears and tells it."""

    def __init__(self, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._writing = threading.Lock()
        threading.Thread(target=self._hear, name="leash", daemon=True).start()

    def hear(self) -> Order:
        """The next line."""
        return self._orders.get()

    def tell(self, message: Message) -> None:
        """One line."""
        with self._writing:
            self._stdout.write(write_line(message))
            self._stdout.flush()

    def _hear(self) -> None:
        # A thread: whatever the download waits for, the end of the daemon is its end.
        for line in self._stdin:
            self._orders.put(read_order(line))
        os._exit(1)


def _report(pipe: Pipe, download: Download, ended: threading.Event) -> None:
    told = -1
    while not ended.wait(REPORT_EVERY_S):
        if (done := download.done_bytes()) != told:
            told = done
            pipe.tell(Progressed(done_bytes=done))


def run(pipe: Pipe, fetch: Fetch) -> Message:
    """The download from its first question to its last word."""
    ended = threading.Event()
    try:
        download = Download(fetch)
        listing, chosen, planned = download.plan()
        pipe.tell(planned)
        pipe.hear()
        reporting = threading.Thread(target=_report, args=(pipe, download, ended), daemon=True)
        reporting.start()
        return download.run(listing, chosen)
    except WeightsError as error:
        return _refused(error, fetch)
    except OSError as error:
        return _refused(explain_os(error), fetch)
    finally:
        ended.set()


def _refused(error: WeightsError, fetch: Fetch) -> Refused:
    reason = str(error)
    return Refused(
        kind=error.kind,
        # What a source answers may hold what it was sent.
        reason=reason.replace(fetch.token, "***") if fetch.token else reason,
        suggestion=error.suggestion,
        passing=error.passing,
    )


def main() -> NoReturn:
    """Run until it is fetched or refused."""
    stdout = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no message
    pipe = Pipe(sys.stdin.buffer, stdout)
    try:
        fetch = pipe.hear()
        if isinstance(fetch, Fetch):
            pipe.tell(run(pipe, fetch))
    except Exception:  # noqa: BLE001 - the outermost layer: the daemon reads it from standard error
        traceback.print_exc()
        os._exit(1)
    # Not sys.exit: the interpreter would wait for the threads of a download that was refused, and for the leash.
    os._exit(0)


if __name__ == "__main__":
    main()
