"""Gaussians and the avatar: canonical Gaussians on the template, posed by skinning, splatted to a camera."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.body import BodyModel, BodyParams
from networks.precision import full_precision
from networks.rasterizer import rasterize

# B people, T frames, N Gaussians, C feature channels.


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


@dataclass
class SplatMaps:
    """What one rasterization gives, `[B,T,...]`.

    Attributes:
        rgb: `[B,T,3,H,W]` over the background colour.
        alpha: `[B,T,1,H,W]`.
        features: `[B,T,C,H,W]`, premultiplied by alpha.
    """

    rgb: Tensor
    alpha: Tensor
    features: Tensor

    def condition(self) -> Tensor:
        """`[B,T,C+4,H,W]`: features, RGB in [-1,1] and alpha, the shader's condition maps."""
        return torch.cat([self.features, self.rgb * 2 - 1, self.alpha], dim=2)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of quaternions `[...,4]`, w first."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Rotation matrices `[...,3,3]` to unit quaternions `[...,4]`, w first.

    Of the four equivalent formulas the one with the largest divisor is taken, so that none divides by zero.
    """
    m = matrix
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    squares = torch.stack([trace, 2 * m[..., 0, 0] - trace, 2 * m[..., 1, 1] - trace, 2 * m[..., 2, 2] - trace], dim=-1)
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    p, q, r = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    w, x, y, z = (1 + squares).unbind(-1)
    candidates = torch.stack(
        [
            torch.stack([w, a, b, c], dim=-1),
            torch.stack([a, x, p, q], dim=-1),
            torch.stack([b, p, y, r], dim=-1),
            torch.stack([c, q, r, z], dim=-1),
        ],
        dim=-2,
    )
    best = squares.argmax(dim=-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    return F.normalize(candidates.gather(-2, best)[..., 0, :], dim=-1)


@dataclass(frozen=True)
class Avatar:
    """A person's canonical Gaussians, `[B,...]`: the record that one photo gives.

    `runtime.avatar_files` saves and loads it; `runtime.splat_files` exports Gaussians for other viewers.

    Attributes:
        gaussians: in the T-pose with the person's shape and a neutral expression.
        betas: `[B,10]` the person's shape.
        vertex_ids: `[N]` the template vertex that carries each Gaussian.
        background: `[B,3]` colour behind the person.
    """

    gaussians: Gaussians
    betas: Tensor
    vertex_ids: Tensor
    background: Tensor
    # The body model that posed the avatar last, and its vertices that carry Gaussians: cut out once, not at every call.
    _carriers: list[tuple[BodyModel, BodyModel]] = field(default_factory=list, init=False, repr=False, compare=False)

    def _carrier(self, body: BodyModel) -> BodyModel:
        """The part of `body` that carries the Gaussians, one vertex each."""
        if not self._carriers or self._carriers[0][0] is not body:
            self._carriers[:] = [(body, body.subset(self.vertex_ids))]
        return self._carriers[0][1]

    @full_precision
    def pose(self, body: BodyModel, params: BodyParams) -> Gaussians:
        """Move the Gaussians by expression and skinning.

        Means follow the blended affine transforms (as LBS moves vertices); rotations follow the blended joint
        quaternions.

        Args:
            body: the body model.
            params: `[B,T,...]`; their betas are replaced by the avatar's own.

        Returns:
            Gaussians `[B,T,...]`.
        """
        batch, frames = params.expression.shape[:2]
        carrier, canonical = self._carrier(body), self.gaussians
        shaped = replace(params, betas=self.betas[:, None].expand(batch, frames, -1))
        means, transforms = carrier.carry(canonical.means[:, None], shaped)
        joints = matrix_to_quaternion(transforms[..., :3])  # [B,T,55,4]
        # q and -q are one rotation: bring all to the pelvis's half sphere before blending.
        sign = torch.where((joints * joints[..., :1, :]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        turn = F.normalize(carrier.lbs_weights @ (joints * sign), dim=-1)
        quats = quaternion_multiply(turn, canonical.quats[:, None])

        def repeat(value: Tensor) -> Tensor:
            return value[:, None].expand(batch, frames, *value.shape[1:])

        return Gaussians(
            means=means,
            quats=quats,
            scales=repeat(canonical.scales),
            opacities=repeat(canonical.opacities),
            colors=repeat(canonical.colors),
            features=repeat(canonical.features),
        )

    def render(
        self, body: BodyModel, params: BodyParams, intrinsics: Tensor, world_to_camera: Tensor, size: int
    ) -> SplatMaps:
        """Pose and splat.

        Args:
            body: the body model.
            params: `[B,T,...]`.
            intrinsics: `[B,T,3,3]` pixels of the `size` x `size` picture.
            world_to_camera: `[B,T,4,4]` OpenCV.
            size: side of the picture in pixels.
        """
        return splat(self.pose(body, params), intrinsics, world_to_camera, size, self.background)


@full_precision
def splat(
    gaussians: Gaussians, intrinsics: Tensor, world_to_camera: Tensor, size: int, background: Tensor
) -> SplatMaps:
    """Rasterize `[B,T]` sets of Gaussians; colours are laid over `background [B,3]`."""
    batch, frames = gaussians.means.shape[:2]
    channels = torch.cat([gaussians.colors, gaussians.features], dim=-1)
    result = rasterize(
        gaussians.means.flatten(0, 1),
        gaussians.quats.flatten(0, 1),
        gaussians.scales.flatten(0, 1),
        gaussians.opacities.flatten(0, 1),
        channels.flatten(0, 1),
        intrinsics.flatten(0, 1),
        world_to_camera.flatten(0, 1),
        width=size,
        height=size,
    )
    image = result.image.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    alpha = result.alpha.permute(0, 3, 1, 2).unflatten(0, (batch, frames))
    rgb = image[:, :, :3] + background[:, None, :, None, None] * (1 - alpha)
    return SplatMaps(rgb=rgb, alpha=alpha, features=image[:, :, 3:])
