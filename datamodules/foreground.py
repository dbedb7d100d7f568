"""The person alone: mattes that follow hair, and colours without what lay behind them.

A segmentation network's matte is a percent of the picture wide of the truth and takes what shows between locks of hair
along. Where it is sure, inside and outside, it tells what is person and what is not; between them the picture itself
does: closed-form matting (Levin, Lischinski and Weiss, 2008). A pixel of the edge holds both, and what is the person's
in it is found by multi-level foreground estimation (Germer et al., 2020). Both are PyMatting's.
"""

from __future__ import annotations

import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

# Shares of the picture's side: so far inside and outside of its edge the matte may be wrong; chosen on photos of
# validation people (wider takes skin before a wall of its colour, narrower leaves the wall between locks).
INSIDE, OUTSIDE = 0.045, 0.015
PASSES = 2  # the second starts from the matte of the first
RIDGE = 0.7  # of the depth around it: the middle of fingers and locks is the person's, however thin they are
UNKNOWN = 0.5
SHIFTS = (1e-3, 1e-2, 0.1, 1.0)  # of the diagonal, of the incomplete Cholesky factor that speeds the solution

Floats = NDArray[np.float64]


def cleaned(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Colours `[N,3,H,W]` of the person alone and finer mattes `[N,1,H,W]`, of images in [0,1] and coarse mattes."""
    colors, mattes = images.clone(), masks.clone()
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        picture, matte = image.permute(1, 2, 0).double().cpu().numpy(), mask[0].double().cpu().numpy()
        for _ in range(PASSES):
            trimap = _trimap(matte)
            if not ((trimap == 1).any() and (trimap == 0).any()):
                break
            color, matte = _separated(picture, trimap)
            colors[index], mattes[index, 0] = torch.from_numpy(color).permute(2, 0, 1), torch.from_numpy(matte)
    return colors, mattes


def _trimap(matte: Floats) -> Floats:
    """`[H,W]` 1 where the matte is sure of the person, 0 where it is sure of none, between them UNKNOWN."""
    side, is_person = matte.shape[1], matte > 0.5
    depth = ndimage.distance_transform_edt(is_person)
    around = ndimage.maximum_filter(depth, size=2 * round(INSIDE * side) + 1)
    trimap = np.full(matte.shape, UNKNOWN)
    trimap[(depth > INSIDE * side) | (is_person & (depth >= RIDGE * around))] = 1.0
    trimap[ndimage.distance_transform_edt(~is_person) > max(1.0, OUTSIDE * side)] = 0.0
    return trimap


def _separated(image: Floats, trimap: Floats) -> tuple[Floats, Floats]:
    """Colours `[H,W,3]` and matte `[H,W]` of what the trimap leaves open."""
    _announce()
    from pymatting import estimate_alpha_cf, estimate_foreground_ml, ichol

    # Without a shift the factor often fails, and PyMatting prints so.
    alpha = estimate_alpha_cf(image, trimap, preconditioner=partial(ichol, shifts=SHIFTS))
    color = estimate_foreground_ml(image, alpha)
    return np.where(trimap[..., None] == 1, image, color), alpha


def _announce() -> None:
    """Say what the first import of PyMatting on a machine takes its time for."""
    found = find_spec("pymatting")
    places = found.submodule_search_locations if found is not None else None
    if "pymatting" not in sys.modules and not any(any(Path(place).rglob("*.nbi")) for place in places or []):
        rank_zero_info("compiling what makes the photo's matte finer: about 40 s, once on a machine")
