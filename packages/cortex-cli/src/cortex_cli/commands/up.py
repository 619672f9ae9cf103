# SPDX-License-Identifier: GPL-3.0-or-later
"""`cortex up`: gateway and neuron with a small model on this machine, to try it out."""

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console

from cortex_cli import installed
from cortex_cli.trial.bringup import bring_up
from cortex_cli.trial.daemons import Daemon, check_free, follow, open_daemon
from cortex_cli.trial.plan import MODELS, Trial
from cortex_cli.trial.screen import Screen
from cortex_core.errors import CortexError, OperatorError
from cortex_core.wire import GATEWAY_PORT, METRICS_PORT, NEURON_PORT

NEEDS = {
    "cortex_gateway": "helexa-cortex-gateway",
    "neuron": "helexa-neuron",
    "vllm": "helexa-neuron[cpu]",
}
_PORT = click.IntRange(1, 65535)


@click.command("up")
@click.option(
    "--harness",
    type=click.Choice(list(MODELS)),
    default="vllm",
    show_default=True,
    help="echo is no model: it answers from the prompt, without any engine.",
)
@click.option(
    "--port-gateway",
    type=_PORT,
    default=GATEWAY_PORT,
    show_default=True,
    help="The gateway's port.",
)
@click.option(
    "--port-metrics", type=_PORT, default=METRICS_PORT, show_default=True, help="Its metrics' port."
)
@click.option(
    "--port-neuron", type=_PORT, default=NEURON_PORT, show_default=True, help="The neuron's port."
)
@click.option("--once", is_flag=True, help="Stop after the first token, with exit code 0.")
@click.option("--verbose", is_flag=True, help="Show the daemons' logs.")
def command(
    harness: str, port_gateway: int, port_metrics: int, port_neuron: int, once: bool, verbose: bool
) -> None:
    """Start a neuron with a small model on the CPU, and a gateway; wait for a token through both.

    Everything listens on 127.0.0.1 alone. Ctrl-C ends it all, and leaves nothing behind.
    """
    trial = Trial(
        harness=harness,
        gateway_port=port_gateway,
        metrics_port=port_metrics,
        neuron_port=port_neuron,
    )
    _check_installed(harness)
    check_free(trial.addresses)
    screen = Screen(Console())
    with tempfile.TemporaryDirectory(prefix="cortex-up-") as folder:
        asyncio.run(_run(trial, Path(folder), screen, once=once, verbose=verbose))
    screen.say("Everything has ended.")


def _check_installed(harness: str) -> None:
    for module, distribution in NEEDS.items():
        if not installed.has(module) and not (module == "vllm" and harness == "echo"):
            raise OperatorError(
                message=f"This needs {distribution}, which is not installed. In a checkout, `tools/nox -s up` installs "
                "everything. Without an engine: `cortex up --harness echo`, which is no model."
            )


async def _run(trial: Trial, folder: Path, screen: Screen, *, once: bool, verbose: bool) -> None:
    """Bring it up, wait to be told to stop, and end it; also when it fails on the way."""
    for name, text in trial.files(str(folder)).items():
        (folder / name).write_text(text)
    stop = _stop_on_signals()
    async with (
        open_daemon("neuron", "neuron", folder / "neuron.toml") as neuron,
        open_daemon("gateway", "cortex_cli", folder / "cortex.toml") as gateway,
    ):
        try:
            await _try_out(trial, [neuron, gateway], screen, stop, once=once, verbose=verbose)
        finally:
            screen.say("Ending gateway and neuron …")


async def _try_out(
    trial: Trial,
    daemons: list[Daemon],
    screen: Screen,
    stop: asyncio.Event,
    *,
    once: bool,
    verbose: bool,
) -> None:
    """Until a signal comes, or the first token with `once`; raises what failed."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_stopped(stop))
            for daemon in daemons:
                tasks.create_task(daemon.watch())
                if verbose:
                    tasks.create_task(follow(daemon))
            with screen.shown():
                await bring_up(trial, screen)
            _tell(trial, screen)
            if once:
                stop.set()
            await asyncio.Event().wait()
    except* _StoppedError:
        pass
    except* (click.ClickException, CortexError) as errors:
        raise _first(errors) from None


class _StoppedError(Exception):
    """Somebody asked for the end."""


async def _stopped(stop: asyncio.Event) -> None:
    await stop.wait()
    raise _StoppedError


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def _stop_on_signals() -> asyncio.Event:
    """An event that Ctrl-C, SIGTERM and a closed terminal set. Ending is bounded, so a second one changes nothing."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _tell(trial: Trial, screen: Screen) -> None:
    screen.say(
        f"\nA token came through both. Gateway {trial.gateway}, metrics {trial.metrics}, neuron {trial.neuron}"
    )
    if trial.harness == "echo":
        screen.say("The harness is echo, which is no model: it answers from the prompt.")
    screen.say("\nTry, in another terminal:\n")
    for line in trial.lines_to_try(_own_command()):
        screen.say(f"{line}\n")
    screen.say("Ctrl-C ends everything.")


def _own_command() -> str:
    """How this program is called from here: `.venv/bin/cortex` in a checkout."""
    path = Path(sys.executable).with_name("cortex")
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
