"""The record of a tracked photo."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visa.networks.body import BodyParams


@dataclass
class Photo:
    """A tracked photo: what reconstruction reads.

    Attributes:
        image: `[B,3,H,W]` in [0,1], matted over `background`.
        mask: `[B,1,H,W]` soft foreground.
        body: parameters `[B,...]`.
        intrinsics: `[B,3,3]` pixels.
        world_to_camera: `[B,4,4]` OpenCV.
        background: `[B,3]`.
    """

    image: Tensor
    mask: Tensor
    body: BodyParams
    intrinsics: Tensor
    world_to_camera: Tensor
    background: Tensor
