# SPDX-License-Identifier: GPL-3.0-or-later
"""What was measured outlives the daemon: read when it starts, written when it has changed."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cortex_core import logs
from neuron.costs import Cost, Costs

log = logs.get(__name__)

FILE = "costs.json"
# Between two looks at whether there is something to write; what a kill may lose.
INTERVAL_S = 2.0


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the file holds.

    Attributes:
        costs: by the id of the model.
        cycles: as in Costs.
    """

    costs: dict[str, Cost] = {}
    cycles: int = 0


_ENCODE = msgspec.json.Encoder()
_READ = msgspec.json.Decoder(Kept)


class Remembering:
    """The file that the costs are kept in."""

    def __init__(self, folder: Path, *, interval_s: float = INTERVAL_S) -> None:
        self._path = folder / FILE
        self._interval_s = interval_s
        kept = _read(self._path)
        self.costs = Costs(kept.costs, kept.cycles)
        self._written = self.costs.revision
        self._is_told = False

    async def run(self) -> None:
        """Write what has changed, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            if self.costs.revision != self._written:
                await asyncio.to_thread(self._write, *self._taken())

    def save(self) -> None:
        """Write what has changed, now."""
        if self.costs.revision != self._written:
            self._write(*self._taken())

    def _taken(self) -> tuple[int, Kept]:
        return self.costs.revision, Kept(costs=self.costs.all(), cycles=self.costs.cycles)

    def _write(self, revision: int, kept: Kept) -> None:
        """Whole or not at all. Where it cannot be, the costs are known until the daemon ends."""
        new = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(_ENCODE.encode(kept))
            new.replace(self._path)
        except OSError as error:
            if not self._is_told:
                log.warning(
                    "measured costs cannot be kept", path=str(self._path), reason=str(error)
                )
            self._is_told = True
            return
        self._written = revision


def state_dir(setting: str | None, environ: Mapping[str, str]) -> Path:
    """Where what outlives the daemon is kept: as set, else the service manager's directory, else the user's."""
    if setting or environ.get("STATE_DIRECTORY"):
        # systemd gives several, with colons between, where several are asked for.
        return Path(setting or environ["STATE_DIRECTORY"].partition(":")[0]).expanduser()
    home = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return (Path(home) / "neuron").expanduser()


def _read(path: Path) -> Kept:
    try:
        return _READ.decode(path.read_bytes())
    except FileNotFoundError:
        return Kept()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        log.warning("measured costs are begun anew", path=str(path), reason=str(error))
        return Kept()
