"""Rows and sheets of pictures larger than what is painted: what `predict` writes, against frames of that size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.artifacts.media import sheet
from visa.datamodules.batch import VideoBatch
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.regions import face_points, face_squares
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.detail import detail_of, enlarged, geometry_size, with_detail
from visa.networks.fit import FitOptions, fitted_avatar
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of

CHUNK = 4  # frames at a time
SHOWN = 5  # frames of a sheet


@torch.no_grad()
def larger_frames(
    reconstructor: GaussianReconstructor, fit: FitOptions, avatar: Avatar, batch: VideoBatch, large: VideoBatch
) -> dict[str, Tensor]:
    """Frames of a larger size P: the avatar's small pictures enlarged, and composed with the photo.

    The composed ones are of an avatar made at the size that `predict` makes it at (`networks.detail.geometry_size`).

    Args:
        reconstructor: that made the avatar.
        fit: how it was fitted.
        avatar: of one person, with a photo as texture.
        batch: one window `[1,T,...]` at the size that the avatar is drawn at.
        large: the same frames, and the photo, at P px.

    Returns:
        rows `textured, bicubic to P px` and `textured, P px`, each `[T,3,P,P]`.
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
    rows = {f"textured, bicubic to {output} px": simple, f"textured, {output} px": composed}
    return {name: torch.cat(frames) for name, frames in rows.items()}


def larger_rows(frames: dict[str, Tensor], large: VideoBatch) -> dict[str, dict[str, Any]]:
    """Figures of the rows of `larger_frames` against the truth, `large`."""
    valid = large.valid[0]
    predictions = {name: Prediction(row[valid], num_steps=0) for name, row in frames.items()}
    masks = large.masks[0][valid]
    return evaluate_rows(large.frames[0][valid], predictions, masks=masks, measures=("image", "perceptual"))


def larger_sheet(body: BodyModel, frames: dict[str, Tensor], large: VideoBatch) -> Tensor:
    """Truth and rows at some moments, and below them their faces, enlarged; `[3,H,W]`.

    Faces are left out for a body model on which their points are not known.
    """
    times = torch.linspace(0, len(large.frames[0]) - 1, SHOWN).long()
    shown = {name: row[times].clamp(0, 1) for name, row in {"truth": large.frames[0], **frames}.items()}
    try:
        points = face_points(body, large.view())[0, times]
    except ValueError:
        return sheet(shown)
    squares = {f"{name}: face": face_squares(row, points, row.shape[-1]) for name, row in shown.items()}
    return sheet({**shown, **squares})
