"""Cloth beyond what the photo shows: its own pattern goes on, as in a mirror at the border of what it shows.

A flat mean of the colours is right on average and looks like nobody's clothes. A place of the picture plane that shows
none of the person's cloth (below the photo's lower edge, behind a hand) has instead the pixel that lies as far on the
other side of the nearest border: colours and folds run through without a seam, and the pattern keeps its size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

# B photos, H W pixels of one.

REACH = 2.0  # the picture that goes on has so many times the photo's sides
FOLDS = 8  # reflections at most: beyond a narrow strip of cloth the pattern has come and gone so often
LEAST_SHARE = 0.004  # of the photo's pixels: less is no sample of a pattern
OPENING = 1 / 64  # share of the photo's side: what is narrower than twice this is the edge of something else


def opened(area: Tensor) -> Tensor:
    """`area [B,H,W]` bool without what is narrower than twice OPENING of the picture's side."""
    reach = max(1, round(OPENING * area.shape[-1]))
    kept = -F.max_pool2d(-area[:, None].float(), 2 * reach + 1, 1, reach)
    return (F.max_pool2d(kept, 2 * reach + 1, 1, reach)[:, 0] > 0) & area


def median_color(photo: Tensor, area: Tensor) -> Tensor:
    """`[B,3]` of the pixels of `photo [B,3,H,W]` in `area [B,H,W]`; not a number where there are none."""
    return torch.where(area[:, None], photo, torch.nan).flatten(2).nanmedian(dim=2).values


def without_alike(photo: Tensor, cloth: Tensor, others: Sequence[Tensor]) -> Tensor:
    """`cloth [B,H,W]` without the pixels that look more like something else, such as hair that falls on it.

    Cloth looks like the median of its lower half: what is near the head is often hair, or a neckline.

    Args:
        photo: `[B,3,H,W]`.
        cloth: bool.
        others: colours `[B,3]`, not a number where there is none.
    """
    rows = cloth.sum(dim=2).cumsum(dim=1)
    lower = cloth & (rows > rows[:, -1:] / 2)[:, :, None]
    own, *further = ((photo - one[..., None, None]).norm(dim=1) for one in (median_color(photo, lower), *others))
    return cloth & torch.stack([~(other < own) for other in further]).all(dim=0)


@torch.no_grad()
def continued(photo: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The picture of a pattern that goes on.

    Args:
        photo: `[B,3,H,W]`.
        source: `[B,H,W]` bool, its pixels that show the pattern.

    Returns:
        pictures `[B,3,REACH H,REACH W]` around the photo's centre, and `[B]` bool, whether a photo shows enough of the
        pattern; a picture without is black.
    """
    height, width = source.shape[-2:]
    above, left = round((REACH - 1) * height / 2), round((REACH - 1) * width / 2)
    has_any = source.flatten(1).sum(dim=1) >= LEAST_SHARE * height * width
    pictures = photo.new_zeros(len(photo), 3, height + 2 * above, width + 2 * left)
    for index in has_any.nonzero()[:, 0].tolist():
        padded = np.pad(source[index].cpu().numpy(), ((above, above), (left, left)))
        row, column = (torch.from_numpy(places).to(photo.device) for places in _folded(padded))
        pictures[index] = photo[index][:, row - above, column - left]
    return pictures, has_any


def _folded(source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column `[rows,columns]` of the pixel of `source [rows,columns]` that stands for each one."""
    nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
    places = np.indices(source.shape)
    limit = np.array(source.shape)[:, None]
    for _ in range(FOLDS):
        outside = ~source[places[0], places[1]]
        if not outside.any():
            break
        now = places[:, outside]
        mirrored = 2 * nearest[:, now[0], now[1]] - now
        places[:, outside] = mirrored.clip(0, limit - 1)
    outside = ~source[places[0], places[1]]
    now = places[:, outside]
    places[:, outside] = nearest[:, now[0], now[1]]
    return places[0], places[1]
