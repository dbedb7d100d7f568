"""RGB of splatted features, while reconstruction is trained."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureDecoder(nn.Module):
    """Light decoder of the splatted maps to RGB: it gives the 3D-aware features something to mean in the first stage.

    The shader takes its place afterwards; no later stage uses it.
    """

    def __init__(self, feature_channels: int, width: int = 32) -> None:
        super().__init__()
        first, middle = nn.Conv2d(feature_channels + 4, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        last = nn.Conv2d(width, 3, 3, padding=1)
        self.layers = nn.Sequential(first, nn.SiLU(), middle, nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Tensor, rgb: Tensor) -> Tensor:
        """`maps [M,C+4,H,W]` and splatted `rgb [M,3,H,W]` -> refined RGB `[M,3,H,W]`."""
        return rgb + self.layers(maps)
