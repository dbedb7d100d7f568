"""Arms that a driving picture does not hold: the driven person keeps those of their own photo.

A close-up shows no elbow, and its tracker lays the arms at rest. Put on a person whose photo shows folded arms or
hands in the lap, that invented rest tears sleeves from the cloth that the photo shows. What the driver's picture holds
moves as it does there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visa.networks.body import BodyParams, rotation_matrices
from visa.networks.joints import ELBOWS, KNUCKLES, SHOULDERS, WRISTS
from visa.networks.rotation import axis_angle

HANDS = ("left_hand_pose", "right_hand_pose")
RIM = 0.08  # share of the picture's side within which what it holds fades out


def with_own_arms(driven: BodyParams, own: BodyParams, joints: Tensor, camera: Tensor) -> BodyParams:
    """The driver's pose, with a photo's own arms as far as the driver's picture does not hold them.

    Args:
        driven: `[T]`, the driver's pose.
        own: `[1]`, the photo's.
        joints: `[T,J,3]` of the driver, in the axes of the driver's camera.
        camera: `[T,3,3]` its intrinsics, px; the principal point is the middle of the picture.
    """
    pixels = joints @ camera.mT
    places = pixels[..., :2] / pixels[..., 2:].clamp_min(1e-3)
    middle = camera[:, None, :2, 2]
    border = (middle - (places - middle).abs()).amin(dim=-1) / (2 * middle.amin(dim=-1))  # a share, to the nearest side
    held = (border / RIM).clamp(0, 1)
    pose, hands = driven.body_pose.clone(), {}
    for shoulder, elbow, wrist, knuckle, name in zip(SHOULDERS, ELBOWS, WRISTS, KNUCKLES, HANDS, strict=True):
        # Each joint is told by what hangs on it.
        hand = held[:, knuckle]
        forearm = torch.maximum(held[:, wrist], hand)
        arm = torch.maximum(held[:, elbow], forearm)
        for joint, share in ((shoulder, arm), (elbow, forearm), (wrist, hand)):
            pose[:, joint - 1] = _between(own.body_pose[:, joint - 1], driven.body_pose[:, joint - 1], share)
        hands[name] = _between(getattr(own, name), getattr(driven, name), hand[:, None])
    return BodyParams(**{**vars(driven), "body_pose": pose, **hands})


def _between(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Rotations (rad) a `share [T,...]` of the shortest way from `first [1,...,3]` to `second [T,...,3]`."""
    start = rotation_matrices(first.expand_as(second))
    turn = axis_angle(start.mT @ rotation_matrices(second)) * share[..., None]
    return axis_angle(start @ rotation_matrices(turn))
