# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds archive and wheel of each package, installs the wheels in empty environments, and tries them.

What an editable install hides shows here: a file that is not packed, a requirement that is not declared.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import tree

DISTS = sorted(path.parent.name for path in tree.PACKAGES.glob("*/pyproject.toml"))
CONSTRAINTS = tree.ROOT / "constraints.txt"


def main() -> None:
    """Build and try; ends with the first fault."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "dist")
        for dist in DISTS:
            _build(dist, out)
        wheels = {dist: next(out.glob(f"helexa_{dist.replace('-', '_')}-*.whl")) for dist in DISTS}
        for dist, wheel in wheels.items():
            _check_contents(dist, wheel)
        _try_all(Path(scratch, "all"), list(wheels.values()))
        _try_alone(Path(scratch, "alone"), [wheels["cortex-core"], wheels["cortex-cli"]])
    print(f"{len(DISTS)} archives and {len(DISTS)} wheels are whole.")


def _build(dist: str, out: Path) -> None:
    print(f"building {dist}", flush=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(tree.PACKAGES / dist)], check=True, stdout=subprocess.DEVNULL)


def _check_contents(dist: str, wheel: Path) -> None:
    """Every file under src is in the wheel, and the licence."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    src = tree.PACKAGES / dist / "src"
    wanted = {str(path.relative_to(src)) for path in tree.files() if path.is_relative_to(src)}
    missing = sorted(wanted - packed)
    if missing or not any(name.endswith("/licenses/LICENSE") for name in packed):
        sys.exit(f"{wheel.name} lacks {', '.join(missing) or 'LICENSE'}")


def _try_all(folder: Path, wheels: list[Path]) -> None:
    _install(folder, wheels)
    for dist in DISTS:
        _run(folder, "python", "-c", f"import {dist.replace('-', '_')}")
    _run(folder, "cortex", "--version")
    _run(folder, "neuron", "--version")
    _run(folder, "cortex", "check", str(tree.ROOT / "cortex.example.toml"))


def _try_alone(folder: Path, wheels: list[Path]) -> None:
    """The command line without the daemons works, and says what is missing."""
    _install(folder, wheels)
    _run(folder, "cortex", "--version")
    said = subprocess.run(
        [folder / "bin/cortex", "serve"], capture_output=True, text=True, timeout=60
    )
    if said.returncode != 2 or "pip install helexa-cortex-gateway" not in said.stderr:
        sys.exit(f"`cortex serve` without the gateway says: {said.stdout}{said.stderr}")


def _install(folder: Path, wheels: list[Path]) -> None:
    print(f"installing {', '.join(wheel.name for wheel in wheels)}", flush=True)
    venv.create(folder, with_pip=True)
    _run(
        folder,
        "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "-c",
        str(CONSTRAINTS),
        *map(str, wheels),
    )


def _run(folder: Path, program: str, *args: str) -> None:
    subprocess.run([folder / "bin" / program, *args], check=True, cwd=folder, timeout=600)


if __name__ == "__main__":
    main()
