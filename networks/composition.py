"""Photos' pixels laid over splatted colours, at the splat's size or a larger one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.continuation import REACH
from visa.networks.precision import full_precision
from visa.networks.rasterizer.cpu import compose
from visa.networks.splat_maps import Layers
from visa.networks.texture import Detail, read_photo

# B people, T frames, K photos, P px of a photo's side, S px of the splat's.


@dataclass(frozen=True)
class Composed:
    """A picture of `size` px, `[B,T,...]` as of `SplatMaps`.

    Attributes:
        textured: `[B,T,3,size,size]`.
        coverage: `[B,T,1,size,size]` its alpha.
        photo_share: `[B,T,1,size,size]` of the photos' pixels in it.
    """

    textured: Tensor
    coverage: Tensor
    photo_share: Tensor


@full_precision
def composed(rgb: Tensor, alpha: Tensor, layers: Layers, pattern: Layers | None, detail: Detail, size: int) -> Composed:
    """The picture of `size` px; what is splatted is enlarged, photos are read at their own resolution.

    On the CPU, where no gradient is asked for, in one pass over the pixels.

    Args:
        rgb: `[B,T,3,S,S]` over the background.
        alpha: `[B,T,1,S,S]`.
        layers: how the photos of `detail` are read.
        pattern: how its pattern below them is.
        detail: the photos.
        size: px.
    """
    needs_grad = torch.is_grad_enabled() and (rgb.requires_grad or alpha.requires_grad or layers.share.requires_grad)
    if rgb.is_cuda or rgb.dtype != torch.float32 or needs_grad:
        return composed_by_tensors(rgb, alpha, layers, pattern, detail, size)
    if pattern is None or detail.pattern is None:
        moved, weight = layers.moved[:, :, :1], layers.weight[:, :, :1]
        pattern = Layers(moved, weight, torch.zeros_like(weight))
    maps = [rgb, alpha, *_channels(pattern, 0)]
    for index in range(layers.share.shape[2]):
        maps += _channels(layers, index)
    textured, further = compose(maps, detail.photo_pixels, detail.pattern_pixels, REACH, size)
    return Composed(textured, *further.split(1, dim=2))


def _channels(layers: Layers, index: int) -> list[Tensor]:
    """Motion, weight and share of one picture, each `[B,T,.,S,S]`."""
    return [layers.moved[:, :, index], layers.weight[:, :, index], layers.share[:, :, index]]


def larger(values: Tensor, size: int) -> Tensor:
    """`[B,T,D,S,S]` -> `[B,T,D,size,size]`."""
    if values.shape[-1] == size:
        return values
    return F.interpolate(values.flatten(0, 1), (size, size), mode="bilinear").unflatten(0, values.shape[:2])


def composed_by_tensors(
    rgb: Tensor, alpha: Tensor, layers: Layers, pattern: Layers | None, detail: Detail, size: int
) -> Composed:
    """`composed` on any device, with gradients: what its kernel is tested against."""

    def read(layer: Layers, index: int, picture: Tensor, mode: str, reach: float = 1.0) -> Tensor:
        """Motion and its weight are enlarged apart: past a silhouette there is no motion to be mixed in."""
        moved, weight = larger(layer.moved[:, :, index], size), larger(layer.weight[:, :, index], size)
        return read_photo(picture, moved / weight.clamp_min(1e-4), mode, reach)

    base, alpha = larger(rgb, size), larger(alpha, size)
    if pattern is not None and detail.pattern is not None:
        cloth = read(pattern, 0, detail.pattern, "bicubic", REACH).clamp(0, 1)
        base = torch.lerp(base, cloth, larger(pattern.share[:, :, 0], size))
    textured, coverage, total = base, alpha, torch.zeros_like(alpha)
    for index in range(layers.share.shape[2]):
        share = larger(layers.share[:, :, index], size)
        # Between pixel centres bilinear weights blur: of the finest octave 3 to 4 dB are lost, with cubic ones 2 to 3.
        photo = torch.cat([detail.photo[:, index], detail.mask[:, index]], dim=1)
        pixels, inside = read(layers, index, photo, "bicubic").clamp(0, 1).split([3, 1], dim=2)
        # The photo was matted over the same background: where the flow leads out of the person, the background stands.
        textured, coverage = textured + share * (pixels - base), coverage + share * (inside - alpha)
        total = total + share
    return Composed(textured, coverage, total)
