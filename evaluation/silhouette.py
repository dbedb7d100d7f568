"""Whether the outline is right: overlap of the rendered coverage with the mask."""

import torch
import torch.nn.functional as F
from torch import Tensor

FRAGMENT, NOBODY = 0.3, 0.1  # coverage from which on a pixel is drawn; mask up to which nobody is there


def silhouette_iou(coverage: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Intersection over union of each frame, [T], of two soft masks [T, 1, H, W] cut at `threshold`.

    1 where both are empty: nobody is there and nobody is drawn.
    """
    drawn, there = coverage > threshold, masks > threshold
    union = (drawn | there).sum(dim=(1, 2, 3))
    overlap = (drawn & there).sum(dim=(1, 2, 3))
    return torch.where(union > 0, overlap / union.clamp_min(1), 1.0)


def largest_fragment(coverage: Tensor, masks: Tensor) -> Tensor:
    """Pixels [T] of the largest piece that is drawn apart from the person, where the mask [T, 1, H, W] has nobody.

    A piece is what touches, with corners, and is not the largest of its frame; what of it lies on the person is not
    counted. 0 where there is none.
    """
    drawn = coverage > FRAGMENT
    number = torch.arange(1, drawn[0].numel() + 1, device=drawn.device, dtype=torch.float64).view(1, *drawn.shape[1:])
    label, before = number * drawn, torch.zeros_like(number)
    while not torch.equal(label, before):  # each piece takes the largest number in it
        before, label = label, F.max_pool2d(label, 3, 1, 1) * drawn
    found = []
    for one, outside in zip(label, drawn & (masks <= NOBODY), strict=True):
        pieces, sizes = one[one > 0].unique(return_counts=True)
        stray = [int((outside & (one == piece)).sum()) for piece in pieces if piece != pieces[sizes.argmax()]]
        found.append(max(stray, default=0))
    return torch.tensor(found, device=coverage.device)
