"""Rectified flow: noise levels, noising and the velocity loss (Liu et al. 2022, arXiv:2209.03003)."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_levels(level: Tensor, shift: float) -> Tensor:
    """Move noise levels in [0,1] toward 1: `shift s / (1 + (shift - 1) s)` (arXiv:2403.03206, eq. 23)."""
    return shift * level / (1 + (shift - 1) * level)


def sample_levels(shape: tuple[int, ...], shift: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Shifted uniform noise levels in (0,1]."""
    uniform = 1 - torch.rand(shape, generator=generator).to(device)
    return shift_levels(uniform, shift)


def add_noise(x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """`x_s = (1 - s) x0 + s e`: `x0`, `noise` `[B,C,T,h,w]`, `level [B,T]`."""
    s = level[:, None, :, None, None]
    return (1 - s) * x0 + s * noise


def velocity_loss(velocity: Tensor, x0: Tensor, noise: Tensor, level: Tensor, floor: float = 0.0) -> Tensor:
    """Squared error to `e - x0`, unreduced `[B,C,T,h,w]`.

    The velocity's error is that of x0 divided by s. A network that predicts x0 is therefore judged by single windows
    near s = 0, thousands of times over; below `floor` the error counts as if it were divided by `floor` instead.

    Args:
        velocity, x0, noise: `[B,C,T,h,w]`.
        level: s `[B,T]`.
        floor: smallest divisor; 0 is the plain loss.
    """
    weight = (level / level.clamp_min(floor))[:, None, :, None, None].square() if floor > 0 else 1.0
    return (velocity - (noise - x0)).square() * weight
