"""Rows of pictures larger than what is painted: what `predict` writes, against frames of that size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from visa.datamodules.batch import VideoBatch
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.networks.avatar import Avatar
from visa.networks.detail import enlarged, with_detail
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.conditioner import photo_of

CHUNK = 4  # frames at a time


@torch.no_grad()
def larger_rows(
    reconstructor: GaussianReconstructor, avatar: Avatar, batch: VideoBatch, large: VideoBatch
) -> dict[str, dict[str, Any]]:
    """Figures of the avatar's frames at a larger size P: its small pictures enlarged, and composed with the photo.

    Args:
        reconstructor: that made the avatar.
        avatar: of one person, with a photo as texture.
        batch: one window `[1,T,...]` at the size that the avatar is drawn at.
        large: the same frames, and the photo, at P px.

    Returns:
        rows `textured, bicubic to P px` and `textured, P px`.
    """
    output = large.frames.shape[-1]
    pictures = [(large.reference, large.reference_mask)]
    detail = with_detail(reconstructor, avatar, photo_of(batch), pictures).detail
    assert detail is not None
    simple, composed = [], []
    for first in range(0, batch.frames.shape[1], CHUNK):
        part = batch.cut(slice(first, first + CHUNK))
        maps = avatar.render(reconstructor.body, part.view())
        simple.append(F.interpolate(maps.textured[0], (output, output), mode="bicubic"))
        composed.append(enlarged(maps, detail, output).textured[0])
    valid = batch.valid[0]
    rows = {f"textured, bicubic to {output} px": simple, f"textured, {output} px": composed}
    predictions = {name: Prediction(torch.cat(frames)[valid], num_steps=0) for name, frames in rows.items()}
    masks = large.masks[0][valid]
    return evaluate_rows(large.frames[0][valid], predictions, masks=masks, measures=("image", "perceptual"))
