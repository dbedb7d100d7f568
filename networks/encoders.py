"""Encoders of the photo: `F_sem`, tokens of what is where, and `F_vis`, fine local detail."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticEncoder(nn.Module):
    """Small vision transformer: `F_sem`, the embedded counterpart of DINOv2.

    Args:
        image_size: the photo is resized to this side in pixels.
        patch_size: side of a patch in pixels.
        width: channels of a token.
        num_layers: transformer blocks.
        num_heads: attention heads.
    """

    def __init__(
        self, image_size: int = 128, patch_size: int = 16, width: int = 128, num_layers: int = 3, num_heads: int = 4
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"semantic encoder: image_size {image_size} is no multiple of patch_size {patch_size}")
        self.image_size, self.width = image_size, width
        self.patches = nn.Conv2d(4, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(torch.randn(1, (image_size // patch_size) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, num_layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, photo: Tensor, mask: Tensor) -> Tensor:
        """`photo [B,3,H,W]` and `mask [B,1,H,W]` in [0,1] -> tokens `[B,L,width]`."""
        picture = torch.cat([photo * 2 - 1, mask * 2 - 1], dim=1)
        picture = F.interpolate(
            picture, size=(self.image_size,) * 2, mode="bilinear", antialias=True, align_corners=False
        )
        return self.blocks(self.patches(picture).flatten(2).transpose(1, 2) + self.position)


class VisualEncoder(nn.Module):
    """Convolutional pyramid fused top-down at half resolution: `F_vis`, the counterpart of a video codec's encoder.

    Args:
        width: channels of the fused map.
        base: channels at half resolution; they double at each of the three levels.
    """

    def __init__(self, width: int = 32, base: int = 24) -> None:
        super().__init__()
        self.width = width
        channels = [4, base, 2 * base, 4 * base]
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(4, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.SiLU(),
            )
            for before, after in pairwise(channels)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(after, width, 1) for after in channels[1:])
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, photo: Tensor, mask: Tensor) -> Tensor:
        """`photo [B,3,H,W]` and `mask [B,1,H,W]` in [0,1] -> map `[B,width,H/2,W/2]`."""
        level = torch.cat([photo * 2 - 1, mask * 2 - 1], dim=1)
        fused = []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            level = down(level)
            fused.append(lateral(level))
        result = fused[-1]
        for finer in reversed(fused[:-1]):
            result = finer + F.interpolate(result, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        return self.smooth(result)
