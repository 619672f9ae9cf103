# SPDX-License-Identifier: GPL-3.0-or-later
"""Against a driver that says what it is told (`neuron.fake_nvml`), and against the one of this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from neuron.fake_nvml import TWO_GPUS, FakeNvml
from neuron.nvml import Nvml

# Answers each word on its input with a line of JSON, in a process of its own: pynvml keeps the library it found.
CHILD = """
import sys, msgspec
from cortex_core import logs
from neuron.nvml import Nvml
logs.setup(level="error")
nvml = Nvml()
for word in sys.stdin:
    answer = getattr(nvml, word.strip())()
    print(msgspec.json.encode(answer).decode(), flush=True)
"""
MIG = {
    **TWO_GPUS,
    "0.mig": "1",
    "0.0.uuid": "MIG-one",
    "0.0.name": "NVIDIA H100 MIG 1g.10gb",
    "0.0.memory": "9856 12",
    "0.2.uuid": "MIG-two",
    "0.2.name": "NVIDIA H100 MIG 2g.20gb",
    "0.2.memory": "19968 12",
}

Ask = Callable[[str], Any]
Start = Callable[..., Ask]


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    return FakeNvml(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def start(fake: FakeNvml) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_one(lines: dict[str, str], **environ: str) -> Ask:
            fake.say(lines)
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CHILD],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **fake.environ(), **environ},
                )
            )
            stack.callback(child.kill)

            def ask(word: str) -> Any:
                assert child.stdin
                assert child.stdout
                child.stdin.write(f"{word}\n")
                child.stdin.flush()
                return json.loads(child.stdout.readline())

            return ask

        yield start_one


def uuids(driver: Any) -> list[tuple[int, str]]:
    return [(device["index"], device["uuid"]) for device in driver["devices"]]


@pytest.mark.slow
def test_two_gpus_of_different_size_are_told_with_all_that_they_have(start: Start) -> None:
    ask = start({**TWO_GPUS, "1.processes": "11:100 12:N/A"})
    driver = ask("driver")
    assert (driver["driver_version"], driver["cuda_version"]) == ("580.95.05", "13.0")
    assert driver["unavailable_reason"] is None
    assert [list(device.values()) for device in driver["devices"]] == [
        [0, "GPU-aaaa", "NVIDIA GeForce RTX 5090", 32607, "12.0"],
        [1, "GPU-bbbb", "NVIDIA GeForce RTX 3060", 12288, "8.6"],
    ]
    first, second = ask("read")
    assert list(first[0].values()) == [0, 607, 32000, 7.0, 41.0, 63.5]
    assert first[1:] == [{}, False]
    # It has no sensors, and one of its processes is not told: that spoils nothing else.
    assert list(second[0].values()) == [1, 288, 12000, 0.0, None, None]
    assert second[1:] == [{"11": 100}, False]


@pytest.mark.slow
def test_a_gpu_that_goes_takes_its_own_figures_with_it_and_comes_back(
    start: Start, fake: FakeNvml
) -> None:
    ask = start(TWO_GPUS)
    ask("driver")
    whole = ask("read")
    fake.say({**TWO_GPUS, "0.lost": "1"})
    lost, other = ask("read")
    assert lost == [{**dict.fromkeys(lost[0]), "index": 0}, {}, True]
    assert other == whole[1]
    fake.say(TWO_GPUS)
    assert ask("read") == whole


@pytest.mark.slow
def test_a_gpu_that_is_lost_from_the_start_hides_no_other(start: Start) -> None:
    ask = start({**TWO_GPUS, "0.lost": "1"})
    driver = ask("driver")
    assert uuids(driver) == [(1, "GPU-bbbb")]
    assert driver["unavailable_reason"] is None
    assert [reading[0]["index"] for reading in ask("read")] == [1]


@pytest.mark.slow
def test_a_gpu_in_mig_mode_is_its_instances(start: Start) -> None:
    ask = start(MIG)
    driver = ask("driver")
    assert uuids(driver) == [(100, "MIG-one"), (102, "MIG-two"), (1, "GPU-bbbb")]
    assert driver["devices"][1]["vram_total_mb"] == 19968
    assert [reading[0]["vram_free_mb"] for reading in ask("read")] == [9844, 19956, 12000]


@pytest.mark.slow
def test_a_gpu_in_mig_mode_without_instances_is_no_device(start: Start) -> None:
    assert uuids(start({**TWO_GPUS, "0.mig": "1"})("driver")) == [(1, "GPU-bbbb")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "found", "reason"),
    [
        ("1", [(1, "GPU-bbbb")], None),
        ("GPU-bb", [(1, "GPU-bbbb")], None),
        ("", [], None),
        ("7", [], "CUDA_VISIBLE_DEVICES has '7', which names none of 0 (GPU-aaaa), 1 (GPU-bbbb)"),
    ],
)
def test_what_cuda_is_not_to_see_is_not_there(
    start: Start, variable: str, found: list[Any], reason: str | None
) -> None:
    ask = start(TWO_GPUS, CUDA_VISIBLE_DEVICES=variable)
    driver = ask("driver")
    assert uuids(driver) == found
    assert driver["unavailable_reason"] == reason
    assert [reading[0]["index"] for reading in ask("read")] == [index for index, _ in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ({"count": "0", "driver": "580.95.05"}, None),
        (
            {"init": "!18", "nvml": "13.580.95.05"},
            "the NVIDIA driver's library is version 580.95.05 and its kernel module unknown: it was updated, "
            "and this machine was not restarted since",
        ),
        ({"init": "!9"}, "the NVIDIA driver does not work: Driver Not Loaded"),
        ({"count": "!999"}, "the NVIDIA driver cannot list its GPUs: Unknown Error"),
    ],
)
def test_a_driver_without_gpus_is_an_answer_and_one_that_fails_says_why(
    start: Start, lines: dict[str, str], reason: str | None
) -> None:
    ask = start(lines)
    driver = ask("driver")
    assert driver["devices"] == []
    assert driver["unavailable_reason"] == reason
    assert ask("read") == []


def test_no_driver_is_an_answer_and_a_driver_tells_its_devices() -> None:
    nvml = Nvml()
    driver = nvml.driver()
    readings = nvml.read()
    assert len(readings) == len(driver.devices)
    if driver.driver_version is None:
        assert driver.devices == []
    else:
        assert driver.unavailable_reason is None
        assert driver.cuda_version is not None
        assert len(driver.cuda_version.split(".")) == 2
    for device, reading in zip(driver.devices, readings, strict=True):
        assert device.index == reading.health.index
        assert device.vram_total_mb > 0
        assert 0 <= (reading.health.vram_used_mb or 0) <= device.vram_total_mb


def test_without_a_compiler_the_fake_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="install gcc"):
        FakeNvml(tmp_path, compilers=("no-compiler-has-this-name",))
