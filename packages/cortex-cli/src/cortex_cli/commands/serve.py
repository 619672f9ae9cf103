# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex serve`: run the gateway."""

from pathlib import Path

import click

from cortex_cli import installed

DEFAULT = Path("/etc/cortex/cortex.toml")


@click.command("serve")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"The configuration file.  [default: {DEFAULT}]",
)
def command(config: Path | None) -> None:
    """Run the gateway, until SIGTERM or Ctrl-C.

    Without --config and without the default file it starts with defaults and the environment, and says so.
    """
    serve = installed.load("cortex_gateway.serve", "main", "helexa-cortex-gateway")
    if config is None and not DEFAULT.exists():
        click.echo(f"There is no {DEFAULT}: starting with defaults and the environment.", err=True)
        serve(None)
    else:
        serve(config or DEFAULT)
