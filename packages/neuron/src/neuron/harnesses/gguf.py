# SPDX-License-Identifier: GPL-3.0-or-later
"""Can engines read GGUF files, and which one of a model's? vLLM leaves them to a plugin, which computes on GPUs only."""

import asyncio
import importlib.metadata
import sys
from pathlib import Path

from cortex_core.control import ModelSpec
from neuron.weights.cache import names_in
from neuron.weights.choosing import PLUGIN, choose_gguf, needs_base, refuse_gguf
from neuron.weights.refusals import WeightsError

_ASK = f"import importlib.metadata; importlib.metadata.version({PLUGIN!r})"
# An interpreter on a network's file system comes up in seconds.
ASK_S = 30.0


async def reads_gguf(platform: str, python: str) -> bool:
    """Whether engines that run on the platform, by that interpreter, have the plugin and can use it."""
    if platform != "cuda":
        return False
    if python != sys.executable:
        return await _says(python)
    try:
        importlib.metadata.version(PLUGIN)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


async def _says(python: str) -> bool:
    """By an interpreter that is not ours; where it cannot be started, the load itself tells why."""
    none = asyncio.subprocess.DEVNULL
    try:
        asking = await asyncio.create_subprocess_exec(
            *(python, "-c", _ASK), stdin=none, stdout=none, stderr=none
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(ASK_S):
            return await asking.wait() == 0
    except TimeoutError:
        return False
    finally:
        if asking.returncode is None:
            asking.kill()
            await asking.wait()


def find_gguf(spec: ModelSpec, folder: Path, *, can_read: bool) -> list[str]:
    """The GGUF files, all parts of one, that the spec means of a model's folder; empty: it is of another form. Blocks.

    Raises:
        LoadRefusedError: engines cannot read them, or what goes with them is not there. `quant_not_found`.
    """
    try:
        names = names_in(folder)
        chosen = choose_gguf(names, spec.quant)
        if chosen is None or chosen.gguf is None:
            return []
        if not can_read:
            raise refuse_gguf(chosen.gguf.tag)
        if needs_base(chosen):
            raise WeightsError(
                "empty_repo",
                f"beside its GGUF ({chosen.gguf.tag}) in {folder} are no configuration and tokenizer, and where to get "
                "them is not known",
                "Put config.json and the tokenizer's files of the model that it was made from beside it, in a directory "
                "of `model_dirs`.",
            )
        return chosen.gguf.files
    except WeightsError as error:
        raise error.refuse(spec.model_id) from None
