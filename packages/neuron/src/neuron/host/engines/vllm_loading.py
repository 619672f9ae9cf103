# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of a model's weights has been read, told by the process that reads them.

vLLM tells it to a terminal only. Like `vllm_library`, this holds names that vLLM promises nothing about.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from vllm.model_executor.model_loader import default_loader

_READ = default_loader.safetensors_weights_iterator
# Of the whole, what is worth a word.
STEP_RATIO = 0.01


def tell_ratio(tell: Callable[[float], None]) -> None:
    """Have it told while safetensors files are read from now on, in this process and those forked from it.

    Of several ranks the first tells. One that is spawned does not, nor does a loader of another kind: then nothing is told.
    """

    @functools.wraps(_READ)
    def read(files: Sequence[str], *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        total = sum(Path(file).stat().st_size for file in files)
        done, told = 0, 0.0
        for name, tensor in _READ(files, *args, **kwargs):
            yield name, tensor
            done += tensor.nbytes
            ratio = min(1.0, done / total)
            if ratio - told >= STEP_RATIO and _is_first_rank():
                told = ratio
                tell(round(ratio, 3))

    default_loader.safetensors_weights_iterator = read


def _is_first_rank() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
