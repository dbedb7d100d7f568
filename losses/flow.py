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


def velocity_loss(
    velocity: Tensor, x0: Tensor, noise: Tensor, level: Tensor, floor: float = 0.0, huber: float = 0.0
) -> Tensor:
    """Error to `e - x0`, squared or pseudo-Huber, unreduced `[B,C,T,h,w]`.

    The velocity's error is that of x0 divided by s. A network that predicts x0 is therefore judged by single windows
    near s = 0, thousands of times over; below `floor` the error counts as if it were divided by `floor` instead.
    Squares let the few blocks that nobody can foresee (a hand that is not tracked) outweigh all others, whose error is
    then left as noise; `sqrt(d^2 + c^2) - c` does not (Song and Dhariwal 2023, arXiv:2310.14189, eq. 7).

    Args:
        velocity, x0, noise: `[B,C,T,h,w]`.
        level: s `[B,T]`.
        floor: smallest divisor; 0 is the plain loss.
        huber: c; 0 is the squared error, of which flow matching is the exact minimiser.
    """
    error = velocity - (noise - x0)
    if floor > 0:
        error = error * (level / level.clamp_min(floor))[:, None, :, None, None]
    if huber > 0:
        return (error.square() + huber**2).sqrt() - huber
    return error.square()
