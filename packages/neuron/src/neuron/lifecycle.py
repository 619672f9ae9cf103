# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of one model: which event leads from which status to which. Pure."""

from enum import StrEnum

from cortex_core.node import ModelStatus


class Event(StrEnum):
    """What happens to a model.

    load: somebody wants it. refused: it cannot be loaded, told before an engine was started. ready: its engine
    serves. failed: its engine did not come up, or is gone for good. lost: its engine is gone and is started
    again. slept, woken: its weights went to host memory; somebody wants them back. unload: it is to go.
    kept: it was to go or to sleep, and its work did not end in time. gone: its engine has ended.
    """

    LOAD = "load"
    REFUSED = "refused"
    READY = "ready"
    FAILED = "failed"
    LOST = "lost"
    SLEPT = "slept"
    WOKEN = "woken"
    UNLOAD = "unload"
    KEPT = "kept"
    GONE = "gone"


class IllegalMoveError(Exception):
    """An event that cannot happen in this status: a fault of ours."""


_S, _E = ModelStatus, Event

# None is absent: not resident.
MOVES: dict[tuple[ModelStatus | None, Event], ModelStatus | None] = {
    (None, _E.LOAD): _S.LOADING,
    (_S.FAILED, _E.LOAD): _S.LOADING,
    (_S.LOADING, _E.REFUSED): None,
    (_S.LOADING, _E.READY): _S.LOADED,
    (_S.LOADING, _E.FAILED): _S.FAILED,
    (_S.LOADING, _E.LOST): _S.RECOVERING,
    (_S.LOADING, _E.UNLOAD): _S.UNLOADING,
    (_S.LOADED, _E.FAILED): _S.FAILED,
    (_S.LOADED, _E.LOST): _S.RECOVERING,
    (_S.LOADED, _E.SLEPT): _S.SLEEPING,
    (_S.LOADED, _E.UNLOAD): _S.UNLOADING,
    (_S.SLEEPING, _E.WOKEN): _S.LOADING,
    (_S.SLEEPING, _E.KEPT): _S.LOADED,
    (_S.SLEEPING, _E.LOST): _S.RECOVERING,
    (_S.SLEEPING, _E.FAILED): _S.FAILED,
    (_S.SLEEPING, _E.UNLOAD): _S.UNLOADING,
    (_S.RECOVERING, _E.READY): _S.LOADED,
    (_S.RECOVERING, _E.LOST): _S.RECOVERING,
    (_S.RECOVERING, _E.FAILED): _S.FAILED,
    (_S.RECOVERING, _E.UNLOAD): _S.UNLOADING,
    (_S.FAILED, _E.UNLOAD): _S.UNLOADING,
    (_S.UNLOADING, _E.KEPT): _S.LOADED,
    (_S.UNLOADING, _E.GONE): None,
}


def next_status(status: ModelStatus | None, event: Event) -> ModelStatus | None:
    """The status after an event; None: not resident.

    Raises:
        IllegalMoveError: the table has no such move.
    """
    try:
        return MOVES[status, event]
    except KeyError:
        raise IllegalMoveError(f"{event} while {status or 'absent'}") from None
