# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that ask a running gateway have in common: where it is, whose key it wants, and what is said where nobody answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from cortex_cli.client import Gateway, open_gateway
from cortex_core.errors import RouteNotFoundError, UpstreamConnectionError
from cortex_core.http.client import RefusedError
from cortex_core.wire import GATEWAY_PORT

T = TypeVar("T")

F = Callable[..., Any]

_UNAUTHORIZED, _NOT_FOUND = 401, 404


def gateway_options(function: F) -> F:
    """`--endpoint`, checked, and `--key`."""
    endpoint = click.option(
        "--endpoint",
        default=f"http://127.0.0.1:{GATEWAY_PORT}",
        envvar="CORTEX_ENDPOINT",
        show_default=True,
        show_envvar=True,
        callback=lambda _context, _parameter, value: check_endpoint(value),
        help="Where the gateway is.",
    )
    key = click.option(
        "--key",
        envvar="CORTEX_KEY",
        show_envvar=True,
        help="The operators' key, where the gateway has one. The variable keeps it out of lists of processes.",
    )
    return endpoint(key(function))


def check_endpoint(endpoint: str) -> str:
    """An endpoint as typed. Raises click.BadParameter where it is none."""
    if not endpoint.startswith(("http://", "https://", "unix:/")):
        raise click.BadParameter(
            f"'{endpoint}' is no endpoint, such as http://127.0.0.1:{GATEWAY_PORT}."
        )
    return endpoint


def ask(endpoint: str, key: str | None, question: Callable[[Gateway], Awaitable[T]]) -> T:
    """Ask a gateway, from outside of any event loop.

    Raises:
        click.ClickException: nobody answers there, or refuses.
        CortexError: as `Client.ask`.
    """
    return asyncio.run(_ask(endpoint, key, question))


async def _ask(endpoint: str, key: str | None, question: Callable[[Gateway], Awaitable[T]]) -> T:
    async with open_gateway(endpoint, key) as gateway:
        try:
            return await question(gateway)
        except UpstreamConnectionError as error:
            raise click.ClickException(
                f"No gateway answers at {endpoint}. `cortex serve` starts one; --endpoint says where another is. ({error})"
            ) from None
        except RefusedError as refused:
            raise click.ClickException(explain_refusal(refused, endpoint, key)) from None


def explain_refusal(refused: RefusedError, endpoint: str, key: str | None) -> str:
    """What to do about it, else the words of who refuses."""
    if refused.status == _UNAUTHORIZED:
        what = (
            "takes no orders without the operators' key"
            if key is None
            else "does not know this key"
        )
        return (
            f"The gateway at {endpoint} {what}. It is `[fleet] key` in its cortex.toml; "
            "give it by the variable CORTEX_KEY, or by --key."
        )
    if refused.status == _NOT_FOUND and refused.code in (None, RouteNotFoundError.code):
        return f"What answers at {endpoint} is no gateway's API; --endpoint says where that is. ({refused.message})"
    return refused.message
