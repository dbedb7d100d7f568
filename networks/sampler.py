"""Many-step sampling of the bidirectional shader: Euler steps along the flow, whole window at once.

Shapes as in `networks/shader`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from visa.networks.shader import Prediction, ShaderCondition, VideoShader


def shifted_levels(num_steps: int, shift: float) -> list[float]:
    """`num_steps` + 1 noise levels from 1 down to 0: s = shift t / (1 + (shift - 1) t) for even t (SD3, eq. 23)."""
    times = [1 - step / num_steps for step in range(num_steps + 1)]
    return [shift * time / (1 + (shift - 1) * time) for time in times]


def with_unconditional(condition: ShaderCondition, guidance: float) -> ShaderCondition:
    """Double the batch with a fully dropped copy where `guidance` is on; conditions first."""
    return condition if guidance == 1.0 else ShaderCondition.cat([condition, condition.drop()])


def guided(prediction: Prediction, guidance: float) -> Prediction:
    """Classifier-free guidance over a doubled batch `[2B,...]` -> `[B,...]`: u + w (c - u), so w = 1 is off.

    Papers that write c + w' (c - u) mean w = w' + 1. x0 is affine in the velocity, so both are combined alike.
    """
    if guidance == 1.0:
        return prediction

    def combine(both: Tensor) -> Tensor:
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return Prediction(combine(prediction.velocity), combine(prediction.x0))


def integrate(
    shader: VideoShader,
    condition: ShaderCondition,
    levels: Sequence[float],
    noise: Tensor,
    guidance: float = 1.0,
) -> Iterator[tuple[float, Tensor]]:
    """Euler's method from `noise` `[B,C,T,h,w]` through falling `levels`; yields (level, state), the start included."""
    condition = with_unconditional(shader.encode_condition(condition), guidance)
    state = noise
    yield levels[0], state
    for level, lower in pairwise(levels):
        doubled = state if guidance == 1.0 else torch.cat([state, state])
        frame_levels = torch.full((doubled.shape[0], doubled.shape[2]), level, device=noise.device)
        prediction = guided(shader(doubled, frame_levels, condition), guidance)
        # The last step takes x0 as it is: exact at s = 0, whatever the velocity's clamp.
        state = prediction.x0 if lower == 0 else state + (lower - level) * prediction.velocity
        yield lower, state


@torch.no_grad()
def sample_bidirectional(
    shader: VideoShader,
    condition: ShaderCondition,
    num_steps: int = 50,
    shift: float = 5.0,
    generator: torch.Generator | None = None,
    guidance: float = 1.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Paint a whole clip -> latents `[B,C,T,h,w]`; `noise` has that shape, or is drawn from `generator`."""
    if noise is None:
        noise = draw_noise(condition.guide, generator)
    *_, (_, latents) = integrate(shader, condition, shifted_levels(num_steps, shift), noise, guidance)
    return latents


def draw_noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of `like`'s shape, drawn on the generator's device."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
