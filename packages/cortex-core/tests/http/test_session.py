# SPDX-License-Identifier: GPL-3.0-or-later
"""aiohttp's exceptions, each as one of ours."""

import aiohttp
import pytest

from cortex_core.errors import FleetError, UpstreamConnectionError
from cortex_core.http.session import Session


def _kinds(root: type[BaseException]) -> list[type[BaseException]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


@pytest.mark.parametrize("kind", _kinds(aiohttp.ClientError), ids=lambda kind: kind.__name__)
def test_every_exception_of_aiohttp_becomes_one_of_ours(kind: type[BaseException]) -> None:
    session = Session("http://127.0.0.1:1", [])
    error = kind.__new__(kind)
    error.args = ("x",)
    if isinstance(error, OSError | aiohttp.ClientResponseError | aiohttp.InvalidURL):
        error = _Plain(kind)
    with pytest.raises(FleetError), session.mapped(1):
        raise error


def _Plain(kind: type[BaseException]) -> BaseException:  # noqa: N802 - makes a class
    """An exception of this kind whose text needs none of the arguments of its constructor."""
    plain = type(
        kind.__name__, (kind,), {"__init__": lambda self: None, "__str__": lambda self: "x"}
    )
    made: BaseException = plain()
    return made


def test_a_connection_that_does_not_come_about_is_no_silence() -> None:
    session = Session("http://127.0.0.1:1", [])
    with (
        pytest.raises(UpstreamConnectionError, match="no connection within 5 s"),
        session.mapped(1),
    ):
        raise aiohttp.ConnectionTimeoutError
