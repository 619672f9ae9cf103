# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands that order a running gateway to do something with a model or a node; each is a module of its own in `commands`."""

from typing import Any

import click
import msgspec
from rich.console import Console

from cortex_cli.asking import ask, gateway_options
from cortex_cli.render import render_done
from cortex_cli.view import DoneAnswer


def model_command(verb: str, says: str, node_says: str) -> click.Command:
    """`cortex VERB MODEL [--node NODE]`.

    Args:
        verb: of the gateway's route, and the command's name.
        says: what it does.
        node_says: what `--node` is for.
    """

    @click.command(verb, help=says)
    @click.argument("model")
    @click.option("--node", help=node_says)
    @gateway_options
    @click.option(
        "--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts."
    )
    def command(
        model: str, node: str | None, endpoint: str, key: str | None, as_json: bool
    ) -> None:
        body = {"model_id": model} | ({"node": node} if node else {})
        _order(endpoint, key, f"/fleet/models/{verb}", body, as_json=as_json)

    return command


def node_command(verb: str, says: str) -> click.Command:
    """`cortex VERB NODE`."""

    @click.command(verb, help=says)
    @click.argument("node")
    @gateway_options
    @click.option(
        "--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts."
    )
    def command(node: str, endpoint: str, key: str | None, as_json: bool) -> None:
        _order(endpoint, key, f"/fleet/nodes/{verb}", {"node": node}, as_json=as_json)

    return command


def _order(
    endpoint: str, key: str | None, path: str, body: dict[str, Any], *, as_json: bool
) -> None:
    console = Console(stderr=True)
    with console.status("Waiting for the gateway…"):
        raw = ask(endpoint, key, lambda gateway: gateway.order_raw(path, body))
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        Console().print(render_done(msgspec.json.decode(raw, type=DoneAnswer)))
