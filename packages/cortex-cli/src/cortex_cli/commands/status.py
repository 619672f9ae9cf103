# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex status`: nodes, devices and models, as the gateway knows them."""

import asyncio
import contextlib

import click
import msgspec
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cortex_cli.asking import ask, endpoint_option
from cortex_cli.client import Gateway, open_gateway
from cortex_cli.render import render_fleet
from cortex_core.errors import CortexError
from cortex_core.http.client import RefusedError

WATCH_S = 1.0


@click.command("status")
@endpoint_option
@click.option("--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl-C.")
def command(endpoint: str, as_json: bool, watch: bool) -> None:
    """Show the nodes of the fleet, their devices, and which models are where."""
    if as_json and watch:
        raise click.UsageError("--json and --watch do not go together.")
    with contextlib.suppress(KeyboardInterrupt):  # how one leaves --watch
        if watch:
            asyncio.run(_watch(endpoint))
        else:
            _show(endpoint, as_json=as_json)


def _show(endpoint: str, *, as_json: bool) -> None:
    raw = ask(endpoint, lambda gateway: gateway.fleet_raw())
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        Console().print(render_fleet(ask(endpoint, lambda gateway: gateway.fleet())))


async def _watch(endpoint: str) -> None:
    async with open_gateway(endpoint) as gateway:
        with Live(await _look(gateway), auto_refresh=False) as live:
            while True:
                live.update(await _look(gateway), refresh=True)
                await asyncio.sleep(WATCH_S)


async def _look(gateway: Gateway) -> RenderableType:
    """The fleet, or why it cannot be seen now: a gateway that restarts comes back."""
    try:
        return render_fleet(await gateway.fleet())
    except (CortexError, RefusedError) as error:
        return Text(error.message, style="red")
