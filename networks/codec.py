"""Codecs between pixels and the normalised latents that the video shader paints.

Shapes: B batch, T pixel frames, T' latent frames, H W pixels, C latent channels, h w latent grid (pixels divided by
spatial_stride).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from diffusers.models import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visa.artifacts.files import shipped

BLOCK = 8  # side of a transform block, px
# Coefficients kept of luma, red-blue and green-magenta. All of luma: with 38 of them rendered people reach 34 dB at
# 128 px, and the perceptual distance of decoded truth itself is a quarter of a painted frame's. These give 47 to 54 dB.
KEPT_CHANNELS = (64, 16, 16)


class BlockCodec(nn.Module):
    """Orthonormal 8x8 DCT of opponent colours that keeps 96 of 192 coefficients; no training, no weights.

    Every frame is coded alone (`temporal_stride` 1). `encode(decode(z)) == z` for every latent, since the kept basis is
    orthonormal. `mean` and `scale` (`[96]`) whiten the channels; they are zeros and ones until `load_statistics`.

    Args:
        statistics: a safetensors file written by `save_statistics`, or None for no whitening.
    """

    spatial_stride = BLOCK
    temporal_stride = 1
    basis: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, statistics: str | None = None) -> None:
        super().__init__()
        self.latent_channels = sum(KEPT_CHANNELS)
        self.register_buffer("basis", _block_basis(), persistent=False)
        self.register_buffer("mean", torch.zeros(self.latent_channels))
        self.register_buffer("scale", torch.ones(self.latent_channels))
        if statistics is not None:
            self.load_statistics(statistics)

    def channel_weight(self) -> Tensor:
        """`[96,1,1,1]` weight of each channel's squared error, mean 1: its share of pixels, to the power one half.

        Whitened, a coefficient of two grey levels would count as much as the mean of a block. In proportion to `scale`
        the loss lies half-way between that and the error of pixels; what it is least for does not change.
        """
        return (self.scale / self.scale.mean())[:, None, None, None]

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames that `num_frames` pixel frames become."""
        return num_frames

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        """Pixel frames that a clip of `num_latent_frames` latent frames becomes."""
        return num_latent_frames

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[B,T,3,H,W]` in [0,1] -> latents `[B,96,T,H/8,W/8]`. ValueError where H or W is no multiple of 8."""
        batch, num_frames, _, height, width = frames.shape
        _check_size(height, width, self.spatial_stride)
        rows, columns = height // BLOCK, width // BLOCK
        blocks = frames.reshape(batch * num_frames, 3, rows, BLOCK, columns, BLOCK).permute(0, 1, 3, 5, 2, 4)
        coefficients = self.basis @ (blocks.reshape(batch * num_frames, 3 * BLOCK * BLOCK, rows * columns) - 0.5)
        latents = (coefficients - self.mean[:, None]) / self.scale[:, None]
        return latents.reshape(batch, num_frames, -1, rows, columns).transpose(1, 2).contiguous()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B,96,T,h,w]` -> frames `[B,T,3,8h,8w]`, not clamped."""
        batch, _, num_frames, rows, columns = latents.shape
        coefficients = latents.transpose(1, 2).reshape(batch * num_frames, -1, rows * columns)
        coefficients = coefficients * self.scale[:, None] + self.mean[:, None]
        blocks = (self.basis.T @ coefficients + 0.5).reshape(batch * num_frames, 3, BLOCK, BLOCK, rows, columns)
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(batch, num_frames, 3, rows * BLOCK, columns * BLOCK)

    def stream(self) -> BlockCodecStream:
        """A coder for chunks of one endless video."""
        return BlockCodecStream(self)

    def load_statistics(self, path: str | Path) -> None:
        """Take `mean` and `scale` `[96]` from a safetensors file."""
        path = shipped(path)
        if not path.is_file():
            raise ValueError(f"codec statistics {path} do not exist: run python -m visa.tools.measure_latents")
        statistics = load_file(str(path))
        for name in ("mean", "scale"):
            if name not in statistics or statistics[name].shape != (self.latent_channels,):
                raise ValueError(f"{path} holds no '{name}' of {self.latent_channels} channels: measure it anew")
            getattr(self, name).copy_(statistics[name])

    def save_statistics(self, path: str | Path) -> None:
        """Write `mean` and `scale` to a safetensors file."""
        save_file({"mean": self.mean.cpu().contiguous(), "scale": self.scale.cpu().contiguous()}, str(path))


class BlockCodecStream:
    """`WanCodecStream`'s interface over a codec without memory in time."""

    def __init__(self, codec: BlockCodec) -> None:
        self.codec = codec

    def encode(self, frames: Tensor) -> Tensor:
        """The next frames `[B,t,3,H,W]` -> latents `[B,C,t,h,w]`."""
        return self.codec.encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents `[B,C,t,h,w]` -> frames `[B,t,3,H,W]`."""
        return self.codec.decode(latents)


class StreamingDecoder(Protocol):
    """A light stand-in for the Wan decoder (a tiny distilled one, say): a module, or anything that is called so.

    Called with normalised latents `[B,C,t,h,w]` and the state that the previous chunk left (None at the start of a
    video); gives frames `[B,T,3,H,W]` in [0,1] and the state for the next chunk. The first latent frame of a video is
    one pixel frame, each later one four.
    """

    def __call__(self, latents: Tensor, state: Any) -> tuple[Tensor, Any]: ...


class WanCodec(nn.Module):
    """diffusers' `AutoencoderKLWan` with its latent statistics; posterior mode, frozen.

    The first pixel frame of a video is a latent frame of its own and each later latent frame holds four: 1 + 4k frames
    are 1 + k latents.

    Args:
        pretrained: local folder of an `AutoencoderKLWan` (its `vae` subfolder is found too); None for random weights.
        config: constructor arguments of `AutoencoderKLWan`, used where `pretrained` is None.
        decoder: takes the place of the Wan decoder, called as `StreamingDecoder` says; it is frozen, and lets gradients
            through. None for the Wan decoder itself.
    """

    temporal_stride = 4
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        decoder: nn.Module | StreamingDecoder | None = None,
    ) -> None:
        super().__init__()
        if pretrained is not None and config is not None:
            raise ValueError("WanCodec: give either `pretrained` or `config`, not both")
        self.vae = load_wan_vae(pretrained) if pretrained is not None else AutoencoderKLWan(**(config or {}))
        self.vae.requires_grad_(False).eval()
        settings = self.vae.config
        if sum(settings["temperal_downsample"]) != 2 or settings["patch_size"] is not None:
            raise ValueError(
                "WanCodec: the autoencoder must halve time twice and have no patch_size (Wan 2.1's layout)"
            )
        self.decoder = decoder.requires_grad_(False).eval() if isinstance(decoder, nn.Module) else decoder
        self.latent_channels = int(settings["z_dim"])
        self.spatial_stride = 2 ** (len(settings["dim_mult"]) - 1)
        shape = (1, self.latent_channels, 1, 1, 1)
        channels = slice(0, self.latent_channels)  # a small random config may keep the 16 default statistics
        self.register_buffer("mean", torch.tensor(settings["latents_mean"][channels]).view(shape), persistent=False)
        self.register_buffer("scale", torch.tensor(settings["latents_std"][channels]).view(shape), persistent=False)

    def train(self, mode: bool = True) -> WanCodec:
        """Stay in evaluation mode: the codec is frozen."""
        del mode
        return super().train(False)

    def channel_weight(self) -> Tensor:
        """`[C,1,1,1]` ones: a learned codec's channels count alike."""
        return torch.ones_like(self.scale[0])

    def num_latent_frames(self, num_frames: int) -> int:
        """Latent frames that `num_frames` pixel frames become. ValueError unless `num_frames` is 1 + 4k."""
        if num_frames < 1 or (num_frames - 1) % self.temporal_stride:
            raise ValueError(f"{num_frames} frames do not fit the Wan codec: use 1 + 4k frames (1, 5, 9, ...)")
        return 1 + (num_frames - 1) // self.temporal_stride

    def num_pixel_frames(self, num_latent_frames: int) -> int:
        """Pixel frames that a clip of `num_latent_frames` latent frames becomes."""
        return 1 + self.temporal_stride * (num_latent_frames - 1)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[B,1+4k,3,H,W]` in [0,1] -> normalised latents `[B,C,1+k,h,w]`."""
        self.num_latent_frames(frames.shape[1])
        return self.stream().encode(frames)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B,C,1+k,h,w]` -> frames `[B,1+4k,3,H,W]`, not clamped."""
        return self.stream().decode(latents)

    def stream(self) -> WanCodecStream:
        """A coder for chunks of one endless video, with causal features of its own."""
        return WanCodecStream(self)


class WanCodecStream:
    """Codes one video chunk by chunk, equal to coding it whole.

    `AutoencoderKLWan.encode` and `.decode` clear their feature cache on entry, so the encoder and the decoder are
    driven here with feature maps that outlive a call.
    """

    def __init__(self, codec: WanCodec) -> None:
        self.codec = codec
        counts = codec.vae._cached_conv_counts
        self._encoder_features: list[Any] = [None] * counts["encoder"]
        self._decoder_features: list[Any] = [None] * counts["decoder"]
        self._decoder_state: Any = None
        self._has_encoded = self._has_decoded = False

    def encode(self, frames: Tensor) -> Tensor:
        """The next frames `[B,t,3,H,W]` -> latents `[B,C,t',h,w]`; t is 1 + 4k in the first call, then 4k."""
        codec, stride = self.codec, self.codec.temporal_stride
        _check_size(frames.shape[-2], frames.shape[-1], codec.spatial_stride)
        num_lone = 0 if self._has_encoded else 1
        if frames.shape[1] < 1 or (frames.shape[1] - num_lone) % stride:
            raise ValueError(
                f"{frames.shape[1]} frames do not fit the Wan codec: give {num_lone} + {stride}k frames in this call"
            )
        self._has_encoded = True
        pixels = frames.transpose(1, 2) * 2 - 1
        pieces = ([pixels[:, :, :1]] if num_lone else []) + list(pixels[:, :, num_lone:].split(stride, dim=2))
        pieces = [piece for piece in pieces if piece.shape[2]]
        moments = [codec.vae.encoder(piece, feat_cache=self._encoder_features, feat_idx=[0]) for piece in pieces]
        mode = codec.vae.quant_conv(torch.cat(moments, dim=2))[:, : codec.latent_channels]
        return (mode - codec.mean) / codec.scale

    def decode(self, latents: Tensor) -> Tensor:
        """The next latents `[B,C,t',h,w]` -> frames `[B,t,3,H,W]`, not clamped."""
        codec = self.codec
        if codec.decoder is not None:
            frames, self._decoder_state = codec.decoder(latents, self._decoder_state)
            expected = latents.shape[2] * codec.temporal_stride
            if not self._has_decoded:
                expected = codec.num_pixel_frames(latents.shape[2])
            self._has_decoded = True
            if frames.shape[1] != expected:
                raise ValueError(
                    f"codec decoder {type(codec.decoder).__name__} gives {frames.shape[1]} frames for "
                    f"{latents.shape[2]} latent frames: it must give {expected} here (see StreamingDecoder)"
                )
            return frames
        features = codec.vae.post_quant_conv(latents * codec.scale + codec.mean)
        pieces = []
        for piece in features.split(1, dim=2):
            is_first, self._has_decoded = not self._has_decoded, True
            pieces.append(
                codec.vae.decoder(piece, feat_cache=self._decoder_features, feat_idx=[0], first_chunk=is_first)
            )
        return (torch.cat(pieces, dim=2).transpose(1, 2) + 1) / 2


def load_wan_vae(folder: str) -> AutoencoderKLWan:
    """An `AutoencoderKLWan` from a local folder in diffusers' format; a `vae` subfolder is found too.

    ValueError unless the file's tensors are exactly the network's: diffusers itself only warns.
    """
    path = Path(folder) / "vae" if (Path(folder) / "vae").is_dir() else Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"no Wan codec at {folder}: download Wan-AI/Wan2.1-T2V-1.3B-Diffusers and give its folder")
    try:
        loaded = AutoencoderKLWan.from_pretrained(path, output_loading_info=True, local_files_only=True)
    except (RuntimeError, ValueError, OSError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ValueError(f"the Wan codec at {folder} does not fit its own config.json: {first_line}") from error
    vae, report = cast("tuple[AutoencoderKLWan, dict[str, list[Any]]]", loaded)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = sorted(str(name) for name in report[kind])
            raise ValueError(f"the Wan codec at {folder} has {len(names)} {kind.replace('_', ' ')} ({names[0]}, ...)")
    return vae


def _check_size(height: int, width: int, stride: int) -> None:
    if height % stride or width % stride:
        raise ValueError(f"frames of {width}x{height} px do not fit the codec: use multiples of {stride}")


def _block_basis() -> Tensor:
    """Orthonormal rows `[96,192]` over (colour, y, x) of one block, in double precision before the cast.

    Colours: luma R+G+B, then R-B and 2G-R-B. DCT-II coefficients are ordered by u + v, those nearest the diagonal
    first.
    """
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
    colours = colours / colours.norm(dim=1, keepdim=True)
    index = torch.arange(BLOCK, dtype=torch.float64)
    cosines = torch.cos(math.pi * (index[None] + 0.5) * index[:, None] / BLOCK) * math.sqrt(2 / BLOCK)
    cosines[0] /= math.sqrt(2)
    order = sorted(
        ((u, v) for u in range(BLOCK) for v in range(BLOCK)), key=lambda uv: (sum(uv), abs(uv[0] - uv[1]), uv)
    )
    rows = [
        torch.einsum("c,y,x->cyx", colours[channel], cosines[u], cosines[v]).flatten()
        for channel, kept in enumerate(KEPT_CHANNELS)
        for u, v in order[:kept]
    ]
    return torch.stack(rows).float()
