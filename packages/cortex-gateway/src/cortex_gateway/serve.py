# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway as a daemon: read, bind, look, serve, drain. `cortex serve` calls `main`."""

import asyncio
import os
import signal
from pathlib import Path

from cortex_core import build, logs, notify
from cortex_core.catalogue import Catalogue
from cortex_core.config import read_config
from cortex_core.http import server
from cortex_gateway.app import Gateway, open_gateway
from cortex_gateway.config import Config
from cortex_gateway.reloading import Read, Reloading, announce_declared
from cortex_gateway.status import CatalogueStatus

log = logs.get(__name__)

PREFIX = "CORTEX_"
# Ours, and no settings: of the commands that ask a gateway, and of packagers.
_NO_SETTINGS = frozenset({"CORTEX_ENDPOINT", "CORTEX_KEY", build.SHA_VARIABLE})


def main(config_path: Path | None) -> None:
    """Run the gateway until SIGTERM or SIGINT; at SIGHUP read nodes, catalogue and keys again.

    Args:
        config_path: cortex.toml; None: defaults and the environment.

    Raises:
        OperatorError: a file, a setting or an address is wrong.
    """
    logs.setup()
    server.run(lambda: serve(*read(config_path), lambda: read(config_path)))


def read(config_path: Path | None) -> tuple[Config, Catalogue, CatalogueStatus]:
    """Everything that is configured, as it is now. Raises OperatorError."""
    environ = {name: value for name, value in os.environ.items() if name not in _NO_SETTINGS}
    config = read_config(Config, config_path, prefix=PREFIX, environ=environ)
    return config, *read_catalogue(catalogue_path(config, config_path))


def catalogue_path(config: Config, config_path: Path | None) -> Path:
    """Where models.toml is: as configured, from the folder of cortex.toml. Always absolute, so that a log line tells it."""
    folder = config_path.parent if config_path else Path()
    return (folder / config.models_config).resolve()


def read_catalogue(path: Path) -> tuple[Catalogue, CatalogueStatus]:
    """What is declared. A file that is not there declares nothing.

    Raises:
        OperatorError: it is there, and wrong.
    """
    is_there = path.exists()
    catalogue = read_config(Catalogue, path) if is_there else Catalogue()
    found = CatalogueStatus(
        path=str(path),
        found=is_there,
        models=len(catalogue.models),
        aliases=len(catalogue.aliases),
    )
    return catalogue, found


async def serve(
    config: Config, catalogue: Catalogue, found: CatalogueStatus, read_again: Read
) -> None:
    """Serve until a signal, then drain.

    Raises:
        OperatorError: an address cannot be listened on.
    """
    stop, reload = server.stop_on_signals(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload.set)
    # Both before anything else: who comes early waits in the backlog, and a port in use is told at once.
    sock = server.bind(config.gateway.listen)
    try:
        metrics_sock = server.bind(config.gateway.metrics_listen)
    except BaseException:
        sock.close()
        raise
    announce_declared(config, catalogue, found)
    async with open_gateway(config, catalogue, found) as gateway:
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(gateway.front, sock, ended))
            tasks.create_task(server.serve(gateway.metrics_front, metrics_sock, ended))
            reloading = Reloading(gateway, config, read_again)
            loops = [
                tasks.create_task(reloading.run(reload)),
                tasks.create_task(notify.feed_watchdog(os.environ)),
            ]
            _announce_serving(config, gateway)
            notify.notify("READY=1", os.environ)
            await stop.wait()
            for loop in loops:
                loop.cancel()
            notify.notify("STOPPING=1", os.environ)
            log.info("stopping", daemon="gateway")
            await gateway.drain(config.gateway.drain_s)
            ended.set()


def _announce_serving(config: Config, gateway: Gateway) -> None:
    settings = config.gateway
    if not config.neurons:
        log.warning("no neurons configured, nothing can be served")
    log.warning(
        "no keys configured, serving anyone who reaches this address", address=settings.listen
    )
    if config.fleet.key is None:
        log.warning(
            "no key for /fleet configured, taking orders from anyone who reaches this address",
            address=settings.listen,
        )
    log.info(
        "gateway is up",
        address=settings.listen,
        version=build.version_of("helexa-cortex-gateway"),
        neurons={node.name: "up" if node.is_up else "down" for node in gateway.fleet.view().nodes},
    )
