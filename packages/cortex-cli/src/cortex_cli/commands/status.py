# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex status`: nodes, devices and models, as the gateway knows them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from cortex_cli.asking import ask, explain_refusal, gateway_options
from cortex_cli.client import Gateway, open_gateway, read_fleet
from cortex_cli.render import render_fleet
from cortex_core.errors import CortexError
from cortex_core.http.client import RefusedError

WATCH_S = 1.0


@click.command("status")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl-C.")
def command(endpoint: str, key: str | None, as_json: bool, watch: bool) -> None:
    """Show the nodes of the fleet, their devices, which models are where, and which requests run."""
    if as_json and watch:
        raise click.UsageError("--json and --watch do not go together.")
    with contextlib.suppress(KeyboardInterrupt):  # how one leaves --watch
        if watch:
            asyncio.run(_watch(endpoint, key))
        else:
            _show(endpoint, key, as_json=as_json)


def _show(endpoint: str, key: str | None, *, as_json: bool) -> None:
    raw = ask(endpoint, key, lambda gateway: gateway.fleet_raw())
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        Console().print(render_fleet(read_fleet(raw, endpoint)))


async def _watch(endpoint: str, key: str | None) -> None:
    console = Console()
    async with open_gateway(endpoint, key) as gateway:
        if not console.is_terminal:
            await _print_on(console, lambda: _look(gateway, endpoint, key))
        first = await _look(gateway, endpoint, key)
        # It takes the whole terminal, so that a fleet taller than that does not scroll away.
        with Live(first, console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(await _look(gateway, endpoint, key), refresh=True)
                await asyncio.sleep(WATCH_S)


async def _print_on(console: Console, look: Callable[[], Awaitable[RenderableType]]) -> NoReturn:
    """One fleet after the other, for a pipe or a file."""
    while True:
        console.print(await look(), "")
        await asyncio.sleep(WATCH_S)


async def _look(gateway: Gateway, endpoint: str, key: str | None) -> RenderableType:
    """The fleet, or why it cannot be seen now: a gateway that restarts comes back."""
    try:
        seen = render_fleet(read_fleet(await gateway.fleet_raw(), endpoint))
    except RefusedError as refused:
        seen = Text(explain_refusal(refused, endpoint, key), style="red")
    except CortexError as error:
        seen = Text(error.message, style="red")
    return Group(
        seen, Text(), Text(f"{endpoint}, every {WATCH_S:g} s. Ctrl-C ends this.", style="dim")
    )
