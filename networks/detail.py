"""Pictures larger than the splat: geometry is drawn small, and the photo is read at its own resolution.

The flow that leads from a pixel to the photo's is smooth, and so is what painting changes; the detail is in the photo.
So both are drawn at the shader's size, enlarged, and composed with the photo at the output's: as sharp as the photo is,
at the cost of reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.continuation import REACH, continued
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import Layers, SplatMaps
from visa.networks.texture import Detail, PhotoSet, read_photo

# B people, T frames, K photos, P px of a photo's side, S px of the splat's.


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
    if avatar.detail is not None:
        return avatar.detail
    texture = avatar.texture
    if texture is None:
        raise ValueError("this avatar has no photo: make it of one")
    picture = None if avatar.pattern is None else avatar.pattern.picture
    if isinstance(texture, PhotoSet):
        return Detail(texture.textures.photo, texture.textures.mask, picture)
    return Detail(texture.photo[:, None], texture.mask[:, None], picture)


@full_precision
def enlarged(maps: SplatMaps, detail: Detail, size: int) -> SplatMaps:
    """The maps `[B,T,...]` as a picture of `size` px, its photos read at their own resolution; without features."""
    frames = maps.rgb.shape[:2]

    def larger(values: Tensor) -> Tensor:
        """`[B,T,D,S,S]` -> `[B,T,D,size,size]`."""
        return F.interpolate(values.flatten(0, 1), (size, size), mode="bilinear").unflatten(0, frames)

    def read(layer: Layers, index: int, picture: Tensor, mode: str, reach: float = 1.0) -> Tensor:
        """Motion and its weight are enlarged apart: past a silhouette there is no motion to be mixed in."""
        moved, weight = larger(layer.moved[:, :, index]), larger(layer.weight[:, :, index])
        return read_photo(picture, moved / weight.clamp_min(1e-4), mode, reach)

    if maps.layers is None:
        raise ValueError("these maps were drawn without a texture: render the avatar with its photo")
    rgb, alpha = larger(maps.rgb), larger(maps.alpha)
    base = rgb
    if maps.pattern is not None and detail.pattern is not None:
        cloth = read(maps.pattern, 0, detail.pattern, "bicubic", REACH).clamp(0, 1)
        base = torch.lerp(rgb, cloth, larger(maps.pattern.share[:, :, 0]))
    textured, coverage, total = base, alpha, torch.zeros_like(alpha)
    for index in range(maps.layers.share.shape[2]):
        share = larger(maps.layers.share[:, :, index])
        pixels = read(maps.layers, index, detail.photo[:, index], "bicubic").clamp(0, 1)
        inside = read(maps.layers, index, detail.mask[:, index], "bilinear")
        textured, coverage = textured + share * (pixels - base), coverage + share * (inside - alpha)
        total = total + share
    return SplatMaps(rgb, alpha, rgb[:, :, :0], textured=textured, photo_share=total, coverage=coverage)


def painted_at(maps: SplatMaps, painted: Tensor, detail: Detail, size: int) -> Tensor:
    """Painted frames `[B,T,3,S,S]` as pictures `[B,T,3,size,size]`: what painting changed, on the enlarged splat."""
    change = F.interpolate((painted - maps.textured).flatten(0, 1), (size, size), mode="bilinear")
    return enlarged(maps, detail, size).textured + change.unflatten(0, painted.shape[:2])
