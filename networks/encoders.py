"""Encoders of the photo: `F_sem`, tokens of what is where, and `F_vis`, fine local detail.

Each comes in two sizes with one interface (`width`, `forward(photo, mask)`): a small network that is trained from
nothing, and one on a pretrained network of the user's (`DinoEncoder`, `WanVisualEncoder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKLWan
from torch import Tensor, nn

from visa.networks.codec import load_wan_vae

if TYPE_CHECKING:
    from transformers import Dinov2Model

# Mean and standard deviation of ImageNet's colours, which DINOv2 was trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


class DinoEncoder(nn.Module):
    """`F_sem` from DINOv2 (Oquab et al., arXiv:2304.07193) through `transformers` (extra `dinov2`).

    Args:
        pretrained: local folder of a DINOv2 in the format of `transformers` (`config.json`, `model.safetensors`), such
            as a download of facebook/dinov2-base; None for random weights.
        config: arguments of `transformers.Dinov2Config`, used where `pretrained` is None.
        image_size: the photo is resized to this side in pixels, a multiple of the network's patch.
        train_backbone: let DINOv2 learn too; otherwise it is frozen.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        image_size: int = 518,
        train_backbone: bool = False,
    ) -> None:
        super().__init__()
        if pretrained is not None and config is not None:
            raise ValueError("DinoEncoder: give either `pretrained` or `config`, not both")
        self.backbone = _load_dino(pretrained, config or {})
        patch_size = self.backbone.config.patch_size
        assert isinstance(patch_size, int)  # DINOv2's patches are square
        if image_size % patch_size:
            raise ValueError(f"DinoEncoder: image_size {image_size} is no multiple of the patch of {patch_size} px")
        self.image_size, self.width = image_size, int(self.backbone.config.hidden_size)
        self.train_backbone = train_backbone
        self.backbone.requires_grad_(train_backbone).train(train_backbone)
        if train_backbone and self.backbone.embeddings.mask_token is not None:
            # Only pretraining masks patches: a parameter that never gets a gradient would stop data-parallel training.
            self.backbone.embeddings.mask_token.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> DinoEncoder:
        """A frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.train_backbone)
        return self

    def pixels(self, photo: Tensor) -> Tensor:
        """`photo [B,3,H,W]` in [0,1] -> what DINOv2 reads `[B,3,image_size,image_size]`."""
        size = (self.image_size, self.image_size)
        if photo.shape[-2:] != size:
            photo = F.interpolate(photo, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (photo - self.mean) / self.std

    def forward(self, photo: Tensor, mask: Tensor) -> Tensor:
        """`photo [B,3,H,W]` in [0,1] -> class token and patch tokens after the last norm `[B,1+L,width]`."""
        del mask  # the photo is matted already, and the pretrained patch embedding reads three channels
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_backbone):
            return self.backbone(pixel_values=self.pixels(photo)).last_hidden_state


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
        return self.smooth(_fuse(fused))


class WanVisualEncoder(nn.Module):
    """`F_vis` from intermediate layers of the Wan codec's encoder, fused top-down by a pyramid network.

    The codec's layers are frozen. Features are taken before each halving of the picture and after the middle block, so
    a codec of spatial stride 8 gives scales 1, 1/2, 1/4 and 1/8; the mask joins each scale as one more channel.

    Args:
        pretrained: folder of an `AutoencoderKLWan` (its `vae` subfolder is found too); None for random weights.
        config: arguments of `AutoencoderKLWan`, used where `pretrained` is None.
        width: channels of the fused map.
        finest: index of the finest scale that is used: 0 takes full resolution, 1 begins at half.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        width: int = 64,
        finest: int = 0,
    ) -> None:
        super().__init__()
        if pretrained is not None and config is not None:
            raise ValueError("WanVisualEncoder: give either `pretrained` or `config`, not both")
        vae = load_wan_vae(pretrained) if pretrained is not None else AutoencoderKLWan(**(config or {}))
        multiples = vae.config["dim_mult"]
        if not 0 <= finest < len(multiples):
            raise ValueError(f"WanVisualEncoder: finest {finest} is not one of the codec's {len(multiples)} scales")
        self.width, self.finest = width, finest
        self.conv_in, self.down_blocks = vae.encoder.conv_in, vae.encoder.down_blocks
        self.mid_block = vae.encoder.mid_block
        for part in (self.conv_in, self.down_blocks, self.mid_block):
            part.requires_grad_(False)
        channels = [vae.config["base_dim"] * multiple for multiple in multiples][finest:]
        self.lateral = nn.ModuleList(nn.Conv2d(channel + 1, width, 1) for channel in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    @torch.no_grad()
    def scales(self, photo: Tensor) -> list[Tensor]:
        """`photo [B,3,H,W]` in [0,1] -> features `[B,C_i,H/2^i,W/2^i]` of every scale, as in encoding a lone frame."""
        level = self.conv_in(photo[:, :, None] * 2 - 1)
        found = []
        for block in self.down_blocks:
            halved = block(level)
            if halved.shape[-1] < level.shape[-1]:
                found.append(level[:, :, 0])
            level = halved
        return [*found, self.mid_block(level)[:, :, 0]]

    def forward(self, photo: Tensor, mask: Tensor) -> Tensor:
        """`photo [B,3,H,W]` and `mask [B,1,H,W]` in [0,1] -> map `[B,width,H/2^finest,W/2^finest]`.

        ValueError where H or W is no multiple of the codec's spatial stride.
        """
        stride = 2 ** (len(self.lateral) + self.finest - 1)
        if photo.shape[-2] % stride or photo.shape[-1] % stride:
            raise ValueError(
                f"a photo of {photo.shape[-1]}x{photo.shape[-2]} px does not fit the codec: use multiples of {stride}"
            )
        fused = []
        for feature, lateral in zip(self.scales(photo)[self.finest :], self.lateral, strict=True):
            small = F.interpolate(mask, size=feature.shape[-2:], mode="area")
            fused.append(lateral(torch.cat([feature, small.to(feature.dtype)], dim=1)))
        return self.smooth(_fuse(fused))


def _fuse(levels: Sequence[Tensor]) -> Tensor:
    """Sum of maps `[B,C,H_i,W_i]`, finest first, at the finest size; each coarser sum is enlarged and then added."""
    result = levels[-1]
    for finer in reversed(levels[:-1]):
        result = finer + F.interpolate(result, size=finer.shape[-2:], mode="bilinear", align_corners=False)
    return result


def _load_dino(pretrained: str | None, config: dict[str, Any]) -> Dinov2Model:
    """A `Dinov2Model`; every tensor of the folder must fit, and none may be left to chance."""
    try:
        from transformers import Dinov2Config, Dinov2Model
    except ImportError:
        raise ValueError("DinoEncoder needs transformers: pip install -e '.[dinov2]'") from None
    if pretrained is None:
        return Dinov2Model(Dinov2Config(**config))
    if not (Path(pretrained) / "config.json").is_file():
        raise ValueError(f"no DINOv2 at {pretrained}: download facebook/dinov2-base and give its folder")
    try:
        # The library knows how the published names map to its own, which change between its versions.
        loaded = Dinov2Model.from_pretrained(pretrained, local_files_only=True, output_loading_info=True)
    except RuntimeError as error:
        raise ValueError(f"DINOv2 at {pretrained} does not fit its own config.json: {_first_line(error)}") from error
    backbone, report = cast("tuple[Dinov2Model, dict[str, list[str]]]", loaded)
    for kind in ("missing_keys", "unexpected_keys"):
        if report[kind]:
            names = sorted(report[kind])
            raise ValueError(f"DINOv2 at {pretrained} has {len(names)} {kind.replace('_', ' ')} ({names[0]}, ...)")
    return backbone


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
