"""Pictures larger than the splat: geometry is drawn small, and the photo is read at its own resolution.

The flow that leads from a pixel to the photo's is smooth, and so is what painting changes; the detail is in the photo.
So geometry is drawn at half the output's size and painting at the shader's, both are enlarged, and composed with the
photo at the output's: as sharp as the photo is, at the cost of reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.composition import Composed, composed, larger
from visa.networks.continuation import continued
from visa.networks.photo import Photo
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import SplatMaps
from visa.networks.texture import Detail, PhotoSet

# B people, T frames, K photos, P px of a photo's side, S px of the splat's.

LEAST_GEOMETRY = 128  # px: that of the shipped networks


def geometry_size(size: int) -> int:
    """px at which the geometry of pictures of `size` px is made and drawn.

    Half of them: lips, lids and teeth are a few pixels wide in 128 px, and there the flow is not smooth.
    """
    return min(size, max(LEAST_GEOMETRY, size // 2))


@torch.no_grad()
def with_detail(
    reconstructor: GaussianReconstructor,
    avatar: Avatar,
    photo: Photo,
    fine: Sequence[tuple[Tensor, Tensor]],
) -> Avatar:
    """The avatar with its photos at a finer resolution.

    Args:
        reconstructor: made the avatar.
        avatar: `[B,...]` of K photos.
        photo: the first of them, as it was reconstructed from.
        fine: each photo `[B,3,P,P]` over the avatar's background, and its matte `[B,1,P,P]`.

    Raises:
        ValueError: not as many photos as the avatar has.
    """
    texture = avatar.texture
    count = texture.textures.photo.shape[1] if isinstance(texture, PhotoSet) else int(texture is not None)
    if len(fine) != count:
        raise ValueError(f"the avatar has {count} photos and {len(fine)} came in detail: give each of them")
    pictures, masks = (torch.stack(values, dim=1) for values in zip(*fine, strict=True))
    pattern = None
    if avatar.pattern is not None:
        cloth = project(reconstructor.anchors, photo).cloth
        cloth = F.interpolate(cloth[:, None].float(), pictures.shape[-2:], mode="nearest")[:, 0] > 0.5
        pattern, _ = continued(pictures[:, 0], cloth)
    return replace(avatar, detail=Detail(pictures, masks, pattern))


def detail_of(avatar: Avatar) -> Detail:
    """The avatar's photos in detail, or as it was made of them; ValueError for an avatar without a texture."""
    return avatar.pictures if avatar.detail is None else avatar.detail


def enlarged(maps: SplatMaps, detail: Detail, size: int) -> Composed:
    """The maps `[B,T,...]` as a picture of `size` px, its photos read at their own resolution.

    Raises:
        ValueError: maps that were drawn without a texture.
    """
    if maps.layers is None:
        raise ValueError("these maps were drawn without a texture: render the avatar with its photo")
    return composed(maps.rgb, maps.alpha, maps.layers, maps.pattern, detail, size)


def painted_at(maps: SplatMaps, change: Tensor, detail: Detail, size: int) -> Tensor:
    """Pictures `[B,T,3,size,size]`: what painting changes, `[B,T,3,.,.]` of any size, on the enlarged maps."""
    return enlarged(maps, detail, size).textured + larger(change, size)
