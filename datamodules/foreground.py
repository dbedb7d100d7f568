"""The person alone: mattes that follow hair, and colours without what lay behind them.

A segmentation network's matte is a percent of the picture wide of the truth. Where it is sure, inside and outside, it
tells what is person and what is not; between them the picture itself does: closed-form matting (Levin, Lischinski and
Weiss, 2008). Where the picture does not tell either, dark hair before a dark hedge, the network's matte stands: it is a
prior of each pixel. A pixel of the edge holds both, and what is the person's in it is found by multi-level foreground
estimation (Germer et al., 2020). Laplacian, solver and estimation are PyMatting's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from scipy import ndimage, sparse
from torch import Tensor

# Shares of the picture's side: so far inside and outside of its edge the matte may be wrong; chosen on photos of
# validation people (wider takes skin before a wall of its colour, narrower leaves the wall between locks).
INSIDE, OUTSIDE = 0.045, 0.015
THIN = 0.5  # inside at most so much of half the person's width there: of small heads and fingers a middle stays
# Weight of the coarse matte beside the rows of the Laplacian, where it says person and where it says none: locks may be
# cut from it, and dark hair before a dark hedge does not grow into that. More keeps the wall between locks.
PRIOR = (0.02, 1.0)
RADII = 16  # at which a width is measured
UNKNOWN = 0.5

Floats = NDArray[np.float64]


def cleaned(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Colours `[N,3,H,W]` of the person alone and finer mattes `[N,1,H,W]`, of images in [0,1] and coarse mattes."""
    colors, mattes = images.clone(), masks.clone()
    for index, (image, mask) in enumerate(zip(images, masks, strict=True)):
        picture, matte = image.permute(1, 2, 0).double().cpu().numpy(), mask[0].double().cpu().numpy()
        trimap = _trimap(matte)
        if (trimap == 1).any() and (trimap == 0).any():
            color, matte = _separated(picture, matte, trimap)
            colors[index], mattes[index, 0] = torch.from_numpy(color).permute(2, 0, 1), torch.from_numpy(matte)
    return colors, mattes


def _trimap(matte: Floats) -> Floats:
    """`[H,W]` 1 where the matte is sure of the person, 0 where it is sure of none, between them UNKNOWN."""
    side, is_person = matte.shape[1], matte > 0.5
    depth = ndimage.distance_transform_edt(is_person)
    trimap = np.full(matte.shape, UNKNOWN)
    trimap[is_person & (depth > np.minimum(INSIDE * side, THIN * _half_width(depth)))] = 1.0
    trimap[ndimage.distance_transform_edt(~is_person) > max(1.0, OUTSIDE * side)] = 0.0
    return trimap


def _half_width(depth: Floats) -> Floats:
    """`[H,W]` px: radius of the greatest disc within the person that holds the pixel, of distances to the outside."""
    width = np.zeros_like(depth)
    for radius in np.geomspace(1.0, max(depth.max(), 2.0), RADII):
        width[ndimage.distance_transform_edt(depth < radius) <= radius] = radius
    return width


@contextmanager
def _kept_threads() -> Iterator[None]:
    """PyMatting has numba start OpenMP, which sets torch's number of threads to that of the cores."""
    count = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(count)


@_kept_threads()
def _separated(image: Floats, matte: Floats, trimap: Floats) -> tuple[Floats, Floats]:
    """Colours `[H,W,3]` and finer matte `[H,W]` of what the trimap leaves open."""
    _announce()
    from pymatting import cf_laplacian, cg, estimate_foreground_ml, ichol

    alpha, is_open = trimap.ravel().copy(), (trimap == UNKNOWN).ravel()
    laplacian = cf_laplacian(image, is_known=~is_open)[is_open]
    coarse = matte.ravel()[is_open]
    prior = np.where(coarse > 0.5, *PRIOR)
    system = laplacian[:, is_open] + sparse.diags(prior)
    told = prior * coarse - laplacian[:, ~is_open] @ alpha[~is_open]
    alpha[is_open] = cg(system, told, M=ichol(system.tocsc()))
    alpha = alpha.clip(0, 1).reshape(trimap.shape)
    return np.where(trimap[..., None] == 1, image, estimate_foreground_ml(image, alpha)), alpha


def _announce() -> None:
    """Say what the first import of PyMatting on a machine takes its time for."""
    found = find_spec("pymatting")
    places = found.submodule_search_locations if found is not None else None
    if "pymatting" not in sys.modules and not any(any(Path(place).rglob("*.nbi")) for place in places or []):
        rank_zero_info("compiling what makes the photo's matte finer: about 40 s, once on a machine")
