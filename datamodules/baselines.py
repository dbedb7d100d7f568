"""What a table must beat: a frozen frame, and the nearest of the clip's other frames by pose."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visa.datamodules.clip import Clip
from visa.networks.body import BodyModel, BodyParams


def frozen_frame(clip: Clip, frames: np.ndarray) -> np.ndarray:
    """`[T]` one frame for every frame: the last one before the block that training may read.

    Of a person who never trains only the photo is known: there it is the reference frame.
    """
    if not clip.splits.train:
        return np.full(len(frames), clip.reference_frame())
    training = clip.free_frames()
    before = training[training < frames[0]]
    return np.full(len(frames), before[-1] if len(before) else training[0])


def nearest_frames(clip: Clip, frames: np.ndarray, body: BodyModel, num_points: int = 200) -> np.ndarray:
    """`[T]` the frame outside of validation and test whose posed body, as the camera sees it, lies nearest to each's.

    The distance is the mean over vertices of head and torso, so that turn, place, mouth and expression all count.
    """
    training = clip.free_frames()
    upper = torch.nonzero(body.lbs_weights[:, [9, 12, 15, 22, 23, 24]].sum(dim=1) > 0.5)[:, 0]
    points = upper[:: max(len(upper) // num_points, 1)]

    def posed(numbers: np.ndarray) -> Tensor:
        vertices, _ = body(BodyParams.from_track(clip.track, numbers), points)
        camera = torch.from_numpy(clip.track["world_to_camera"][numbers])
        return (torch.einsum("tij,tvj->tvi", camera[:, :3, :3], vertices) + camera[:, None, :3, 3]).flatten(1)

    return training[torch.cdist(posed(frames), posed(training)).argmin(dim=1).numpy()]
