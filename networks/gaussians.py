"""3D Gaussians as a record of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# N Gaussians, C feature channels.


@dataclass(frozen=True)
class Gaussians:
    """3D Gaussians with leading shape [...].

    Attributes:
        means: `[...,N,3]` metres.
        quats: `[...,N,4]` unit quaternions, w first.
        scales: `[...,N,3]` standard deviations in metres.
        opacities: `[...,N]` in [0,1].
        colors: `[...,N,3]` RGB in [0,1].
        features: `[...,N,C]` 3D-aware features.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    features: Tensor

    def map(self, fn: Callable[[Tensor], Tensor]) -> Gaussians:
        """Apply `fn` to every tensor."""
        return Gaussians(**{name: fn(value) for name, value in vars(self).items()})


def concatenated(parts: list[Gaussians]) -> Gaussians:
    """Sets of Gaussians of one leading shape as one set."""
    names = vars(parts[0])
    axes = {name: -1 if name == "opacities" else -2 for name in names}
    return Gaussians(**{name: torch.cat([getattr(part, name) for part in parts], axes[name]) for name in names})
