# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a model's weights are."""

from pathlib import Path

from cortex_core.errors import LoadRefusedError

MIB = 1024 * 1024

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


def weights_mb(folder: Path, model: str) -> int:
    """MiB of the weights, as their files are large.

    Raises:
        LoadRefusedError: `empty_repo`: there are none.
        OSError: one cannot be looked at.
    """
    sizes = [file.stat().st_size for pattern in _WEIGHTS for file in folder.glob(pattern)]
    if not sizes:
        raise LoadRefusedError(
            model=model,
            load_kind="empty_repo",
            reason=f"{folder} has no weights ({', '.join(_WEIGHTS)})",
            suggestion="Fetch the model's files again.",
        )
    return -(-sum(sizes) // MIB)
