# SPDX-License-Identifier: GPL-3.0-or-later
"""How a source is asked: what a repository has, and its files. The only importer of the Hugging Face library.

The library speaks the protocol: addresses, headers, errors, going on within a file. What is kept on disk, and what
is tried again, is decided here and in `fetch`. Runs in the child that downloads, never in the daemon.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx2
import huggingface_hub
import msgspec
from huggingface_hub import constants, errors
from huggingface_hub.file_download import http_get

from neuron.weights.messages import Fetch
from neuron.weights.refusals import WeightsError

T = TypeVar("T")

# Of one answer's silence, and of one listing.
TIMEOUT_S = 10.0
# What is lost of a file when its stream is cut.
CHUNK_BYTES = 256 * 1024
# Retries of what may pass: their waits, in units of `Fetch.wait_s`.
WAITS = (1, 2, 4, 8)
_PASSING_STATUS = (408, 425, 429)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What a repository has.

    Attributes:
        revision: the commit.
        hashes: by file name, what its content must hash to where the source tells: 64 digits are SHA-256, 40 git's
            own SHA-1.
        sizes_bytes: by file name; None: the source does not tell.
        base: the model that it was made from, as its card says.
    """

    revision: str
    hashes: dict[str, str | None]
    sizes_bytes: dict[str, int | None]
    base: str | list[str] | None = None

    def tells_of(self, name: str, etag: str) -> bool:
        """Whether it tells of a file with this ETag, and not, as of large files it may, of what stands for one in git."""
        told = self.hashes[name]
        return told is None or len(told) == 64 or told == etag


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """One file as the source has it.

    Attributes:
        etag: names its content.
        size_bytes: None: the source does not tell.
    """

    etag: str
    size_bytes: int | None


def is_large(remote: Remote) -> bool:
    """Whether the hub would not send it as one HTTP answer."""
    return (remote.size_bytes or 0) > constants.MAX_HTTP_DOWNLOAD_SIZE


class Hub:
    """One source, asked for one repository at a time."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._origin = httpx2.URL(fetch.endpoint)
        # Only what we were told to send: the library looks for tokens in files as well.
        self._token: str | bool = fetch.token or False
        constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES
        huggingface_hub.set_client_factory(self._build_client)
        self._headers = {"authorization": f"Bearer {fetch.token}"} if fetch.token else {}
        self._api = huggingface_hub.HfApi(endpoint=fetch.endpoint, token=self._token)

    def list(self, repo: str) -> Listing:
        """What the repository has now. Raises WeightsError."""
        info = self._persist(
            repo,
            lambda: self._api.model_info(
                repo, revision=self._fetch.revision, files_metadata=True, timeout=TIMEOUT_S
            ),
        )
        files = info.siblings or []
        return Listing(
            revision=info.sha or "",
            hashes={f.rfilename: f.lfs.sha256 if f.lfs else f.blob_id for f in files},
            sizes_bytes={f.rfilename: f.size for f in files},
            base=info.card_data.base_model if info.card_data else None,
        )

    def look(self, repo: str, listing: Listing, name: str) -> Remote:
        """One file of it. Raises WeightsError."""
        found = self._persist(
            repo,
            lambda: huggingface_hub.get_hf_file_metadata(
                self._url(repo, listing.revision, name), token=self._token, timeout=TIMEOUT_S
            ),
        )
        if found.etag is None:
            raise _no_hub(self._fetch, f"it names no ETag for {name}")
        size_bytes = found.size
        if size_bytes is None and listing.tells_of(name, found.etag):
            size_bytes = listing.sizes_bytes[name]
        return Remote(etag=found.etag, size_bytes=size_bytes)

    def get(self, repo: str, revision: str, name: str, size_bytes: int | None, to: Path) -> None:
        """Fetch a file, or what is missing of it. Each retry goes on where the last was cut. Raises WeightsError."""
        failures = 0
        while True:
            before = to.stat().st_size
            try:
                self._mapped(repo, lambda: self._stream(repo, revision, name, size_bytes, to))
            except WeightsError as error:
                failures = 0 if to.stat().st_size > before else failures + 1
                if not error.passing or failures > len(WAITS):
                    raise
                time.sleep(WAITS[max(0, failures - 1)] * self._fetch.wait_s)
            else:
                return

    def get_large(self, repo: str, revision: str, name: str) -> None:
        """Fetch a file that is too large for one HTTP answer, by the library's own means. Raises WeightsError."""
        self._mapped(
            repo,
            lambda: huggingface_hub.hf_hub_download(
                repo,
                name,
                revision=revision,
                cache_dir=self._fetch.cache_dir,
                endpoint=self._fetch.endpoint,
                token=self._token,
            ),
        )

    def _persist(self, repo: str, ask: Callable[[], T]) -> T:
        """Ask, and ask again while the trouble may pass. Raises WeightsError."""
        for wait in WAITS:
            try:
                return self._mapped(repo, ask)
            except WeightsError as error:
                if not error.passing:
                    raise
            time.sleep(wait * self._fetch.wait_s)
        return self._mapped(repo, ask)

    def _stream(
        self, repo: str, revision: str, name: str, size_bytes: int | None, to: Path
    ) -> None:
        with to.open("r+b") as file:
            have = file.seek(0, os.SEEK_END)
            if size_bytes is not None and have > size_bytes:
                have = file.seek(0)
                file.truncate()
            try:
                http_get(
                    # Not where it was redirected to: such addresses are signed, and run out.
                    self._url(repo, revision, name),
                    file,
                    resume_size=have,
                    headers={
                        **self._headers,
                        # Compressed, its length and its ranges would be others.
                        "accept-encoding": "identity",
                    },
                    expected_size=size_bytes,
                )
            finally:
                file.flush()
            os.fsync(file.fileno())

    def _url(self, repo: str, revision: str, name: str) -> str:
        return huggingface_hub.hf_hub_url(
            repo, name, revision=revision, endpoint=self._fetch.endpoint
        )

    def _build_client(self) -> httpx2.Client:
        return httpx2.Client(
            event_hooks={"request": [self._guard]}, follow_redirects=True, timeout=TIMEOUT_S
        )

    def _guard(self, request: httpx2.Request) -> None:
        """The library trusts a few hosts beside the endpoint with its token. We trust none."""
        url, own = request.url, self._origin
        if (url.scheme, url.host, url.port) != (own.scheme, own.host, own.port):
            request.headers.pop("authorization", None)

    def _mapped(self, repo: str, ask: Callable[[], T]) -> T:
        """What the library raises, as ours. A test holds its errors to this."""
        try:
            return ask()
        except errors.HfHubHTTPError as error:
            raise explain_status(error, self._fetch, repo) from None
        except httpx2.HTTPError as error:
            raise _unreachable(self._fetch, _reason(error)) from None
        except errors.HFValidationError:
            raise WeightsError(
                "invalid_spec", f"'{repo}' is no name of a repository", "Write `org/name`."
            ) from None
        except errors.FileMetadataError as error:
            raise _no_hub(self._fetch, _reason(error)) from None
        except OSError as error:
            raise explain_os(error) from None
        except (ValueError, TypeError, KeyError) as error:
            raise _no_hub(self._fetch, _reason(error)) from None


def explain_status(error: errors.HfHubHTTPError, fetch: Fetch, repo: str) -> WeightsError:
    """What an answer that is no success means."""
    status, where = error.response.status_code, f"{fetch.endpoint}/{repo}"
    if status >= 500 or status in _PASSING_STATUS:
        return _unreachable(fetch, f"it answers with status {status}")
    if status == 416:
        return WeightsError(
            "corrupt_weights",
            "a file ends before what there is of it here",
            "Try again later, or another source.",
        )
    if isinstance(error, errors.GatedRepoError):
        return _refused(
            f"the repository {repo} is gated: its owner decides who may have it",
            f"Ask for access at {where}, then {_set_token(fetch)}.",
        )
    if isinstance(error, errors.RevisionNotFoundError | errors.RemoteEntryNotFoundError):
        return _refused(
            f"{where} has no {fetch.revision}, or not the file that it lists", "Check the id."
        )
    if status in (401, 403):
        given = "does not take the token that it is sent" if fetch.token else "wants a token"
        return _refused(
            f"{fetch.endpoint} {given} (status {status}): the repository {repo} is private, or there is none",
            f"Check the id, then {_set_token(fetch)}.",
        )
    if status == 404:
        return _refused(
            f"{fetch.endpoint} has no repository {repo}, or it is private",
            f"Check the id; for a private one, {_set_token(fetch)}.",
        )
    return _refused(f"{fetch.endpoint} answers with status {status}", "Check the source.")


def explain_os(error: OSError) -> WeightsError:
    """What the disk, or the length of a file, has against it."""
    if error.errno in _FULL:
        return WeightsError(
            "insufficient_disk",
            f"the disk is full ({error.strerror})",
            "Make room on it: POST /weights/remove removes a model's files.",
        )
    if error.errno is None:  # the library's own check
        return WeightsError(
            "corrupt_weights",
            "a file has not the length that the source tells of",
            "Try again later, or another source.",
        )
    return _refused(
        f"the cache cannot be written: {error.strerror}",
        "Let the user that the daemon runs as write to the source's `cache_dir`.",
    )


def _refused(reason: str, suggestion: str) -> WeightsError:
    return WeightsError("repo_fetch_failed", reason, suggestion)


def _unreachable(fetch: Fetch, reason: str) -> WeightsError:
    return WeightsError(
        "repo_fetch_failed",
        f"the source {fetch.endpoint} cannot be reached: {reason}",
        "Check the network of this machine, or put the model's files on it.",
        passing=True,
    )


def _no_hub(fetch: Fetch, reason: str) -> WeightsError:
    return _refused(
        f"{fetch.endpoint} does not answer as the Hugging Face Hub does: {reason}",
        "Check the `endpoint` of the source.",
    )


def _set_token(fetch: Fetch) -> str:
    if fetch.auth_env is None:
        return "name the variable that its token is in by `auth_env` of the source"
    return f"set {fetch.auth_env} to a token that may read it, and start the daemon again"


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300] or type(error).__name__
