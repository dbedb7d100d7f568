"""The photos of a batch: as reconstruction reads them, in detail, and at the size that geometry is made at."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from visa.datamodules.batch import VideoBatch
from visa.networks.detail import geometry_size
from visa.networks.photo import Photo
from visa.networks.view import resized_intrinsics


def photo_of(batch: VideoBatch) -> Photo:
    """The reference photo of a batch as reconstruction reads it."""
    return Photo(
        image=batch.reference,
        mask=batch.reference_mask,
        body=batch.reference_body,
        intrinsics=batch.reference_intrinsics,
        world_to_camera=batch.reference_world_to_camera,
        background=batch.background,
    )


def fine_photos(batch: VideoBatch) -> list[tuple[Tensor, Tensor]]:
    """The batch's photos and mattes at the resolution of the output; none where it is that of its frames."""
    found = []
    for one in [batch, *batch.further]:
        if one.fine_reference is None or one.fine_reference_mask is None:
            return []
        found.append((one.fine_reference, one.fine_reference_mask))
    return found


def at_geometry(batch: VideoBatch) -> VideoBatch:
    """The batch with its photos at the size that geometry is made at, from those of the output's size."""
    fine = fine_photos(batch)
    size = max(geometry_size(fine[0][0].shape[-1]), batch.reference.shape[-1])

    def resized(one: VideoBatch, image: Tensor, mask: Tensor) -> VideoBatch:
        factor = image.shape[-1] / one.reference.shape[-1]
        intrinsics = resized_intrinsics(one.reference_intrinsics, factor)
        photo = replace(photo_of(one), image=image, mask=mask, intrinsics=intrinsics).resized(size)
        return replace(one, reference=photo.image, reference_mask=photo.mask, reference_intrinsics=photo.intrinsics)

    first, *further = (resized(one, *pictures) for one, pictures in zip([batch, *batch.further], fine, strict=True))
    return replace(first, further=further)
