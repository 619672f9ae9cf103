# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator gets wrong ends the command with exit code 2 and one clear message."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DAEMONS = {"gateway": ["cortex_cli", "serve"], "neuron": ["neuron", "serve"]}


def run(daemon: str, *args: str) -> tuple[int, str]:
    command = [sys.executable, "-m", *DAEMONS[daemon], *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("daemon", "text", "message"),
    [
        (
            "gateway",
            "[gateway]\nlistn = 'x'\n",
            "line 2: unknown key `gateway.listn`. Did you mean `listen`?",
        ),
        ("gateway", "[gateway]\nlisten = 'here'\n", "here"),
        ("gateway", "[gateway]\npolicy = 'fastest'\n", "fastest"),
        ("gateway", "[[neurons]]\nname = 'a'\n", "lacks the key `endpoint`"),
        ("gateway", "[[neurons]]\nname = 'a'\nendpoint = 'nonsense'\n", "nonsense"),
        ("gateway", "[gateway\n", "is not valid TOML"),
        ("neuron", "prot = 3\n", "line 1: unknown key `prot`. Did you mean `port`?"),
        ("neuron", "port = 'x'\n", "line 1: `port`"),
        ("neuron", "[[harnesses]]\nname = 'llama'\n", "llama"),
    ],
)
def test_a_mistake_in_the_config_is_named(
    tmp_path: Path, daemon: str, text: str, message: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    code, err = run(daemon, "--config", str(path))
    assert code == 2
    assert message in err
    assert "config.toml" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[[models]]\nid = 'm'\nvram = 3\n",
            "line 3: unknown key `models[0].vram`. Did you mean `vram_mb`?",
        ),
        ("[[models]]\nid = 'm'\n[[models]]\nid = 'm'\n", "'m'"),
        ("[[models]]\nid = 'm'\nmin_devices = 'two'\n", "line 3: `models[0].min_devices`"),
    ],
)
def test_an_invalid_catalogue_stops_the_start_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "models.toml").write_text(text)
    (tmp_path / "cortex.toml").write_text("")
    code, err = run("gateway", "--config", str(tmp_path / "cortex.toml"))
    assert code == 2
    assert message in err
    assert "models.toml" in err


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_missing_file_is_named(tmp_path: Path, daemon: str) -> None:
    code, err = run(daemon, "--config", str(tmp_path / "none.toml"))
    assert code == 2
    assert "none.toml does not exist" in err


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_port_in_use_is_named(tmp_path: Path, daemon: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = {
            "gateway": f"[gateway]\nlisten = '127.0.0.1:{port}'\nmetrics_listen = '127.0.0.1:0'\n",
            "neuron": f"listen = '127.0.0.1'\nport = {port}\n[[harnesses]]\nname = 'echo'\n",
        }
        (tmp_path / "config.toml").write_text(text[daemon])
        code, err = run(daemon, "--config", str(tmp_path / "config.toml"))
    assert code == 2
    assert f"127.0.0.1:{port} is in use" in err
