# SPDX-License-Identifier: GPL-3.0-or-later
import asyncio
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cortex_cli.command import main
from cortex_cli.commands.serve import DEFAULT


def test_a_config_that_is_named_must_be_there(tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["serve", "--config", str(tmp_path / "none.toml")])
    assert answer.exit_code == 2
    assert answer.output == f"Error: The file {tmp_path / 'none.toml'} does not exist.\n"


@pytest.mark.slow
@pytest.mark.skipif(DEFAULT.exists(), reason="this machine has a gateway configured")
async def test_without_the_default_file_it_starts_with_defaults_and_says_so() -> None:
    ports = {
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:0",
        "CORTEX_GATEWAY__METRICS_LISTEN": "127.0.0.1:0",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cortex_cli", "serve"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **ports},
    )
    assert process.stderr is not None
    async with asyncio.timeout(30):
        assert (await process.stderr.readline()).startswith(f"There is no {DEFAULT}".encode())
        while b"gateway is up" not in await process.stderr.readline():
            assert process.returncode is None
        process.terminate()
        await process.stderr.read()
        assert await process.wait() == 0
