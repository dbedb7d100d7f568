"""A pose that rests as the photo has it: the driver's turns and leans count from a frame in which they rest.

Where a driver leans or is turned to the side, the same lean put on somebody who sits straight uncovers what their photo
does not show, and tears sleeves from a chest that they lie on. A camera below the driver's eyes would tip every head
back, out of its collar. The photo's neck and head share what lies between torso and head.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from visa.networks.body import BodyParams, rotation_matrices
from visa.networks.joints import COLLARS, HEAD, NECK, SPINE
from visa.networks.rotation import axis_angle

Head = Literal["photo", "driver"]  # from where the turns of head and eyes count
HEAD_HELP = "photo: head and eyes turn from where the photo has them; driver: as the driver's do (default: photo)"


def with_own_pose(driven: BodyParams, own: BodyParams, head: Head = "photo") -> BodyParams:
    """The driver's pose with the photo's torso, head and gaze, moved as the driver's move from their rest on.

    Args:
        driven: `[T]`, the driver's pose in the world of the photo; the first is at rest.
        own: `[1]`, the photo's.
        head: "photo" lets head and gaze rest as the photo's, "driver" leaves them as the driver's: one looks where the
            other looks, as the camera sees it.
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
    turned, fields = torso @ _chain(pose, (NECK, HEAD)), {}
    if head == "photo":
        turned = turned @ turned[:1].mT @ start @ _chain(before, (NECK, HEAD))
        for name in ("leye_pose", "reye_pose"):
            gaze = rotation_matrices(getattr(driven, name))
            fields[name] = axis_angle(gaze @ gaze[:1].mT @ rotation_matrices(getattr(own, name)))
    between = moved.mT @ turned
    first, second = before[:, NECK - 1], before[:, HEAD - 1]
    half = rotation_matrices(axis_angle(first.mT @ between @ second.mT) / 2)
    after[:, NECK - 1], after[:, HEAD - 1] = first @ half, half.mT @ first.mT @ between
    fields |= {"body_pose": axis_angle(after), "global_orient": axis_angle(moved @ spine.mT)}
    return BodyParams(**{**vars(driven), **fields})


def head_turns(params: BodyParams) -> Tensor:
    """`[T,3,3]`, world axes of the head."""
    return rotation_matrices(params.global_orient) @ _chain(rotation_matrices(params.body_pose), (*SPINE, NECK, HEAD))


def _chain(pose: Tensor, joints: tuple[int, ...]) -> Tensor:
    """`[T,3,3]` rotations of joints one after the other, of `pose [T,21,3,3]`."""
    turn = pose[:, joints[0] - 1]
    for joint in joints[1:]:
        turn = turn @ pose[:, joint - 1]
    return turn
