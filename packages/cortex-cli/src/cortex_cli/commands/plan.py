# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex plan`: what would a request for a model lead to?"""

import click
import msgspec
from rich.console import Console

from cortex_cli.asking import ask, gateway_options
from cortex_cli.render import render_plan
from cortex_cli.view import FleetPlan


@click.command("plan")
@click.argument("model")
@gateway_options
@click.option("--json", "as_json", is_flag=True, help="The gateway's whole answer, for scripts.")
@click.pass_context
def command(
    context: click.Context, model: str, endpoint: str, key: str | None, as_json: bool
) -> None:
    """Show where a model would come up, what it needs there, and who would make room. Nothing is done.

    Exit code 1 where it could be served nowhere now.
    """
    raw = ask(endpoint, key, lambda gateway: gateway.order_raw("/fleet/plan", {"model_id": model}))
    plan = msgspec.json.decode(raw, type=FleetPlan)
    if as_json:
        click.echo(msgspec.json.format(raw, indent=2))
    else:
        Console().print(render_plan(plan))
    if plan.chosen is None:
        context.exit(1)
