"""The convolutions that bring splatted maps to the latent grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionHead(nn.Module):
    """Pixel maps `[B,Tpix,M,H,W]` -> latent maps `[B,Cc,T,h,w]` and a correction of the guide `[B,C,T,h,w]`.

    Each latent frame reads its own pixel frames alone. With temporal stride 4, the first frame of a video stands four
    times in its latent frame's group. Edges and fine texture are a convolution's work: what it can mend of the splat
    enters the guide (zero at the start), and the transformer paints what is left.

    Args:
        map_channels: M.
        condition_channels: Cc.
        latent_channels: C.
        width: channels at half resolution; twice as many at a quarter.
        spatial_stride, temporal_stride: of the codec.
    """

    def __init__(
        self,
        map_channels: int,
        condition_channels: int,
        latent_channels: int,
        width: int,
        spatial_stride: int,
        temporal_stride: int,
    ) -> None:
        super().__init__()
        if spatial_stride % 4:
            raise ValueError(f"spatial_stride {spatial_stride} must be a multiple of 4")
        self.temporal_stride = temporal_stride
        self.fine = nn.Sequential(nn.Conv2d(4 * map_channels, width, 3, padding=1), ResidualConvolution(width))
        self.coarse = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            ResidualConvolution(2 * width),
            ResidualConvolution(2 * width),
        )
        self.rise = nn.Conv2d(2 * width, width, 1)
        self.merge = nn.Sequential(ResidualConvolution(width), ResidualConvolution(width))
        self.fold = spatial_stride // 4
        self.project = nn.Conv2d(2 * width * self.fold**2 * temporal_stride, condition_channels, 1)
        self.correct = nn.Conv2d(width * (2 * self.fold) ** 2 * temporal_stride, latent_channels, 1)
        for parameter in self.correct.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, starts_clip: bool) -> tuple[Tensor, Tensor]:
        batch = maps.shape[0]
        fine = self.fine(F.pixel_unshuffle(maps.flatten(0, 1), 2))
        coarse = self.coarse(fine)
        fine = self.merge(fine + F.interpolate(self.rise(coarse), scale_factor=2.0, mode="nearest"))
        encoded = self.project(self._group(F.pixel_unshuffle(coarse, self.fold), batch, starts_clip))
        correction = self.correct(self._group(F.pixel_unshuffle(fine, 2 * self.fold), batch, starts_clip))
        return encoded.unflatten(0, (batch, -1)).transpose(1, 2), correction.unflatten(0, (batch, -1)).transpose(1, 2)

    def _group(self, hidden: Tensor, batch: int, starts_clip: bool) -> Tensor:
        """`[B*Tpix,D,h,w]` -> `[B*T,D*stride,h,w]`: the pixel frames of a latent frame side by side."""
        stride = self.temporal_stride
        hidden = hidden.unflatten(0, (batch, -1))
        num_frames = hidden.shape[1]
        if stride > 1 and starts_clip:
            hidden = torch.cat([hidden[:, :1].expand(-1, stride - 1, -1, -1, -1), hidden], dim=1)
        if hidden.shape[1] % stride:
            expected = f"1 + {stride}k" if starts_clip else f"{stride}k"
            raise ValueError(
                f"maps of {num_frames} frames do not fit the codec's temporal stride: give {expected} frames"
            )
        return hidden.unflatten(1, (-1, stride)).flatten(2, 3).flatten(0, 1)


class ResidualConvolution(nn.Module):
    """Two 3x3 convolutions around which the input passes, `[M,D,H,W]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)
