"""Turns of head and arms on top of a pose: what sliders, phones and trackers give beside blendshapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from visa.networks.body import BodyParams, rotation_matrices
from visa.networks.rotation import axis_angle

NECK, HEAD = 12, 15  # SMPL-X joints; row j - 1 of `body_pose`
# Name: joint, axis in its own axes, sign. The left arm points to +x in the T-pose, the right one to -x.
ARMS: dict[str, tuple[int, int, float]] = {
    "left arm up": (16, 2, 1.0),
    "left arm forward": (16, 1, -1.0),
    "left elbow": (18, 1, -1.0),
    "right arm up": (17, 2, -1.0),
    "right arm forward": (17, 1, 1.0),
    "right elbow": (19, 1, 1.0),
}


def turned_head(base: BodyParams, turn: Tensor) -> BodyParams:
    """Poses `[t]`, the head turned on by rotation vectors `turn [t,3]`, half of it in the neck.

    x nods down, y looks to the person's left, z leans to the right ear.
    """
    half = rotation_matrices(turn / 2)
    pose = base.body_pose.clone()
    for joint in (NECK, HEAD):
        pose[:, joint - 1] = axis_angle(rotation_matrices(pose[:, joint - 1]) @ half)
    return replace(base, body_pose=pose)


def moved_arms(base: BodyParams, angles: Mapping[str, float]) -> BodyParams:
    """Poses `[t]` with joints of ARMS turned on by `angles` rad."""
    pose = base.body_pose.clone()
    for name, angle in angles.items():
        joint, axis, sign = ARMS[name]
        turn = torch.zeros(3)
        turn[axis] = sign * angle
        pose[:, joint - 1] = axis_angle(rotation_matrices(pose[:, joint - 1]) @ rotation_matrices(turn))
    return replace(base, body_pose=pose)
