"""Rotations as unit quaternions, w first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def axis_angle(matrix: Tensor) -> Tensor:
    """Rotation matrices `[...,3,3]` to vectors `[...,3]`, rad, of up to a whole turn about their axis."""
    quaternion = matrix_to_quaternion(matrix)
    angle = 2 * torch.atan2(quaternion[..., 1:].norm(dim=-1), quaternion[..., 0])
    return F.normalize(quaternion[..., 1:], dim=-1) * angle[..., None]
