"""Whether the outline is right: overlap of the rendered coverage with the mask."""

import torch
from torch import Tensor


def silhouette_iou(coverage: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each frame, [T], of two soft masks [T, 1, H, W] cut at `threshold`.

    1 where both are empty: nobody is there and nobody is drawn.
    """
    drawn, there = coverage > threshold, masks > threshold
    union = (drawn | there).sum(dim=(1, 2, 3))
    overlap = (drawn & there).sum(dim=(1, 2, 3))
    return torch.where(union > 0, overlap / union.clamp_min(1), 1.0)
