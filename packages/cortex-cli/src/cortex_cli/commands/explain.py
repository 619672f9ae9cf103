# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex explain`: why did a request go where it went?"""

import click
import msgspec
from rich.console import Console

from cortex_cli.asking import ask, gateway_options
from cortex_cli.render import render_story
from cortex_cli.view import Story


@click.command("explain")
@click.argument("request_id")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts.")
def command(request_id: str, endpoint: str, key: str | None, as_json: bool) -> None:
    """Tell what became of a request, step by step: what was decided, why, and which nodes were considered.

    REQUEST_ID is in the answer's header x-request-id, and in the gateway's log. The last 1000 requests are kept.
    """
    raw = ask(endpoint, key, lambda gateway: gateway.request_raw(request_id))
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        Console().print(render_story(msgspec.json.decode(raw, type=Story)))
