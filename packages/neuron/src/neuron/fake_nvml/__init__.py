# SPDX-License-Identifier: GPL-3.0-or-later
"""The test kit's driver: a libnvidia-ml of our own, built from C, that says what a file tells it to say.

pynvml opens the library by its name, so a process meets it through `environ()` and needs no other change.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"
COMPILERS = ("cc", "gcc", "clang")
BUILD_TIMEOUT_S = 60.0

TWO_GPUS = {
    "driver": "580.95.05",
    "nvml": "13.580.95.05",
    "cuda": "13000",
    "count": "2",
    "0.uuid": "GPU-aaaa",
    "0.name": "NVIDIA GeForce RTX 5090",
    "0.capability": "12.0",
    "0.memory": "32607 607",
    "0.utilization": "7",
    "0.temperature": "41",
    "0.power": "63500",
    "1.uuid": "GPU-bbbb",
    "1.name": "NVIDIA GeForce RTX 3060",
    "1.capability": "8.6",
    "1.memory": "12288 288",
    "1.utilization": "0",
}


class FakeNvml:
    """The library in a folder of its own, and the file it reads at each call."""

    def __init__(self, folder: Path, compilers: Sequence[str] = COMPILERS) -> None:
        """Build it, with the first of the compilers that is there.

        Raises:
            RuntimeError: there is no C compiler, or it does not compile.
        """
        self._folder = folder
        self._says = folder / "says"
        self._hangs = folder / "says.hangs"
        self.say({})
        _build(folder / LIBRARY, compilers)

    def say(self, lines: Mapping[str, str]) -> None:
        """What the driver says from now on."""
        self._hangs.unlink(missing_ok=True)
        new = self._says.with_suffix(".new")
        new.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        new.replace(self._says)  # a process may be reading it

    @property
    def hangs(self) -> bool:
        """Whether a process has asked what never comes (`~`), since it was last told what to say."""
        return self._hangs.exists()

    def environ(self) -> dict[str, str]:
        """The variables by which a new process meets this driver."""
        return {"LD_LIBRARY_PATH": str(self._folder), "FAKE_NVML": str(self._says)}


def _build(library: Path, compilers: Sequence[str]) -> None:
    compiler = next((name for name in compilers if shutil.which(name)), None)
    if compiler is None:
        raise RuntimeError("these tests need a C compiler: install gcc (or any other `cc`)")
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
