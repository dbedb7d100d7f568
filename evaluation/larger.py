"""Rows of pictures larger than what is painted: what `predict` writes, against frames of that size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from visa.datamodules.batch import VideoBatch
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.networks.avatar import Avatar
from visa.networks.detail import detail_of, enlarged, geometry_size, with_detail
from visa.networks.fit import FitOptions, fitted_avatar
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.conditioner import photo_of

CHUNK = 4  # frames at a time


@torch.no_grad()
def larger_rows(
    reconstructor: GaussianReconstructor, fit: FitOptions, avatar: Avatar, batch: VideoBatch, large: VideoBatch
) -> dict[str, dict[str, Any]]:
    """Figures of frames at a larger size P: the avatar's small pictures enlarged, and composed with the photo.

    The composed ones are of an avatar made at the size that `predict` makes it at (`networks.detail.geometry_size`).

    Args:
        reconstructor: that made the avatar.
        fit: how it was fitted.
        avatar: of one person, with a photo as texture.
        batch: one window `[1,T,...]` at the size that the avatar is drawn at.
        large: the same frames, and the photo, at P px.

    Returns:
        rows `textured, bicubic to P px` and `textured, P px`.
    """
    output = large.frames.shape[-1]
    geometry = max(geometry_size(output), batch.frames.shape[-1])
    photo, pictures = photo_of(large).resized(geometry), [(large.reference, large.reference_mask)]
    made = with_detail(reconstructor, fitted_avatar(reconstructor, photo, fit), photo, pictures)
    simple, composed = [], []
    for first in range(0, batch.frames.shape[1], CHUNK):
        view = batch.cut(slice(first, first + CHUNK)).view()
        small = avatar.render(reconstructor.body, view).textured[0]
        simple.append(F.interpolate(small, (output, output), mode="bicubic"))
        maps = made.render(reconstructor.body, view.resized(geometry))
        composed.append(enlarged(maps, detail_of(made), output).textured[0])
    valid = batch.valid[0]
    rows = {f"textured, bicubic to {output} px": simple, f"textured, {output} px": composed}
    predictions = {name: Prediction(torch.cat(frames)[valid], num_steps=0) for name, frames in rows.items()}
    masks = large.masks[0][valid]
    return evaluate_rows(large.frames[0][valid], predictions, masks=masks, measures=("image", "perceptual"))
