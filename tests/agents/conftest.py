# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in JavaScript, in an empty environment, against a gateway on echo engines."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# `tools/nox -s agents` installs package.json there.
HOME = HERE.parents[1] / ".nox" / "agents"
RUN_S = 100.0


class Ran:
    """What a program said, and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


class Agents:
    """Runs what is installed.

    Attributes:
        folder: where a program finds its home, and may write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def script(self, name: str, *args: str) -> Ran:
        """A script of this folder, run where its packages are."""
        copy = HOME / name
        await asyncio.to_thread(shutil.copyfile, HERE / name, copy)
        return await self._run("node", str(copy), *args)

    async def program(self, name: str, *args: str, **environ: str) -> Ran:
        """An installed command."""
        return await self._run(str(HOME / "node_modules" / ".bin" / name), *args, **environ)

    async def _run(self, *command: str, **environ: str) -> Ran:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ},
        )
        try:
            async with asyncio.timeout(RUN_S):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        code = process.returncode
        assert code is not None
        return Ran(code, out.decode(), err.decode())


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    if not (HOME / "made-from").exists():
        if os.environ.get("CI") == "true":
            raise RuntimeError(
                "the packages of tests/agents are not installed: tools/nox -s agents"
            )
        pytest.skip("not run: tools/nox -s agents installs what it needs")
    return Agents(tmp_path)
