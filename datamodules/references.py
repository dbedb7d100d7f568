"""Which photos of a clip stand for its person in training, where they are few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from visa.datamodules.clip import Clip
from visa.networks.farthest import farthest_points

POSE_FIELDS = ("global_orient", "body_pose", "jaw_pose")


@dataclass(frozen=True)
class ReferencePhoto:
    """A photo that a run reads whole.

    Attributes:
        clip: of the person.
        frame: its number in the clip.
        resolution: side in pixels.
        is_mirrored: whether it is read as in a mirror.
    """

    clip: Clip
    frame: int
    resolution: int
    is_mirrored: bool


def choose_references(clip: Clip, count: int) -> np.ndarray:
    """At most `count` training frames of a clip, far apart in time and pose, ascending; a function of the track alone.

    Farthest points, from the photo that validation and test take. The squared distance of two frames is that of their
    times plus that of their axis angles, each in units of its own variance over the clip.
    """
    frames = clip.training_frames()
    angles = np.concatenate([clip.track[name][frames].reshape(len(frames), -1) for name in POSE_FIELDS], axis=1)
    points = np.concatenate([_unit_variance(frames[:, None]), _unit_variance(angles)], axis=1)
    first = int(np.flatnonzero(frames == clip.reference_frame())[0])
    return np.sort(frames[farthest_points(torch.from_numpy(points), count, first)])


def _unit_variance(values: np.ndarray) -> np.ndarray:
    """`[n,D]` with a mean squared distance of 1 from their mean; zeros where they are all the same."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    return centred / max(float(np.sqrt(np.square(centred).sum(axis=1).mean())), 1e-9)
