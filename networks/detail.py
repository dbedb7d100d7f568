"""Pictures larger than the splat: geometry is drawn small, and the photo is read at its own resolution.

The flow that leads from a pixel to the photo's is smooth, and so is what painting changes; the detail is in the photo.
So geometry is drawn at half the output's size and painting at the shader's, both are enlarged, and composed with the
photo at the output's: as sharp as the photo is, at the cost of reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.continuation import REACH, continued
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.projection import project
from visa.networks.rasterizer.cpu import compose
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import Layers, SplatMaps
from visa.networks.texture import Detail, PhotoSet, read_photo

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
    if avatar.detail is not None:
        return avatar.detail
    texture = avatar.texture
    if texture is None:
        raise ValueError("this avatar has no photo: make it of one")
    picture = None if avatar.pattern is None else avatar.pattern.picture
    if isinstance(texture, PhotoSet):
        return Detail(texture.textures.photo, texture.textures.mask, picture)
    return Detail(texture.photo[:, None], texture.mask[:, None], picture)


@dataclass(frozen=True)
class Composed:
    """A picture larger than the splat, `[B,T,...]` as of `SplatMaps`.

    Attributes:
        textured: `[B,T,3,P,P]`.
        coverage: `[B,T,1,P,P]` its alpha.
        photo_share: `[B,T,1,P,P]` of the photos' pixels in it.
    """

    textured: Tensor
    coverage: Tensor
    photo_share: Tensor


@full_precision
def enlarged(maps: SplatMaps, detail: Detail, size: int) -> Composed:
    """The maps `[B,T,...]` as a picture of `size` px, its photos read at their own resolution.

    On the CPU, where no gradient is asked for, in one pass over the pixels.
    """
    if maps.layers is None:
        raise ValueError("these maps were drawn without a texture: render the avatar with its photo")
    needs_grad = torch.is_grad_enabled() and (maps.rgb.requires_grad or maps.layers.share.requires_grad)
    if maps.rgb.is_cuda or maps.rgb.dtype != torch.float32 or needs_grad:
        return _enlarged_by_tensors(maps, maps.layers, detail, size)
    pattern, picture = maps.pattern, detail.pattern
    if pattern is None or picture is None:
        pattern, picture = replace(maps.layers, share=torch.zeros_like(maps.layers.share)), detail.photo[:, 0]
    parts = [maps.rgb, maps.alpha, *_channels(pattern, 0)]
    for index in range(maps.layers.share.shape[2]):
        parts += _channels(maps.layers, index)
    stacked = torch.cat(parts, dim=2)
    textured, further = compose(stacked, detail.photo, detail.mask, picture, REACH, size)
    return Composed(textured, *further.split(1, dim=2))


def _channels(layers: Layers, index: int) -> list[Tensor]:
    """Motion, weight and share of one picture, each `[B,T,.,S,S]`."""
    return [layers.moved[:, :, index], layers.weight[:, :, index], layers.share[:, :, index]]


def _larger(values: Tensor, size: int) -> Tensor:
    """`[B,T,D,S,S]` -> `[B,T,D,size,size]`."""
    return F.interpolate(values.flatten(0, 1), (size, size), mode="bilinear").unflatten(0, values.shape[:2])


def _enlarged_by_tensors(maps: SplatMaps, layers: Layers, detail: Detail, size: int) -> Composed:
    """`enlarged` on any device, with gradients: what its kernel is tested against."""

    def read(layer: Layers, index: int, picture: Tensor, mode: str, reach: float = 1.0) -> Tensor:
        """Motion and its weight are enlarged apart: past a silhouette there is no motion to be mixed in."""
        moved, weight = _larger(layer.moved[:, :, index], size), _larger(layer.weight[:, :, index], size)
        return read_photo(picture, moved / weight.clamp_min(1e-4), mode, reach)

    rgb, alpha = _larger(maps.rgb, size), _larger(maps.alpha, size)
    base = rgb
    if maps.pattern is not None and detail.pattern is not None:
        cloth = read(maps.pattern, 0, detail.pattern, "bicubic", REACH).clamp(0, 1)
        base = torch.lerp(rgb, cloth, _larger(maps.pattern.share[:, :, 0], size))
    textured, coverage, total = base, alpha, torch.zeros_like(alpha)
    for index in range(layers.share.shape[2]):
        share = _larger(layers.share[:, :, index], size)
        pixels = read(layers, index, detail.photo[:, index], "bicubic").clamp(0, 1)
        inside = read(layers, index, detail.mask[:, index], "bilinear")
        textured, coverage = textured + share * (pixels - base), coverage + share * (inside - alpha)
        total = total + share
    return Composed(textured, coverage, total)


def painted_at(maps: SplatMaps, change: Tensor, detail: Detail, size: int) -> Tensor:
    """Pictures `[B,T,3,size,size]`: what painting changes, `[B,T,3,.,.]` of any size, on the enlarged maps."""
    return enlarged(maps, detail, size).textured + _larger(change, size)
