# SPDX-License-Identifier: GPL-3.0-or-later
"""The `neuron` command. Exit codes: 0 it went well; 2 wrong usage or a wrong config."""

from pathlib import Path

import click
import msgspec

from cortex_core import logs
from cortex_core.build import version_of
from cortex_core.config import read_config
from cortex_core.errors import OperatorError
from cortex_core.http import server
from neuron import app
from neuron.config import Config

DEFAULT = Path("/etc/neuron/neuron.toml")
PREFIX = "NEURON_"


class _WrongError(click.ClickException):
    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version_of("helexa-neuron"), prog_name="neuron")
def main() -> None:
    """Engines on one GPU machine, behind one HTTP API."""


@main.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help=f"The configuration file.  [default: {DEFAULT}]",
)
@click.option("--listen", help="The address to listen on, instead of the configured one.")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="The port, instead of the configured one."
)
def serve(config: Path | None, listen: str | None, port: int | None) -> None:
    """Run the daemon, until SIGTERM or Ctrl-C.

    Environment variables NEURON_… override the file, nested by __: NEURON_PORT, NEURON_HARNESS__VLLM__PYTHON.
    Without --config and without the default file it starts with defaults and the environment, and says so.
    """
    logs.setup()
    try:
        settings = read_settings(config, listen, port)
        logs.setup(level=settings.log_level)
        server.run(lambda: app.run(settings))
    except OperatorError as error:
        raise _WrongError(error.message) from None


def read_settings(config: Path | None, listen: str | None, port: int | None) -> Config:
    """File, then environment, then options; each overrides what came before.

    Raises:
        OperatorError: one of them is wrong.
    """
    path = config or DEFAULT
    if config is None and not path.exists():
        click.echo(f"There is no {path}: starting with defaults and the environment.", err=True)
        settings = read_config(Config, None, prefix=PREFIX)
    else:
        settings = read_config(Config, path, prefix=PREFIX)
    given = {"listen": listen, "port": port}
    return msgspec.structs.replace(settings, **{k: v for k, v in given.items() if v is not None})
