# SPDX-License-Identifier: GPL-3.0-or-later
"""What is the matter with a node that cannot be used? Pure."""

from typing import Literal

import msgspec

from cortex_core.errors import UpstreamProtocolError

_REFUSED = (401, 403)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a node cannot be used.

    Attributes:
        kind: `silent`, nothing answers, or only now and then; else something does, and waiting alone will not help:
            `secret`, it wants another secret; `stranger`, it is no neuron; `twin`, another node is the same neuron.
        text: for people.
    """

    kind: Literal["silent", "secret", "stranger", "twin"]
    text: str

    @property
    def is_told(self) -> bool:
        """Whether something answers there, and says or shows by that what is wrong."""
        return self.kind != "silent"


def read_problem(error: Exception, status: int | None, *, has_secret: bool) -> Problem:
    """What a failed GET /models tells.

    Args:
        error: what it failed with.
        status: of the answer; None: there was none.
        has_secret: whether one is configured for the node.
    """
    if status in _REFUSED:
        text = (
            "it refuses our secret" if has_secret else "it wants a secret, and none is configured"
        )
        return Problem(kind="secret", text=text)
    if status is not None and status < 500:
        text = f"no neuron answers there: GET /models is {status}"
        return Problem(kind="stranger", text=text)
    if isinstance(error, UpstreamProtocolError):
        reason = error.facts.get("reason")
        return Problem(kind="stranger", text=f"no neuron answers there: {reason}")
    return Problem(kind="silent", text=str(error))


def name_twin(other: str) -> Problem:
    """Two nodes are one neuron: the one that is configured first counts."""
    return Problem(kind="twin", text=f"it is the neuron that '{other}' names already")
