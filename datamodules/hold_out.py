"""Which frames of a clip to hold out: the block that its photo tells least about."""

from __future__ import annotations

import numpy as np

from visa.datamodules.clip import Clip

FIRST = 26  # frames: a held-out block begins a second after the photo, frame 0
RESOLUTION = 48  # px at which frames are compared


def moving_block(clip: Clip, frames: int = 48) -> tuple[int, int]:
    """First and last of the `frames` consecutive frames whose person differs most from frame 0, on average.

    The difference is the mean absolute one of matted frames of RESOLUTION px. A clip too short for the block after
    FIRST holds out all that comes after FIRST.

    Raises:
        ValueError: nothing comes after FIRST, or `frames` is below 1.
    """
    if frames < 1:
        raise ValueError(f"a block of {frames} frames: give 1 or more")
    if clip.num_frames <= FIRST:
        raise ValueError(f"{clip.path} has {clip.num_frames} frames: give one of more than {FIRST}")
    pictures, masks, _ = clip.window(np.arange(clip.num_frames), RESOLUTION)
    person = pictures * masks
    difference = (person - person[:1]).abs().mean(dim=(1, 2, 3)).double().numpy()
    length = min(frames, clip.num_frames - FIRST)
    sums = np.convolve(difference, np.ones(length), "valid")
    first = FIRST + int(sums[FIRST:].argmax())
    return first, first + length - 1


def held_out_block(clip: Clip, frames: int = 48) -> tuple[int, int]:
    """First and last frame of the clip's validation block; of a clip without splits, its moving block."""
    if clip.sidecar(".splits.yaml").is_file() and clip.splits.validation:
        return clip.splits.validation[0]
    return moving_block(clip, frames)
