"""Which frames of a clip to hold out: the block that its photo tells least about."""

from __future__ import annotations

import numpy as np

from visa.datamodules.clip import Clip

FIRST = 26  # frames: a held-out block begins a second after the photo, frame 0
RESOLUTION = 48  # px at which frames are compared


def moving_block(clip: Clip, frames: int = 48, start: int = FIRST) -> tuple[int, int]:
    """First and last of the `frames` consecutive frames whose person differs most from frame 0, on average.

    The difference is the mean absolute one of matted frames of RESOLUTION px. A clip too short for the block holds out
    all that comes from `start` on, before which no block begins.

    Raises:
        ValueError: the clip ends before `start`, or `frames` or `start` is below 1.
    """
    if min(frames, start) < 1:
        raise ValueError(f"a block of {frames} frames from frame {start} on: give 1 or more")
    if clip.num_frames <= start:
        raise ValueError(f"{clip.path} has {clip.num_frames} frames: give one of more than {start}")
    pictures, masks, _ = clip.window(np.arange(clip.num_frames), RESOLUTION)
    person = pictures * masks
    difference = (person - person[:1]).abs().mean(dim=(1, 2, 3)).double().numpy()
    length = min(frames, clip.num_frames - start)
    sums = np.convolve(difference, np.ones(length), "valid")
    first = start + int(sums[start:].argmax())
    return first, first + length - 1


def held_out_block(clip: Clip, frames: int = 48) -> tuple[int, int]:
    """First and last frame of the clip's validation block; of a clip without splits, its moving block."""
    if clip.sidecar(".splits.yaml").is_file() and clip.splits.validation:
        return clip.splits.validation[0]
    return moving_block(clip, frames)
