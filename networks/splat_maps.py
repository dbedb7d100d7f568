"""What splatting an avatar gives, and what of a painted picture stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.losses.smoothing import b3_smooth
from visa.networks.precision import full_precision

# B people, T frames, K pictures, C feature channels.


@dataclass(frozen=True)
class Layers:
    """What is read of K pictures at each pixel.

    Attributes:
        moved: `[B,T,K,2,H,W]` motion from each pixel to its place in the picture, times `weight`.
        weight: `[B,T,K,1,H,W]`.
        share: `[B,T,K,1,H,W]` of the picture's pixel in the frame.
    """

    moved: Tensor
    weight: Tensor
    share: Tensor


@dataclass(frozen=True)
class MatteOptions:
    """What of a painted picture stands beside the textured splat.

    Attributes:
        margin: share of the frame's side that painting may reach beyond the silhouette, for loose hair and cloth; 2 px
            at 128.
        octaves_shown: finest octaves of what painting changes that are left out where the photo shows the surface.
        octaves_else: the same, elsewhere.
    """

    margin: float = 1 / 64
    octaves_shown: int = 1
    octaves_else: int = 0


@dataclass
class SplatMaps:
    """What one rasterization gives, `[B,T,...]`.

    Attributes:
        rgb: `[B,T,3,H,W]` over the background colour.
        alpha: `[B,T,1,H,W]`.
        features: `[B,T,C,H,W]`, premultiplied by alpha.
        textured: `[B,T,3,H,W]` `rgb` with the photo's own pixels where the photo shows the surface, and the pattern's
            where cloth goes on; `rgb` itself for an avatar without texture.
        photo_share: `[B,T,1,H,W]` of the photos' pixels in `textured`.
        coverage: `[B,T,1,H,W]` alpha of `textured`: the photo's matte where its pixels stand, else `alpha`.
        layers: how `textured` reads its photos; None without a texture.
        pattern: how it reads the pattern below them; None without a pattern.
    """

    rgb: Tensor
    alpha: Tensor
    features: Tensor
    textured: Tensor
    photo_share: Tensor
    coverage: Tensor
    layers: Layers | None = None
    pattern: Layers | None = None

    def gaussian_maps(self) -> Tensor:
        """`[B,T,C+4,H,W]`: features, RGB in [-1,1] and alpha: what the Gaussians alone say."""
        return torch.cat([self.features, self.rgb * 2 - 1, self.alpha], dim=2)

    def condition(self) -> Tensor:
        """`[B,T,C+8,H,W]`: the Gaussians' maps, textured RGB in [-1,1] and its share: the shader's condition maps."""
        return torch.cat([self.gaussian_maps(), self.textured * 2 - 1, self.photo_share], dim=2)

    def matted(self, painted: Tensor, options: MatteOptions = MatteOptions()) -> Tensor:
        """Painted frames `[B,T,3,H,W]` where the avatar is and a margin around it; `textured` elsewhere.

        A latent patch that holds the silhouette cannot leave its other pixels alone: beyond the margin stands the
        plain background, not what the patch left there. And where the photo's own pixels stand, their finest octave
        does too: painting changes what is coarser, and where it differs from pixel to pixel it is mostly wrong
        (docs/results.md).
        """
        reach = round(options.margin * painted.shape[-1])
        near = F.max_pool2d(self.coverage.flatten(0, 1), 2 * reach + 1, 1, reach).view_as(self.coverage)
        change = painted.to(self.textured.dtype) - self.textured
        shown, other = (full_precision(_coarse)(change, n) for n in (options.octaves_shown, options.octaves_else))
        return self.textured + near * torch.lerp(other, shown, self.photo_share)


def _coarse(change: Tensor, octaves: int) -> Tensor:
    """`[B,T,3,H,W]` without so many finest octaves (Starck and Murtagh's a trous transform)."""
    for octave in range(octaves):
        change = b3_smooth(change.flatten(0, 1), 2**octave).view_as(change)
    return change
