# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands that ask a running gateway have in common: where it is, and what is said where nobody answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from cortex_cli.client import Gateway, open_gateway
from cortex_core.errors import UpstreamConnectionError
from cortex_core.wire import GATEWAY_PORT

T = TypeVar("T")

F = Callable[..., Any]


def endpoint_option(function: F) -> F:
    """`--endpoint`, checked."""
    return click.option(
        "--endpoint",
        default=f"http://127.0.0.1:{GATEWAY_PORT}",
        show_default=True,
        callback=lambda _context, _parameter, value: check_endpoint(value),
        help="Where the gateway is.",
    )(function)


def check_endpoint(endpoint: str) -> str:
    """An endpoint as typed. Raises click.BadParameter where it is none."""
    if not endpoint.startswith(("http://", "https://", "unix:/")):
        raise click.BadParameter(
            f"'{endpoint}' is no endpoint, such as http://127.0.0.1:{GATEWAY_PORT}."
        )
    return endpoint


def ask(endpoint: str, question: Callable[[Gateway], Awaitable[T]]) -> T:
    """Ask a gateway, from outside of any event loop.

    Raises:
        click.ClickException: nobody answers there.
        RefusedError, CortexError: as `Client.ask`.
    """
    return asyncio.run(_ask(endpoint, question))


async def _ask(endpoint: str, question: Callable[[Gateway], Awaitable[T]]) -> T:
    async with open_gateway(endpoint) as gateway:
        try:
            return await question(gateway)
        except UpstreamConnectionError as error:
            raise click.ClickException(
                f"No gateway answers at {endpoint}. `cortex serve` starts one; --endpoint says where another is. ({error})"
            ) from None
