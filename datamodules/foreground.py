"""The person's own colours where a matte is soft: a pixel of hair holds what lies behind it too.

Matted over another background such a pixel brings a fringe of the old one along. Its foreground is estimated by blurs,
twice: coarse, then fine (Forte, "Approximate Fast Foreground Colour Estimation", 2021, arXiv:2006.14970):
F = f + a (I - a f - (1 - a) b), where f and b are means of foreground and background around the pixel.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

REACHES = (0.1, 0.008)  # shares of the picture's side
LEAST = 1e-5


def foreground(images: Tensor, masks: Tensor) -> Tensor:
    """Colours `[N,3,H,W]` of the person alone, of images in [0,1] with soft mattes `[N,1,H,W]`."""
    found = behind = images
    for reach in REACHES:
        radius = max(1, round(reach * images.shape[-1]))
        around = _mean(found * masks, radius) / (_mean(masks, radius) + LEAST)
        behind = _mean(behind * (1 - masks), radius) / (_mean(1 - masks, radius) + LEAST)
        found = (around + masks * (images - masks * around - (1 - masks) * behind)).clamp(0, 1)
        behind = behind.clamp(0, 1)
    return found


def _mean(values: Tensor, radius: int) -> Tensor:
    """Means over squares of side 2 `radius` + 1, whose part outside of the picture repeats its border."""
    padded = F.pad(values, (radius,) * 4, mode="replicate")
    rows = F.avg_pool2d(padded, (2 * radius + 1, 1), 1)
    return F.avg_pool2d(rows, (1, 2 * radius + 1), 1)
