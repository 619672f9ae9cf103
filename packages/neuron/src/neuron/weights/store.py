# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of models on this machine: had, pulled, removed. What a harness and the routes ask."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import MutableMapping
from pathlib import Path

from cortex_core import logs
from cortex_core.control import ModelSpec
from cortex_core.errors import ShuttingDownError, WeightsInUseError
from cortex_core.weights import DownloadProgress, PullAnswer, RemoveAnswer, WeightsReport
from neuron.config import Config
from neuron.residents import Residents
from neuron.weights.abilities import Abilities, read_abilities
from neuron.weights.cache import Cache, lacks
from neuron.weights.downloads import Downloads, Flight, Report
from neuron.weights.messages import Fetch, Planned
from neuron.weights.places import Place, Places
from neuron.weights.refusals import WeightsError
from neuron.weights.report import write_report
from neuron.weights.shelves import HARNESS, Shelved, Shelves
from neuron.weights.sources import Sources

log = logs.get(__name__)

# Before the first retry of what a source does not answer.
RETRY_S = 1.0
# Errors of downloads are kept to be looked at; ids come from clients, so there is a bound.
MAX_ERRORS = 32
_ALLOW = "Put them there (`model_dirs` in neuron.toml adds directories), or allow downloads."
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class Weights:
    """Every model's files.

    Args:
        config: of the daemon.
        residents: whose files are in use.
        tasks: that downloads run in.
        environ: of the daemon; the sources' tokens are taken out of it.
    """

    def __init__(
        self,
        config: Config,
        residents: Residents,
        tasks: asyncio.TaskGroup,
        environ: MutableMapping[str, str],
    ) -> None:
        settings = config.harness.vllm
        defaults = [s.model_id for s in config.default_models if s.harness == HARNESS]
        self._forbids = _forbids_downloads(settings.download, environ)
        self._tasks = tasks
        self._sources = Sources(settings, environ)
        residents.note_default_source(settings.default_source)
        own = [s for s in config.default_models if s.harness == HARNESS]
        named = [path for s in own for path in (s.model_id, *(s.lora or {}).values())]
        own_paths = {path for path in named if path.startswith("/")}
        self._places = Places(settings, self._sources, own_paths)
        self.downloads = Downloads(tasks, self._make_room, environ)
        self._budget_mb = settings.disk_budget_mb
        self._shelves = Shelves(
            self._sources,
            self._places,
            residents,
            defaults,
            settings.disk_budget_mb,
            lambda: {flight.folder: flight.remaining_bytes for flight in self.downloads.all()},
        )
        self._noting = asyncio.Lock()
        self._errors: OrderedDict[str, str] = OrderedDict()
        self._retry_s = RETRY_S
        self._closed = False

    def close(self) -> None:
        """End the downloads under way, and begin no more. What was fetched stays."""
        self._closed = True
        self.downloads.close()

    async def locate(self, spec: ModelSpec) -> Path:
        """The folder of a model that is here and whole. Nothing is fetched.

        Raises:
            LoadRefusedError: `repo_fetch_failed`: it would have to be fetched first. Or the id is no model's.
        """
        try:
            place = await asyncio.to_thread(self._places.look, spec.model_id)
            if folder := await asyncio.to_thread(place.find, spec.quant):
                return folder
            raise WeightsError(
                "repo_fetch_failed",
                self._where_not(place, spec.quant),
                "A load fetches them, and POST /weights/pull without loading."
                if self._forbids is None
                else _ALLOW,
            )
        except WeightsError as error:
            raise error.refuse(spec.model_id) from None

    async def ensure(self, spec: ModelSpec, report: Report, *, with_gguf: bool = False) -> Path:
        """The folder of a model, fetched first where it is not here. Cancelling ends a download that only it wanted.

        Args:
            spec: whose files.
            report: is told how far a download is.
            with_gguf: engines can read GGUF; else none is fetched.

        Raises:
            LoadRefusedError: it cannot be had, or is GGUF and that will not do.
        """
        try:
            return await self._ensure(spec, report, with_gguf=with_gguf)
        except WeightsError as error:
            raise error.refuse(spec.model_id) from None

    async def pull(self, model_id: str, quant: str | None, *, wait: bool) -> PullAnswer:
        """Fetch a model, or what its source has newer of it; with `wait` false only see to it that it is on its way.

        Raises:
            LoadRefusedError: it cannot be had.
            ShuttingDownError: the daemon stops.
        """
        try:
            place = await asyncio.to_thread(self._places.look, model_id)
            if place.fixed:
                return PullAnswer(status="downloaded", model_id=model_id, already=True)
            self._check_may_fetch(place, quant)
        except WeightsError as error:
            raise error.refuse(model_id) from None
        # A task of its own: it goes on when who asked has gone.
        pulling = self._tasks.create_task(self._pull(place, quant))
        if not wait:
            flight = self.downloads.find(place.folder)
            progress = flight.progress if flight else DownloadProgress()
            return PullAnswer(status="downloading", model_id=model_id, progress=progress)
        flight_or_error = await asyncio.shield(pulling)
        if isinstance(flight_or_error, WeightsError):
            if self._closed:
                raise ShuttingDownError(daemon="neuron")
            raise flight_or_error.refuse(model_id)
        planned = flight_or_error.planned
        already = planned is not None and planned.missing_files == 0
        return PullAnswer(status="downloaded", model_id=model_id, already=already)

    async def remove(self, model_id: str) -> RemoveAnswer:
        """Remove a model's files.

        Raises:
            WeightsInUseError: they are in use, or not the daemon's to remove.
            LoadRefusedError: the id is no model's, or its source is not known.
        """
        try:
            place = await asyncio.to_thread(self._places.look, model_id)
        except WeightsError as error:
            raise error.refuse(model_id) from None
        if place.fixed:
            raise WeightsInUseError(
                model=model_id,
                reason="they are shipped, or in a directory of the operator's",
                suggestion="Only the operator removes them.",
            )
        await self._shelves.until_removed(place.folder)
        found = await asyncio.to_thread(place.cache.look, place.name)
        if (why := self._shelves.in_use().get(place.folder)) is not None:
            raise WeightsInUseError(
                model=model_id,
                reason=why,
                suggestion="Unload the model, or wait for its download, and ask again.",
            )
        self._errors.pop(place.id, None)
        if found is None:
            return RemoveAnswer(status="removed", model_id=model_id, already=True)
        try:
            await self._shelves.remove(Shelved(source=place.source, found=found))
        except OSError as error:
            raise WeightsInUseError(
                model=model_id,
                reason=f"{place.folder} cannot be removed: {error.strerror}",
                suggestion="Let the user that the daemon runs as write there.",
            ) from None
        return RemoveAnswer(status="removed", model_id=model_id, freed_mb=found.size_mb)

    async def report(self) -> WeightsReport:
        """For GET /weights."""
        shelved = await asyncio.to_thread(self._shelves.scan)
        fixed = await asyncio.to_thread(self._places.scan_fixed)
        free_bytes = await asyncio.to_thread(Cache(self._sources.default.cache_dir).free_bytes)
        return write_report(
            shelved=shelved,
            abilities=await asyncio.to_thread(_read_abilities, shelved),
            fixed=fixed,
            flights=self.downloads.all(),
            in_use=set(self._shelves.in_use()),
            defaults=self._shelves.defaults(),
            errors=self._errors,
            budget_mb=self._budget_mb,
            free_bytes=free_bytes,
        )

    async def _ensure(self, spec: ModelSpec, report: Report, *, with_gguf: bool) -> Path:
        place = await asyncio.to_thread(self._places.look, spec.model_id)
        # A removal that began before this load was known ends first; since then the files are in use.
        await self._shelves.until_removed(place.folder)
        folder = await asyncio.to_thread(place.find, spec.quant)
        if folder is None:
            await self._fetch(place, spec.quant, report, with_gguf=with_gguf)
            folder = await asyncio.to_thread(_expect_snapshot, place)
        if not place.fixed:
            async with self._noting:
                await asyncio.to_thread(place.cache.note_used, place.name, time.time())
        return folder

    async def _pull(self, place: Place, quant: str | None) -> Flight | WeightsError:
        await self._shelves.until_removed(place.folder)
        try:
            return await self._fetch(place, quant, _unheard, with_gguf=True)
        except WeightsError as error:
            return error
        except Exception as error:  # a fault of ours must not end the engines
            log.exception("unhandled fault", model=place.id)
            return WeightsError("repo_fetch_failed", repr(error), "The daemon's log tells more.")

    async def _fetch(
        self, place: Place, quant: str | None, report: Report, *, with_gguf: bool
    ) -> Flight:
        self._check_may_fetch(place, quant)
        fetch = Fetch(
            repo=place.name,
            endpoint=place.source.endpoint,
            token=self._sources.token(place.source),
            auth_env=place.source.auth_env,
            cache_dir=str(place.source.cache_dir),
            quant=quant,
            with_gguf=with_gguf,
            wait_s=self._retry_s,
        )
        self._errors.pop(place.id, None)
        try:
            return await self.downloads.fetch(place.id, fetch, place.folder, report)
        except WeightsError as error:
            self._note_error(place.id, str(error))
            raise

    async def _make_room(self, flight: Flight, planned: Planned) -> None:
        await self._shelves.make_room(flight.model_id, flight.folder, planned.missing_bytes)

    def _check_may_fetch(self, place: Place, quant: str | None) -> None:
        if self._forbids is not None:
            where = self._where_not(place, quant)
            reason = f"{where}; and {self._forbids} forbids to fetch them"
            raise WeightsError("repo_fetch_failed", reason, _ALLOW)

    def _where_not(self, place: Place, quant: str | None) -> str:
        snapshot = place.cache.snapshot(place.name)
        missing = lacks(snapshot, quant) if snapshot else []
        if missing:
            return f"of its files there are missing in {snapshot}: {', '.join(missing[:3])}"
        looked = [*self._places.fixed_folders(place.name), place.folder]
        return f"its files are not on this machine; looked for {', '.join(map(str, looked))}"

    def _note_error(self, place_id: str, reason: str) -> None:
        self._errors[place_id] = reason
        self._errors.move_to_end(place_id)
        if len(self._errors) > MAX_ERRORS:
            self._errors.popitem(last=False)


def _forbids_downloads(download: bool, environ: MutableMapping[str, str]) -> str | None:
    """What forbids to ask the network; None: nothing does."""
    if not download:
        return "`download = false`"
    set_to = {name: environ.get(name, "").upper() for name in _OFFLINE}
    return next((name for name, value in set_to.items() if value in _TRUE), None)


# As the Hugging Face libraries read them.
_TRUE = ("1", "ON", "YES", "TRUE")


def _expect_snapshot(place: Place) -> Path:
    snapshot = place.cache.snapshot(place.name)
    if snapshot is None:
        raise WeightsError(
            "repo_fetch_failed",
            f"its files went away from {place.folder} as soon as they were there",
            "Look who else removes files there.",
        )
    return snapshot


def _read_abilities(shelved: list[Shelved]) -> dict[Path, Abilities]:
    """Of what has a snapshot, by its folder in the cache."""
    snapshots = {one.folder: one.cache.snapshot(one.found.name) for one in shelved}
    return {folder: read_abilities(path) for folder, path in snapshots.items() if path}


def _unheard(progress: DownloadProgress) -> None:
    """Of a pull: who wants to know reads it from the download."""
