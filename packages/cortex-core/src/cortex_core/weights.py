# SPDX-License-Identifier: GPL-3.0-or-later
"""What a neuron says of models' files on its disk, and what is asked of it there: the routes /weights. Pure."""

import msgspec

from cortex_core.node import Limits, Progress

# The phase of a load whose files are on their way.
DOWNLOADING = "downloading"


class DownloadProgress(Progress, frozen=True, kw_only=True):
    """How far a download is.

    Attributes:
        done_bytes: of the model's files, here already.
        total_bytes: of all of them; 0: not known yet.
    """

    phase: str = DOWNLOADING
    done_bytes: int = 0
    total_bytes: int = 0


class WeightsState(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one model.

    Attributes:
        id: `scheme:org/name`; bare where they are in a directory of the operator's, or shipped.
        scheme: its source; None: none, they are not the daemon's to fetch or remove.
        revision: the commit; None: none is whole, or there are no commits.
        size_mb: of all that is on disk of it, parts included.
        last_used: Unix seconds of its last load, or of its newest file; None: not kept.
        complete: whether it can be loaded as it is.
        in_use: whether it is loaded, coming up, or being fetched.
        pinned: whether it is a default model, which is never evicted.
        quants: GGUF quants on disk.
        progress: of its download; None: there is none under way.
        last_error: why its last download failed, or removal; None: it did not.
        capabilities, limits: as in ModelState, by what its files say; a load may set tighter limits.
    """

    id: str
    scheme: str | None = None
    revision: str | None = None
    size_mb: int = 0
    last_used: int | None = None
    complete: bool = False
    in_use: bool = False
    pinned: bool = False
    quants: list[str] = []
    progress: DownloadProgress | None = None
    last_error: str | None = None
    capabilities: list[str] = []
    limits: Limits = Limits()


class WeightsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of GET /weights.

    Attributes:
        used_mb: of the sources' caches.
        budget_mb: that they may have; None: there is no budget.
        free_mb: of the disk that the default source's cache is on.
    """

    weights: list[WeightsState] = []
    used_mb: int = 0
    budget_mb: int | None = None
    free_mb: int | None = None


class PullRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /weights/pull. `wait=False`: answer 202 at once, and go on. `quant` as in ModelSpec."""

    model_id: str
    quant: str | None = None
    wait: bool = True


class PullAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of pull: `status` is `downloaded` or `downloading`; `already`: nothing had to be fetched."""

    status: str
    model_id: str
    already: bool = False
    progress: DownloadProgress | None = None


class RemoveRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /weights/remove."""

    model_id: str


class RemoveAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer of remove; `already`: there was nothing. `freed_mb` is what its files took."""

    status: str
    model_id: str
    already: bool = False
    freed_mb: int = 0
