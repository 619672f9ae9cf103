# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes there are, and by which client each is asked. That may change while requests run.

Everybody else holds `clients` and `with_secret` themselves, which change in place.
"""

import asyncio
from collections.abc import Iterable

import msgspec

from cortex_core import logs
from cortex_core.http.client import Client
from cortex_core.http.headers import Headers
from cortex_gateway.config import NeuronSettings
from cortex_gateway.fleet import Fleet
from cortex_gateway.openai_client import OpenAIClient

log = logs.get(__name__)

# How soon the end of a node's work is noticed.
LOOK_S = 0.1


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """Names of nodes that came, that are asked otherwise than before, and that left."""

    joined: list[str]
    changed: list[str]
    left: list[str]


class Roster:
    """The nodes that are configured.

    Args:
        neurons: those at the start.
        idle_timeout_s: the longest silence of one in a stream.

    Attributes:
        clients: one per node, also of one that has left, until its work ends.
        with_secret: nodes that a secret is configured for.
    """

    def __init__(self, neurons: Iterable[NeuronSettings], idle_timeout_s: float) -> None:
        self._idle_timeout_s = idle_timeout_s
        self._neurons = {neuron.name: neuron for neuron in neurons}
        self._left: dict[str, NeuronSettings] = {}
        self._old: dict[str, list[Client]] = {}
        self.clients = {
            name: _client(neuron, idle_timeout_s) for name, neuron in self._neurons.items()
        }
        self.with_secret = {name for name, neuron in self._neurons.items() if neuron.credential}

    def adopt(self, neurons: Iterable[NeuronSettings], fleet: Fleet) -> Changes:
        """Have these nodes from now on, and tell the fleet: nothing new goes to who left."""
        now = {neuron.name: neuron for neuron in neurons}
        before = {**self._neurons, **self._left}
        changes = Changes(
            joined=[name for name in now if name not in before],
            changed=[name for name in now if name in before and now[name] != before[name]],
            left=[name for name in self._neurons if name not in now],
        )
        self._left = {
            name: neuron
            for name, neuron in before.items()
            if name not in now and (name in self._left or name in changes.left)
        }
        self._neurons = now
        self._ask_anew([*changes.joined, *changes.changed], before, fleet)
        for name in changes.left:
            fleet.retire_node(name)
        for name in now:
            fleet.keep_node(name)
        return changes

    def _ask_anew(self, names: list[str], before: dict[str, NeuronSettings], fleet: Fleet) -> None:
        for name in names:
            neuron = self._neurons[name]
            if name in before:  # its requests go on by the client that they began with
                self._old.setdefault(name, []).append(self.clients[name])
            self.clients[name] = _client(neuron, self._idle_timeout_s)
            (self.with_secret.add if neuron.credential else self.with_secret.discard)(name)
            if name not in before or _where(before[name]) != _where(neuron):
                fleet.add_node(name, neuron.endpoint)

    async def until_over(self, name: str, fleet: Fleet) -> bool:
        """Return when a node that left has no work of ours any more; false: it is back."""
        while name in self._left:
            if fleet.is_idle(name):
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def close_old(self, name: str, fleet: Fleet) -> None:
        """Close what a node was asked by before, once it has no work of ours that may have begun with that."""
        while not fleet.is_idle(name):  # noqa: ASYNC110 - the fleet is pure, and wakes nobody
            await asyncio.sleep(LOOK_S)
        for client in self._old.pop(name, []):
            await client.close()

    async def remove(self, name: str, fleet: Fleet) -> None:
        """Forget a node that left."""
        self._left.pop(name, None)
        self.with_secret.discard(name)
        client = self.clients.pop(name)
        fleet.remove_node(name)
        log.info("node has left", node=name)
        await client.close()

    async def close(self) -> None:
        """Close every connection to the nodes."""
        for client in [
            *self.clients.values(),
            *(old for each in self._old.values() for old in each),
        ]:
            await client.close()


def _where(neuron: NeuronSettings) -> tuple[str, str]:
    """What else than before is another machine, as far as we know."""
    return neuron.endpoint, neuron.kind


def _client(neuron: NeuronSettings, idle_timeout_s: float) -> Client:
    fields: Headers = []
    if neuron.credential is not None:
        fields.append((b"authorization", f"Bearer {neuron.credential}".encode()))
    if neuron.kind == "openai":
        return OpenAIClient(neuron.endpoint, idle_timeout_s=idle_timeout_s, headers=fields)
    return Client(neuron.endpoint, idle_timeout_s=idle_timeout_s, headers=fields)
