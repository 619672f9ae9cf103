# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cortex_core.control import ModelSpec
from neuron.remembering import FILE, Remembering, state_dir


def test_what_was_measured_outlives_the_daemon(tmp_path: Path) -> None:
    first = Remembering(tmp_path / "new" / "state")
    first.costs.note_load("a", 1.5)
    first.costs.note_cache("a", 10)
    first.costs.note_memory(ModelSpec(model_id="a", quant="fp8"), {1: 100}, 50)
    first.save()
    again = Remembering(tmp_path / "new" / "state")
    assert again.costs.all() == first.costs.all()
    assert again.costs.fixed_mb(ModelSpec(model_id="a", quant="fp8")) == 90


async def test_changes_are_written_while_it_runs(tmp_path: Path) -> None:
    remembering = Remembering(tmp_path, interval_s=0.0)
    running = asyncio.create_task(remembering.run())
    for load_s in (1.0, 2.0):
        remembering.costs.note_load("a", load_s)
        async with asyncio.timeout(5):
            while Remembering(tmp_path).costs.find("a").load_s != load_s:
                await asyncio.sleep(0)
    running.cancel()


def test_where_nothing_changed_nothing_is_written(tmp_path: Path) -> None:
    Remembering(tmp_path).save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', "\xff"])
def test_a_file_that_is_none_is_told_and_begun_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    with capture_logs() as said:
        remembering = Remembering(tmp_path)
    assert [line["event"] for line in said] == ["measured costs are begun anew"]
    assert remembering.costs.all() == {}
    remembering.costs.note_load("a", 1.0)
    remembering.save()
    assert Remembering(tmp_path).costs.find("a").load_s == 1.0


def test_a_place_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as said:
        remembering = Remembering(tmp_path / "file" / "state")
        remembering.costs.note_load("a", 1.0)
        remembering.save()
        remembering.save()
    kept = [line for line in said if line["event"] == "measured costs cannot be kept"]
    assert len(kept) == 1
    assert remembering.costs.find("a").load_s == 1.0


@pytest.mark.parametrize(
    ("setting", "environ", "folder"),
    [
        ("/set", {"STATE_DIRECTORY": "/systemd"}, "/set"),
        (None, {"STATE_DIRECTORY": "/systemd"}, "/systemd"),
        (None, {"STATE_DIRECTORY": "/one:/two"}, "/one"),
        (None, {"XDG_STATE_HOME": "/xdg"}, "/xdg/neuron"),
        (None, {}, str(Path("~/.local/state/neuron").expanduser())),
    ],
)
def test_the_place_is_as_set_or_the_service_managers_or_the_users(
    setting: str | None, environ: dict[str, str], folder: str
) -> None:
    assert state_dir(setting, environ) == Path(folder)


def test_the_count_of_cycles_outlives_the_daemon(tmp_path: Path) -> None:
    first = Remembering(tmp_path)
    first.costs.note_unload("a", 1.0)
    first.costs.note_wake("a", 1.0)
    first.save()
    assert Remembering(tmp_path).costs.cycles == 2
