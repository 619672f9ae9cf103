# SPDX-License-Identifier: GPL-3.0-or-later
from pathlib import Path

import pytest

from cortex_core.errors import LoadRefusedError
from neuron.harnesses.model_files import weights_mb


def test_weights_are_as_large_as_their_files(tmp_path: Path) -> None:
    with pytest.raises(LoadRefusedError) as caught:
        weights_mb(tmp_path, "m")
    assert caught.value.facts["load_kind"] == "empty_repo"
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1024 * 1024))
    (tmp_path / "model-2.safetensors").write_bytes(b"x")
    assert weights_mb(tmp_path, "m") == 2
