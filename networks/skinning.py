"""How Gaussians follow the body's joints, and what rides on triangles their corners."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.gaussians import Gaussians
from visa.networks.rotation import matrix_to_quaternion, quaternion_multiply

# B people, T frames, N Gaussians of the template, M loose ones, S on its surface.


def joint_turns(transforms: Tensor) -> Tensor:
    """Rotations of joints' transforms `[...,55,3,4]` as quaternions `[...,55,4]` of one half sphere, to be blended."""
    joints = matrix_to_quaternion(transforms[..., :3])
    # q and -q are one rotation: bring all to the pelvis's half sphere before blending.
    return joints * torch.where((joints * joints[..., :1, :]).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def blended_turn(skin_weights: Tensor, joints: Tensor) -> Tensor:
    """Rotation `[...,N,4]` of points with `skin_weights [...,N,55]`, of joints as `joint_turns` gives them."""
    if skin_weights.ndim == 2:  # one set of weights for all frames: one product, and points on the last, dense axis
        turns = F.linear(joints.mT, skin_weights)
        return (turns / turns.square().sum(-2, keepdim=True).sqrt().clamp_min(1e-12)).mT
    return F.normalize(skin_weights @ joints, dim=-1)


def blended_transforms(skin_weights: Tensor, transforms: Tensor) -> Tensor:
    """Transforms `[...,N,3,4]` of points with `skin_weights [...,N,55]`, from joints' `transforms [...,55,3,4]`."""
    return (skin_weights @ transforms.flatten(-2)).unflatten(-1, (3, 4))


def unposed(posed: Gaussians, skin_weights: Tensor, transforms: Tensor) -> Gaussians:
    """Take Gaussians `[B,M,...]` back to the T-pose: the inverse of what skinning will do to them.

    Args:
        posed: `[B,M,...]`.
        skin_weights: `[B,M,55]`.
        transforms: `[B,55,3,4]` of the joints, from the T-pose to the pose.
    """
    blended = blended_transforms(skin_weights, transforms)
    means = torch.linalg.solve(blended[..., :3], (posed.means - blended[..., 3])[..., None])[..., 0]
    turn = blended_turn(skin_weights, joint_turns(transforms))
    back = turn * turn.new_tensor([1, -1, -1, -1])
    return replace(posed, means=means, quats=quaternion_multiply(back, posed.quats))


def mix_corners(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    """Barycentric means `[B,T,S,D]` of `values [B,T,N,D]` at triangles' `corners [B,S,3]`, by `weights [B,S,3]`."""
    shape = (len(corners), values.shape[1], corners.shape[1], values.shape[-1])
    values = values.expand(len(corners), -1, -1, -1)
    mean = values.new_zeros(())
    for k in range(3):  # one corner after the other: all three at once would be thrice the memory
        index = corners[:, None, :, k, None].expand(shape)
        mean = mean + weights[:, None, :, k, None] * values.gather(2, index)
    return mean
