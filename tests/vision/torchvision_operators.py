# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets a torchvision that was built for another torch be imported, which vLLM's vision models want.

Its compiled operators do not load; it then still names two of them in Python, and fails since nobody has declared
them. They are declared here, and never called: what vLLM uses of torchvision is written in Python. Imported by
every interpreter of the session `vision`, through a .pth file.
"""

import importlib.abc
import sys
from typing import Any

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _Declare(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators the first time that somebody looks for torchvision."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        self.library = torch.library.Library("torchvision", "FRAGMENT")  # gone with its object
        for operator in _OPERATORS:
            self.library.define(operator)
        _KEPT.append(self)


_KEPT: list[_Declare] = []
sys.meta_path.insert(0, _Declare())
