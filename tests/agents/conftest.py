# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs in JavaScript, in an empty environment, against a gateway on echo engines."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

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


class Command(NamedTuple):
    """What is run: the words of its line, what it has of an environment, and what it is told by its standard input."""

    words: list[str]
    environ: dict[str, str]
    told: bytes = b""


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
        return await self._finish(await self._start(Command(["node", str(copy), *args], {})))

    async def claude(self, gateway: Any, prompt: str, *options: str) -> Any:
        """Claude Code's own account of a run with one prompt."""
        ran = await self._run(self.claude_command(gateway, prompt, *options))
        assert ran.code == 0, ran.out + ran.err
        return json.loads(ran.out)

    async def claude_blocks(self, gateway: Any, blocks: list[Any]) -> Any:
        """As `claude`, for one turn of the user of any blocks, which its command line cannot hold."""
        turn = {"type": "user", "message": {"role": "user", "content": blocks}}
        formats = [f"--{way}-format=stream-json" for way in ("input", "output")]
        command = self.claude_command(gateway, "", *formats, "--verbose")
        ran = await self._run(command._replace(told=json.dumps(turn).encode() + b"\n"))
        assert ran.code == 0, ran.out + ran.err
        return json.loads(ran.out.splitlines()[-1])

    def claude_command(self, gateway: Any, prompt: str, *options: str) -> Command:
        """Claude Code with one prompt."""
        words = ["claude", "-p", prompt, "--allowedTools", "Bash", "--output-format", "json"]
        environ = {
            "ANTHROPIC_BASE_URL": gateway.endpoint,
            "ANTHROPIC_API_KEY": "none",
            "DISABLE_TELEMETRY": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        return Command([*words, *options], environ)

    async def codex(self, gateway: Any, prompt: str, *options: str, **how: str) -> str:
        """What Codex says at the end of a run with one prompt."""
        ran = await self._run(self.codex_command(gateway, prompt, *options, **how))
        assert ran.code == 0, ran.out + ran.err
        return ran.out

    def codex_command(
        self, gateway: Any, prompt: str, *options: str, model: str = "gpt-none"
    ) -> Command:
        """Codex with one prompt."""
        provider = {
            "name": '"cortex"',
            "base_url": f'"{gateway.endpoint}/v1"',
            "env_key": '"KEY"',
            "wire_api": '"responses"',
            "supports_websockets": "true",
        }
        settings = [
            'model_provider="cortex"',
            *(f"model_providers.cortex.{name}={value}" for name, value in provider.items()),
            "check_for_update_on_startup=false",
            "analytics.enabled=false",
        ]
        words = [
            *("codex", "exec", prompt, "--skip-git-repo-check"),
            "--dangerously-bypass-approvals-and-sandbox",
            *(word for setting in settings for word in ("-c", setting)),
            *("-m", model, *options),
        ]
        return Command(words, {"KEY": "none"})

    @asynccontextmanager
    async def running(self, command: Command) -> AsyncIterator[asyncio.subprocess.Process]:
        """An installed command while it runs; it is killed at the end."""
        name, *args = command.words
        words = [str(HOME / "node_modules" / ".bin" / name), *args]
        process = await self._start(command._replace(words=words))
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def _run(self, command: Command) -> Ran:
        async with self.running(command) as process:
            return await self._finish(process, command.told)

    async def _finish(self, process: asyncio.subprocess.Process, told: bytes = b"") -> Ran:
        try:
            async with asyncio.timeout(RUN_S):
                out, err = await process.communicate(told or None)
        except BaseException:
            process.kill()
            await process.wait()
            raise
        code = process.returncode
        assert code is not None
        return Ran(code, out.decode(), err.decode())

    async def _start(self, command: Command) -> asyncio.subprocess.Process:
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        return await asyncio.create_subprocess_exec(
            *command.words,
            stdin=pipe if command.told else nothing,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **command.environ},
        )


@pytest.fixture
def agents(tmp_path: Path) -> Agents:
    if not (HOME / "made-from").exists():
        if os.environ.get("CI") == "true":
            raise RuntimeError(
                "the packages of tests/agents are not installed: tools/nox -s agents"
            )
        pytest.skip("not run: tools/nox -s agents installs what it needs")
    return Agents(tmp_path)
