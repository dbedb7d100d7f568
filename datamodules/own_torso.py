"""A torso that starts as the photo has it: the driver's turns and leans count from their first frame.

Where a driver leans or is turned to the side, the same lean put on somebody who sits straight uncovers what their photo
does not show, and tears sleeves from a chest that they lie on. The head is the driver's as the camera sees it, so that
one looks where the other looks; the photo's neck and head share what lies between.
"""

from __future__ import annotations

from torch import Tensor

from visa.networks.body import BodyParams, rotation_matrices
from visa.networks.joints import COLLARS, HEAD, NECK, SPINE
from visa.networks.rotation import axis_angle


def with_own_torso(driven: BodyParams, own: BodyParams) -> BodyParams:
    """The driver's pose with the photo's torso, moved as the driver's torso moves from its first frame on.

    Args:
        driven: `[T]`, the driver's pose in the world of the photo.
        own: `[1]`, the photo's.
    """
    pose = rotation_matrices(driven.body_pose)
    before, after = rotation_matrices(own.body_pose), pose.clone()
    spine = _chain(before, SPINE)
    torso = rotation_matrices(driven.global_orient) @ _chain(pose, SPINE)
    start = rotation_matrices(own.global_orient) @ spine
    moved = torso @ torso[:1].mT @ start  # in the world's axes
    for joint in SPINE:
        after[:, joint - 1] = before[:, joint - 1]
    for joint in COLLARS:
        after[:, joint - 1] = pose[:, joint - 1] @ pose[:1, joint - 1].mT @ before[:, joint - 1]
    between = moved.mT @ torso @ _chain(pose, (NECK, HEAD))
    neck, head = before[:, NECK - 1], before[:, HEAD - 1]
    half = rotation_matrices(axis_angle(neck.mT @ between @ head.mT) / 2)
    after[:, NECK - 1], after[:, HEAD - 1] = neck @ half, half.mT @ neck.mT @ between
    fields = {"body_pose": axis_angle(after), "global_orient": axis_angle(moved @ spine.mT)}
    return BodyParams(**{**vars(driven), **fields})


def _chain(pose: Tensor, joints: tuple[int, ...]) -> Tensor:
    """`[T,3,3]` rotations of joints one after the other, of `pose [T,21,3,3]`."""
    turn = pose[:, joints[0] - 1]
    for joint in joints[1:]:
        turn = turn @ pose[:, joint - 1]
    return turn
