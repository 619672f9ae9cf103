# SPDX-License-Identifier: GPL-3.0-or-later
"""The `cortex` group: which commands there are, and what their ends mean.

Exit codes: 0 it went well; 1 something is not reachable, or failed; 2 wrong usage or a wrong config.

To add a command: a module in `cortex_cli.commands` with a click command named `command`, one line in COMMANDS.
Each is imported when it is used, so that one command's needs are never another's.
"""

import importlib

import click

from cortex_core.build import version_of
from cortex_core.errors import CortexError, OperatorError
from cortex_core.http.client import RefusedError

# What `cortex --help` says of each stands here too: asking the module would import them all.
COMMANDS = {
    "serve": "Run the gateway.",
    "status": "Show nodes, devices and models of a running gateway.",
    "load": "Have a model loaded or woken.",
    "unload": "Take a model down.",
    "sleep": "Put a model to sleep.",
    "wake": "Have a sleeping model serve again.",
    "pin": "Keep a model from being evicted.",
    "unpin": "Let a pinned model be evicted again.",
    "drain": "Send a node nothing new.",
    "undrain": "Use a drained node again.",
    "explain": "Tell why a request went where it went.",
    "plan": "Show where a model would come up, and who would make room.",
    "check": "Check a configuration file.",
    "up": "Try it out: gateway and neuron with a small model, on this machine.",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"cortex_cli.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            raise _WrongError(error.message) from None
        except (CortexError, RefusedError) as error:
            raise click.ClickException(error.message) from None


class _WrongError(click.ClickException):
    exit_code = 2


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version_of("helexa-cortex-cli"), prog_name="cortex")
def main() -> None:
    """Many GPU machines as one OpenAI and Anthropic API.

    Exit codes: 0 it went well; 1 something is not reachable, or failed; 2 wrong usage or a wrong config.
    """
