"""Where arms and hands are to be looked for: a start of the fit by inverse kinematics.

Points in the picture leave the depth of an elbow or a wrist open but for a sign: a bone of known length that looks
short points to the camera or away from it, and an optimiser that starts on the wrong side stays there. The detector's
relative depth tells the sign, the bone's length the amount. Elbows are hinges: upper arm and forearm span a plane, and
its normal says how the upper arm is twisted.

Letters in shapes: N frames; the second dimension of 2 is left, right.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Points of the detector's hand that the palm carries: wrist and the knuckles of index to little finger.
PALM = (0, 5, 9, 13, 17)
# Sine of the angle between upper arm and forearm below which, and above which, they do not, and do, span a plane.
_STRAIGHT, _BENT = 0.15, 0.4
_SIDES = ((1.0,), (-1.0,))  # the template's left arm points to +x, its right one to -x


class ArmPoints(NamedTuple):
    """What is seen of the arms; places are px to the right, px up, px towards the camera.

    arms: `[N,2,3,3]` shoulder, elbow, wrist. palm: `[N,2,5,3]` see `PALM`. has_palm: `[N,2]` bool. scale: `[N]` px a
    metre where the person is.
    """

    arms: Tensor
    palm: Tensor
    has_palm: Tensor
    scale: Tensor


class RestArms(NamedTuple):
    """The template's arms in its rest pose, m. joints: `[2,3,3]` shoulder, elbow, wrist. palm: `[2,5,3]`."""

    joints: Tensor
    palm: Tensor


def bone_directions(points: ArmPoints, rest: RestArms) -> Tensor:
    """Unit vectors `[N,2,2,3]` of upper arm and forearm in the camera's axes (y up, z towards the camera).

    The depth of a bone is what its length leaves of it, with the sign that the detector gives.
    """
    seen = points.arms.diff(dim=2)
    length = rest.joints.diff(dim=1).norm(dim=-1) * points.scale[:, None, None]  # [N,2,2] px
    flat = seen[..., :2]
    depth = (length.square() - flat.square().sum(-1)).clamp_min(0).sqrt()
    return F.normalize(torch.cat([flat, (depth * torch.sign(seen[..., 2]))[..., None]], dim=-1), dim=-1)


def _frames(along: Tensor, up: Tensor) -> Tensor:
    """Right-handed frames `[...,3,3]` whose columns are `along`, `up` made orthogonal to it, and their product."""
    x = F.normalize(along, dim=-1)
    y = F.normalize(up - (up * x).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


def _shortest(start: Tensor, end: Tensor) -> Tensor:
    """The rotation `[...,3,3]` by the smallest angle that takes unit vectors `start` to `end` (not opposite ones)."""
    axis = torch.linalg.cross(start, end)
    cosine = (start * end).sum(-1)[..., None, None].clamp_min(-0.999)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    return torch.eye(3) + skew + skew @ skew / (1 + cosine)


def _about(axis: int, angle: Tensor) -> Tensor:
    """Rotations `[...,3,3]` by `angle [...]` rad about x (0) or y (1)."""
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (
        [one, zero, zero, zero, cosine, -sine, zero, sine, cosine]
        if axis == 0
        else [cosine, zero, sine, zero, one, zero, -sine, zero, cosine]
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def rigid_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Rotations `[...,3,3]` that bring points `source [...,P,3]` nearest to `target [...,P,3]` (Kabsch 1976)."""
    both = (source - source.mean(-2, keepdim=True)).mT @ (target - target.mean(-2, keepdim=True))
    u, _, vh = torch.linalg.svd(both)
    flip = torch.ones_like(u[..., 0])
    flip[..., 2] = torch.det(vh.mT @ u.mT).sign()
    return vh.mT @ (flip[..., None] * u.mT)


def arm_rotations(points: ArmPoints, rest: RestArms, collar: Tensor) -> Tensor:
    """Local rotation matrices `[N,2,3,3,3]` of shoulder, elbow and wrist that lay the template's arms on what is seen.

    Args:
        points: seen.
        rest: the template.
        collar: `[N,2,3,3]` the parents' rotations in the world.
    """
    side = torch.tensor(_SIDES)  # [2,1]
    upper, fore = bone_directions(points, rest).unbind(dim=2)
    bones = rest.joints.diff(dim=1)
    base = F.normalize(bones[:, 0], dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0])
    # As the collar holds the arm, turned by the smallest angle: what a straight arm's twist falls back to.
    plain = (_shortest((collar @ base[..., None])[..., 0], upper) @ collar) @ up
    normal = torch.linalg.cross(fore, upper) * side
    sine = normal.norm(dim=-1, keepdim=True)
    share = ((sine - _STRAIGHT) / (_BENT - _STRAIGHT)).clamp(0, 1)
    axis = share * normal / sine.clamp_min(1e-6) + (1 - share) * plain
    shoulder = _frames(upper, axis) @ _frames(base, up.expand_as(base)).mT
    angle = torch.atan2(sine[..., 0], (upper * fore).sum(-1))
    bend = _about(1, -side[:, 0] * angle)
    if not points.has_palm.any():
        twist = torch.zeros_like(angle)
        turn = torch.eye(3).expand_as(bend)
    else:
        hand = rigid_rotation(rest.palm.expand_as(points.palm), points.palm)
        turn = (shoulder @ bend).mT @ hand  # of the hand in the forearm
        twist = torch.atan2(turn[..., 2, 1] - turn[..., 1, 2], turn[..., 1, 1] + turn[..., 2, 2])
        twist = torch.where(points.has_palm, twist, 0.0)
        turn = torch.where(points.has_palm[..., None, None], turn, torch.eye(3))
    # Half of the hand's twist lies in the forearm: skin that turned at the wrist alone would be wrung.
    half = _about(0, twist / 2)
    return torch.stack([collar.mT @ shoulder, bend @ half, half.mT @ turn], dim=2)
