"""The detector's face points of pictures that nobody has tracked: what `test` compares outputs with the truth by."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from visa.artifacts.media import to_uint8
from visa.tools.track.detect import Detector, Floats

DETECTION_SIDE = 512  # px; the detector misses faces of a few dozen pixels


def enlarge(frames: Tensor) -> Tensor:
    """Frames `[T,3,H,W]` at a size in which detectors find faces."""
    scale = max(DETECTION_SIDE // frames.shape[-1], 1)
    return F.interpolate(frames, scale_factor=scale, mode="bicubic").clamp(0, 1)


@cache
def _detector() -> Detector:
    """One a process: it keeps nothing from picture to picture, and its graphs take a second to build."""
    return Detector(is_still=True)


def face_points(frames: Tensor) -> Floats:
    """`[T,478,3]` px of frames `[T,3,H,W]` in [0,1], each looked at by itself; NaN where there is no face.

    Raises:
        ValueError: the extra `track` is not installed.
    """
    found = [_detector()(to_uint8(enlarge(frame[None].float().cpu()))[0])["face"] for frame in frames]
    scale = max(DETECTION_SIDE // frames.shape[-1], 1)
    return np.stack(found) / scale
