# SPDX-License-Identifier: GPL-3.0-or-later
"""How far are the default models? The one owner of that; it is told, and asked. Pure."""

from cortex_core.node import Activation, FailedModel


class Activating:
    """The default models, each tried in order; again where its source does not answer."""

    def __init__(self, model_ids: list[str]) -> None:
        self._pending = list(model_ids)
        self._in_progress: list[str] = []
        self._completed: list[str] = []
        self._failed: list[FailedModel] = []

    def note_begun(self, model_id: str) -> None:
        """Its load begins."""
        self._pending.remove(model_id)
        self._in_progress.append(model_id)

    def note_deferred(self, model_id: str) -> None:
        """It is tried again later."""
        self._in_progress.remove(model_id)
        self._pending.append(model_id)

    def note_completed(self, model_id: str) -> None:
        """It serves."""
        self._in_progress.remove(model_id)
        self._completed.append(model_id)

    def note_failed(self, model_id: str, error: str) -> None:
        """It did not come up."""
        self._in_progress.remove(model_id)
        self._failed.append(FailedModel(model_id=model_id, error=error))

    def state(self) -> Activation:
        """For GET /health."""
        return Activation(
            state="pre_warming" if self._pending or self._in_progress else "ready",
            pending=list(self._pending),
            in_progress=list(self._in_progress),
            completed=list(self._completed),
            failed=list(self._failed),
        )
