"""The record of a tracked photo."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from visa.networks.body import BodyParams
from visa.networks.view import View, image_places, resized_intrinsics


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

    def view(self) -> View:
        """The photo's own pose and camera as one frame, `[B,1,...]`; the photo is square."""
        body = self.body.map(lambda value: value[:, None])
        return View(self.intrinsics[:, None], self.world_to_camera[:, None], self.image.shape[-1], body)

    def resized(self, size: int) -> Photo:
        """The square photo at `size` px: means over its pixels."""
        if size == self.image.shape[-1]:
            return self
        image, mask = (F.interpolate(picture, (size, size), mode="area") for picture in (self.image, self.mask))
        intrinsics = resized_intrinsics(self.intrinsics, size / self.image.shape[-1])
        return replace(self, image=image, mask=mask, intrinsics=intrinsics)

    def places(self, means: Tensor) -> Tensor:
        """Where `means [B,N,3]` lie in the photo: `[B,N,2]` as `grid_sample` counts."""
        size = (self.image.shape[-2], self.image.shape[-1])
        return image_places(means, self.intrinsics, self.world_to_camera, size)
