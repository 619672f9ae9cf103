# SPDX-License-Identifier: GPL-3.0-or-later
"""Why a model's files cannot be had. Pure."""

from cortex_core.errors import LoadRefusedError

# Of a source that does not answer: about how long a router takes to come back.
RETRY_AFTER_S = 30.0


class WeightsError(Exception):
    """A model's files cannot be had.

    Attributes:
        kind: as in LoadRefusedError.
        suggestion: what to do about it.
        passing: whether it may go away by itself: the source does not answer. All else stays until somebody acts.
    """

    def __init__(self, kind: str, reason: str, suggestion: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.kind = kind
        self.suggestion = suggestion
        self.passing = passing

    def refuse(self, model: str) -> LoadRefusedError:
        """The error for who asked for the model. It has a time to retry after only where that makes sense."""
        return LoadRefusedError(
            model=model,
            load_kind=self.kind,
            reason=str(self).rstrip("."),
            suggestion=self.suggestion,
            retry_after_s=RETRY_AFTER_S if self.passing else None,
        )


def is_passing(error: Exception) -> bool:
    """Whether a load failed only because a source did not answer."""
    return isinstance(error, LoadRefusedError) and error.retry_after_s is not None
