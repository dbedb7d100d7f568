"""Distillation of a few-step student: trajectory regression and distribution matching."""

from __future__ import annotations

import torch
from torch import Tensor


def ode_regression_loss(
    x0: Tensor, target: Tensor, counts: Tensor, channel_weight: Tensor, huber: float = 0.0
) -> Tensor:
    """Error of the student's x0 to the end of the teacher's trajectory (CausVid, arXiv:2412.07772).

    Args:
        x0, target: `[B,C,T,h,w]`.
        counts: `[B,T]` 1 for frames that were given noisy, 0 for frames that were given clean.
        channel_weight: `[C,1,1,1]`, see `BlockCodec.channel_weight`.
        huber: c of the pseudo-Huber error, as in `losses.flow.velocity_loss`; 0 is the squared error.

    Returns:
        the mean over the frames that count.
    """
    error = (x0 - target).square()
    if huber > 0:
        error = (error + huber**2).sqrt() - huber
    per_frame = (error * channel_weight).mean(dim=(1, 3, 4))
    return (per_frame * counts).sum() / counts.sum().clamp_min(1)


def distribution_matching_loss(x: Tensor, real_x0: Tensor, fake_x0: Tensor) -> Tensor:
    """Distribution matching (DMD2, arXiv:2405.14867; Self-Forcing, arXiv:2506.08009), unreduced `[B,C,T,h,w]`.

    `grad = (fake_x0 - real_x0) / mean|x - real_x0|`, loss `0.5 (x - sg(x - grad))^2`, whose gradient is `grad`.

    Args:
        x: the student's sample, with graph.
        real_x0: the teacher's estimate from the noised sample.
        fake_x0: the critic's estimate from the same.
    """
    with torch.no_grad():
        scale = (x - real_x0).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-6)
        target = x - (fake_x0 - real_x0) / scale
    return 0.5 * (x - target).square()
