# SPDX-License-Identifier: GPL-3.0-or-later
"""What the caches of all sources hold, what of it is in use, and what goes to make room."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cortex_core import logs
from cortex_core.node import ModelStatus
from neuron.residents import Residents
from neuron.weights.cache import Cache, OnDisk
from neuron.weights.places import Places
from neuron.weights.refusals import WeightsError
from neuron.weights.room import MIB, Disk, Held, plan_room
from neuron.weights.sources import Source, Sources

log = logs.get(__name__)

HARNESS = "vllm"


class Shelved(msgspec.Struct, frozen=True, kw_only=True):
    """One repository in the cache of a source."""

    source: Source
    found: OnDisk

    @property
    def id(self) -> str:
        """Of the model."""
        return f"{self.source.scheme}:{self.found.name}"

    @property
    def cache(self) -> Cache:
        """That it is in."""
        return Cache(self.source.cache_dir)

    @property
    def folder(self) -> Path:
        """That it has there."""
        return self.cache.folder(self.found.name)


class Shelves:
    """The caches of one daemon.

    Args:
        sources: whose caches they are.
        places: of models.
        residents: whose files are in use.
        default_ids: of models that are never evicted.
        budget_mb: MiB that all of it may take; None: there is no budget.
        downloading: folders that files come into now, each with the bytes that are still to come.
    """

    def __init__(
        self,
        sources: Sources,
        places: Places,
        residents: Residents,
        default_ids: list[str],
        budget_mb: int | None,
        downloading: Callable[[], dict[Path, int]],
    ) -> None:
        self._sources = sources
        self._places = places
        self._residents = residents
        self._default_ids = default_ids
        self._budget_mb = budget_mb
        self._downloading = downloading
        self._removing: dict[Path, asyncio.Event] = {}
        # Two decisions about the same room would both find it free.
        self._deciding = asyncio.Lock()

    def scan(self) -> list[Shelved]:
        """Every repository; of two sources that share a cache, the first has them. Blocks."""
        by_cache = {source.cache_dir: source for source in reversed(self._sources.all())}
        return [
            Shelved(source=source, found=found)
            for path, source in by_cache.items()
            for found in Cache(path).scan()
        ]

    def in_use(self) -> dict[Path, str]:
        """Folders that may not be removed now, and why."""
        used = {
            folder: f"the model is {resident.status}"
            for resident in self._residents.all()
            if resident.spec.harness == HARNESS and resident.status is not ModelStatus.FAILED
            for model_id in (resident.id, *(resident.spec.lora or {}).values())
            for folder in self._folders(model_id)
        }
        return {**used, **dict.fromkeys(self._downloading(), "they are being downloaded")}

    def defaults(self) -> set[Path]:
        """Folders of the default models."""
        return {folder for model_id in self._default_ids for folder in self._folders(model_id)}

    async def until_removed(self, folder: Path) -> None:
        """Wait until no removal of it is under way."""
        while removing := self._removing.get(folder):
            await removing.wait()

    async def remove(self, shelved: Shelved) -> None:
        """Remove a repository that nothing uses: the caller has asked `in_use`, and has not waited since.

        Raises:
            OSError: the disk does not let it.
        """
        with self._marked(shelved.folder):
            await asyncio.to_thread(shelved.cache.remove, shelved.found.name)

    async def make_room(self, name: str, folder: Path, missing_bytes: int) -> None:
        """Evict what has to go before a repository is fetched.

        Raises:
            WeightsError: `insufficient_disk`: that would not do.
        """
        async with self._deciding:
            shelved = {str(one.folder): one for one in await asyncio.to_thread(self.scan)}
            free = await asyncio.to_thread(Cache(folder.parent).free_bytes)
            for key in self._plan(shelved, folder, missing_bytes, free):
                await self._evict(shelved[key], name)

    def _plan(
        self, shelved: dict[str, Shelved], folder: Path, missing_bytes: int, free_bytes: int
    ) -> list[str]:
        stays = {*self.in_use(), *self.defaults()}
        held = [
            Held(
                key=key,
                size_bytes=one.found.size_bytes,
                last_used_s=one.found.last_used_s,
                pinned=one.folder in stays,
            )
            for key, one in shelved.items()
        ]
        promised = sum(size for path, size in self._downloading().items() if path != folder)
        budget_bytes = None if self._budget_mb is None else self._budget_mb * MIB
        disk = Disk(
            free_bytes=free_bytes - promised, budget_bytes=budget_bytes, promised_bytes=promised
        )
        return plan_room(missing_bytes, held, disk)

    async def _evict(self, shelved: Shelved, for_name: str) -> None:
        name = shelved.found.name
        if shelved.folder in self.in_use():  # since it was decided
            raise _not_evicted(name, "is wanted again")
        log.info(
            "weights evicted",
            model=name,
            reason=f"room for {for_name}",
            size_mb=shelved.found.size_mb,
        )
        try:
            await self.remove(shelved)
        except OSError as error:
            raise _not_evicted(name, f"cannot be removed: {error.strerror}") from None

    @contextmanager
    def _marked(self, folder: Path) -> Iterator[None]:
        done = self._removing[folder] = asyncio.Event()
        try:
            yield
        finally:
            del self._removing[folder]
            done.set()

    def _folders(self, model_id: str) -> list[Path]:
        try:
            place = self._places.look(model_id)
        except WeightsError:  # it was refused for that already
            return []
        return [] if place.fixed else [place.folder]


def _not_evicted(name: str, why: str) -> WeightsError:
    return WeightsError(
        "insufficient_disk", f"{name}, which was to make room on the disk, {why}", "Try again."
    )
