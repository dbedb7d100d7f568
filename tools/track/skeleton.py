"""The pose of joints that nothing shows, and vectors of rotations."""

from __future__ import annotations

import torch
from torch import Tensor

from visa.networks.joints import COLLARS, ELBOWS, SHOULDERS


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] to vectors [..., 3] (rad), for angles well below pi; differentiable at the
    identity.
    """
    skew = torch.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        -1,
    )  # 2 sin(angle) axis
    sine = ((skew * skew).sum(-1) + 1e-12).sqrt() / 2
    cosine = (matrix.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return skew * (torch.atan2(sine, cosine) / (2 * sine))[..., None]


def rest_pose() -> Tensor:
    """[21, 3] what unseen joints fall back to: standing, arms hanging a little away from the body."""
    pose = torch.zeros(21, 3)
    for side, (collar, shoulder, elbow) in zip((-1, 1), zip(COLLARS, SHOULDERS, ELBOWS, strict=True), strict=True):
        pose[collar - 1, 2] = 0.1 * side
        pose[shoulder - 1, 2] = 1.1 * side
        pose[elbow - 1, 1] = 0.2 * side
    return pose
