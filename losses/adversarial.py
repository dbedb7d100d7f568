"""Adversarial losses on logits, unreduced, and zero-centred gradient penalties by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Pairing = Literal["relativistic", "hinge", "non_saturating"]


def discriminator_loss(real: Tensor, fake: Tensor, pairing: Pairing) -> Tensor:
    """Loss of the discriminator, of the logits' shape.

    relativistic: `softplus(-(D(real) - D(fake)))` (R3GAN, arXiv:2501.05441, eq. 3); hinge: `max(0, 1 - D(real)) +
    max(0, 1 + D(fake))`;
    non_saturating: `softplus(-D(real)) + softplus(D(fake))`.
    """
    if pairing == "relativistic":
        return F.softplus(fake - real)
    if pairing == "hinge":
        return F.relu(1 - real) + F.relu(1 + fake)
    if pairing == "non_saturating":
        return F.softplus(-real) + F.softplus(fake)
    raise ValueError(f"pairing '{pairing}' is unknown: choose relativistic, hinge or non_saturating")


def generator_loss(real: Tensor, fake: Tensor, pairing: Pairing) -> Tensor:
    """Loss of the generator, of the logits' shape; only the relativistic one looks at `real`."""
    if pairing == "relativistic":
        return F.softplus(real - fake)
    if pairing == "hinge":
        return -fake
    if pairing == "non_saturating":
        return F.softplus(-fake)
    raise ValueError(f"pairing '{pairing}' is unknown: choose relativistic, hinge or non_saturating")


def approximate_penalty(
    judge: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, noise: Tensor, sigma: float = 0.01
) -> Tensor:
    """`(D(x) - D(x + sigma n))^2 / sigma^2` a sample (APT, arXiv:2501.08316, eq. 4): R1 on real and R2 on fake input.

    Its mean over noise tends to the squared norm of the gradient as sigma goes to 0, without second derivatives.

    Args:
        judge: input to logits `[B,...]`.
        x: `[B,...]`.
        logits: `judge(x)`.
        noise: standard normal, of x's shape.
        sigma: step, in latent units.

    Returns:
        `[B]`: the sum over a sample's logits.
    """
    difference = (logits - judge(x + sigma * noise)) / sigma
    return difference.flatten(1).square().sum(dim=1)


def logit_accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """Share of pairs in which the real clip got the larger logit."""
    return (real > fake).float().mean()
