# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads the configuration again while the gateway runs: nodes, catalogue and keys change, requests go on.

What is wrong leaves what was there before in force, and is told until it is right.
"""

import asyncio
import os
import time
from collections.abc import Callable

import msgspec

from cortex_core import logs, notify
from cortex_core.catalogue import Catalogue
from cortex_core.errors import OperatorError
from cortex_gateway.app import Gateway
from cortex_gateway.config import Config
from cortex_gateway.doubts import find_doubts
from cortex_gateway.status import CatalogueStatus

log = logs.get(__name__)

# What changes while the gateway runs; everything else is read at its start.
LIVE = frozenset({"neurons", "fleet", "models_config"})

Read = Callable[[], tuple[Config, Catalogue, CatalogueStatus]]


class Reloading:
    """Takes a new configuration over.

    Args:
        gateway: told of it.
        config: what it started with.
        read: reads all of it; raises OperatorError.
    """

    def __init__(self, gateway: Gateway, config: Config, read: Read) -> None:
        self._gateway = gateway
        self._config = config
        self._read = read

    async def run(self, wanted: asyncio.Event) -> None:
        """Read again each time that it is wanted, until cancelled; several wishes meanwhile are one."""
        while True:
            await wanted.wait()
            wanted.clear()
            started_us = time.monotonic_ns() // 1000
            notify.notify(f"RELOADING=1\nMONOTONIC_USEC={started_us}", os.environ)
            try:
                await self._reload()
            except Exception:  # a fault of ours must not end the gateway
                log.exception("reload broke")
            finally:
                notify.notify("READY=1", os.environ)

    async def _reload(self) -> None:
        try:
            config, catalogue, found = await asyncio.to_thread(self._read)
        except OperatorError as error:
            self._gateway.operations.note_config_error(error.message)
            log.error("configuration is wrong, the one before stays", reason=error.message)
            return
        announce_declared(config, catalogue, found)
        stale = differences(self._config, config)
        changes = await self._gateway.adopt(config, catalogue, found)
        if stale:
            log.warning("settings wait for a restart", settings=stale)
        log.info(
            "configuration read again",
            joined=changes.joined,
            changed=changes.changed,
            left=changes.left,
            models=[model.id for model in catalogue.models],
        )


def announce_declared(config: Config, catalogue: Catalogue, found: CatalogueStatus) -> None:
    """Say aloud what is allowed, and may be meant otherwise."""
    if not found.found:
        log.warning("no catalogue, serving what neurons have loaded", path=found.path)
    elif not catalogue.models:
        log.warning("empty catalogue, serving what neurons have loaded", path=found.path)
    for doubt in find_doubts(config, catalogue):
        log.warning("this may be meant otherwise", reason=doubt)


def differences(started: Config, now: Config) -> list[str]:
    """Settings, by their dotted names, that differ from those at the start and count from the next one on."""
    found = []
    for name in Config.__struct_fields__:
        before, after = getattr(started, name), getattr(now, name)
        if name in LIVE or before == after:
            continue
        if isinstance(before, msgspec.Struct):
            fields = before.__struct_fields__
            found += [f"{name}.{f}" for f in fields if getattr(before, f) != getattr(after, f)]
        else:
            found.append(name)
    return found
