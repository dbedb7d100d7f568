"""Cameras, and the bodies before them: what an avatar is posed and drawn by."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from visa.networks.body import BodyParams


@dataclass(frozen=True)
class Camera:
    """Pinhole cameras of square pictures.

    Attributes:
        intrinsics: `[...,3,3]` px of the picture, pixel centres at +0.5.
        world_to_camera: `[...,4,4]` OpenCV (x right, y down, z forward).
        size: px, side of the picture.
    """

    intrinsics: Tensor
    world_to_camera: Tensor
    size: int

    def places(self, means: Tensor) -> Tensor:
        """Where `means [...,N,3]` lie in the picture: `[...,N,2]` as `grid_sample` counts."""
        return image_places(means, self.intrinsics, self.world_to_camera, (self.size, self.size))

    def resized(self, size: int) -> Self:
        """The same, for pictures of `size` px."""
        return replace(self, intrinsics=resized_intrinsics(self.intrinsics, size / self.size), size=size)


@dataclass(frozen=True)
class View(Camera):
    """Cameras and the bodies that they see.

    Attributes:
        body: parameters `[...]`.
    """

    body: BodyParams


def resized_intrinsics(intrinsics: Tensor, factor: float) -> Tensor:
    """`[...,3,3]` of a picture whose sides are `factor` times as long; pixel centres lie at +0.5 in both."""
    return intrinsics * intrinsics.new_tensor([factor, factor, 1.0])[:, None]


def image_places(means: Tensor, intrinsics: Tensor, world_to_camera: Tensor, size: tuple[int, int]) -> Tensor:
    """Where `means [...,N,3]` lie in a picture of `size` (height, width): `[...,N,2]` as `grid_sample` counts."""
    to_unit = means.new_tensor([2 / size[1], 2 / size[0], 1.0])
    onto = to_unit[:, None] * intrinsics @ world_to_camera[..., :3, :]  # one product for all points, not one a step
    places = means @ onto[..., :3].mT + onto[..., None, :, 3]
    return places[..., :2] / places[..., 2:].clamp_min(1e-3) - 1
