"""The video shader: diffusers' Wan transformer, told what to paint by splatted maps, a photo and F_sem tokens.

Shapes: B batch, C latent channels, T latent frames, Tpix pixel frames, H W pixels, h w latent grid, N tokens a frame, D
token width, F splatted feature channels, R reference frames (0 or 1). Noise level s in [0,1]: x_s = (1 - s) x0 + s e,
velocity v = e - x0.

The network lives in *residual coordinates* of the guide g (the codec latent of the textured splat, plus the condition
head's correction d of it, zero at the start): it reads x_s - (1 - s) k g = (1 - s)(x0 - k g) + s e, where k [C] is
one learned skip a channel, and its raw output F stands for
    prediction "velocity": F = e - (x0 - k g), so v = F - k g and x0_hat = x_s - s v;
    prediction "x0":       F = x0 - k g, so x0_hat = F + k g and v = (x_s - x0_hat) / s   (Li and He, "JiT", 2025).
With k = 0 and "velocity" this is the pretrained network's own task.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

AttentionMode = Literal["full", "block_causal"]
Signal = Literal["maps", "semantic", "reference"]
SIGNALS: tuple[Signal, ...] = ("maps", "semantic", "reference")
TIMESTEPS = 1000.0  # Wan's clock: timestep = 1000 s
ROTARY_BASE = 10000.0
PICTURE_CHANNELS = 8  # of the maps beside the features: splatted RGB and alpha, textured RGB and the photo's share


@dataclass
class ShaderCondition:
    """What the shader is told about a clip; every tensor leads with the batch.

    guide `[B,C,T,h,w]`: codec latent of the textured splat, g. maps `[B,Tpix,F+8,H,W]`: splatted features, RGB, alpha,
    textured RGB and its share of the photo's pixels, in this order; or already passed through the condition head:
    encoded `[B,Cc,T,h,w]`. reference `[B,C,1,h,w]`: latent of the photo, coded alone; reference_guide and
    reference_maps `[B,1,F+8,H,W]` (or reference_encoded): its own splat. semantic `[B,L,S]`: F_sem tokens. starts_clip:
    whether frame 0 is the first of the video (a codec with temporal stride gives that frame a latent of its own).

    **What "dropped" means** (guidance dropout in training and the unconditional branch in sampling alike), by sample
    `[B]`, True = dropped:
      maps: the guide's input channels become zero and the encoded maps one learned vector (zero at the start);
      semantic: every token becomes one learned vector;
      reference: the reference frame stays in the sequence, its latent and guide channels zero, its encoded maps that
      same vector.
    The skip path k g (g corrected by the head) is never dropped: it only names the coordinates in which the network
    works and cancels in the difference of two branches. A signal that is absent (None) counts as dropped; without
    `reference` there is no reference frame at all.
    """

    guide: Tensor
    maps: Tensor | None = None
    encoded: Tensor | None = None
    reference: Tensor | None = None
    reference_guide: Tensor | None = None
    reference_maps: Tensor | None = None
    reference_encoded: Tensor | None = None
    semantic: Tensor | None = None
    maps_dropped: Tensor | None = None
    semantic_dropped: Tensor | None = None
    reference_dropped: Tensor | None = None
    starts_clip: bool = True

    @property
    def batch_size(self) -> int:
        return self.guide.shape[0]

    @property
    def num_frames(self) -> int:
        """Latent frames."""
        return self.guide.shape[2]

    def map(self, function: Callable[[Tensor], Tensor]) -> ShaderCondition:
        """Apply `function` to every tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if isinstance(value, Tensor)})

    def slice(self, start: int, stop: int) -> ShaderCondition:
        """Latent frames `start:stop`; reference and semantic tokens stay.

        ValueError for maps that are not at latent time: pass them through `VideoShader.encode_condition` first.
        """
        if self.maps is not None and self.maps.shape[1] != self.num_frames:
            raise ValueError("the maps are not at latent time: call VideoShader.encode_condition before slicing")
        return replace(
            self,
            guide=self.guide[:, :, start:stop],
            maps=None if self.maps is None else self.maps[:, start:stop],
            encoded=None if self.encoded is None else self.encoded[:, :, start:stop],
            starts_clip=self.starts_clip and start == 0,
        )

    def drop(self, mask: Tensor | None = None, which: Sequence[Signal] = SIGNALS) -> ShaderCondition:
        """Drop the signals of `which` for the samples where `mask` `[B]` is true (None: for all)."""
        if unknown := set(which) - set(SIGNALS):
            raise ValueError(f"no such signal: {sorted(unknown)}; choose from {SIGNALS}")
        if mask is None:
            mask = torch.ones(self.batch_size, dtype=torch.bool, device=self.guide.device)
        dropped = {}
        for name in which:
            before = getattr(self, f"{name}_dropped")
            dropped[f"{name}_dropped"] = mask if before is None else before | mask
        return replace(self, **dropped)

    @staticmethod
    def cat(conditions: Sequence[ShaderCondition]) -> ShaderCondition:
        """Join along the batch; all must hold the same fields (the `_dropped` masks excepted)."""
        values: dict[str, Tensor | None] = {}
        for name in (field.name for field in fields(ShaderCondition) if field.name != "starts_clip"):
            items = [getattr(condition, name) for condition in conditions]
            if name.endswith("_dropped") and any(item is not None for item in items):
                items = [
                    torch.zeros(c.batch_size, dtype=torch.bool, device=c.guide.device) if item is None else item
                    for c, item in zip(conditions, items, strict=True)
                ]
            if any(item is None for item in items) and any(item is not None for item in items):
                raise ValueError(f"conditions differ in '{name}': some have it, some do not")
            values[name] = None if items[0] is None else torch.cat(items)
        return replace(conditions[0], **values)


@dataclass
class Prediction:
    """velocity and x0, both `[B,C,T,h,w]`; one follows from the other at the given noise level."""

    velocity: Tensor
    x0: Tensor


@dataclass
class TokenFeatures:
    """Tokens after one block: frames `[B,T,N,D]`, reference `[B,1,N,D]` or None."""

    frames: Tensor
    reference: Tensor | None


@dataclass(frozen=True)
class Window:
    """Which earlier frames a chunk sees besides the reference: the first `sink_frames` for ever, and the
    `recent_frames` before it.

    Positions count the frames seen, so that distances stop growing once the window slides: reference 0, sink 1..,
    recent, chunk.
    """

    sink_frames: int = 3
    recent_frames: int = 9

    @property
    def capacity(self) -> int:
        """Frames held beside the reference."""
        return self.sink_frames + self.recent_frames

    def held(self, start: int) -> list[int]:
        """Indices of the frames that a chunk beginning at frame `start` sees before itself."""
        if start <= self.capacity:
            return list(range(start))
        return [*range(self.sink_frames), *range(start - self.recent_frames, start)]


class VideoShader(nn.Module):
    """Wan transformer with channel-concatenated conditions, a clean reference frame and per-frame noise levels.

    The blocks and weights are `WanTransformer3DModel`'s (keys under `transformer.`); only attention is replaced, by
    processors that take their mask, cache and rotary positions from the context object of one call. A reference frame
    attends to itself alone, in both attention modes: it is clean, so its keys and values do not depend on what is being
    painted and can be kept.

    Args:
        latent_channels: C of the codec.
        feature_channels: F; the maps have F + PICTURE_CHANNELS channels.
        semantic_dim: S, width of the F_sem tokens, projected to `text_dim`.
        condition_channels: channels of the condition head's output.
        head_channels: width of the condition head at half resolution; it doubles at a quarter.
        spatial_stride, temporal_stride: of the codec; the head maps pixels to latents by them.
        num_heads, head_dim, num_layers, ffn_dim, text_dim, freq_dim, patch_size: of the transformer; D = num_heads *
            head_dim.
        chunk_frames: latent frames that are painted at once in causal attention.
        prediction: what the raw output stands for (see the file's top).
        guide_skip_init: start of the skip k; 0 leaves pretrained weights intact, 1 where training starts from nothing.
        zero_init_conditions: start the weights of the added input channels at zero, as pretrained weights need.
        minimum_level: s below which "x0" stops dividing by s when it states a velocity.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        latent_channels: int = 96,
        feature_channels: int = 16,
        semantic_dim: int = 128,
        condition_channels: int = 32,
        head_channels: int = 32,
        spatial_stride: int = 8,
        temporal_stride: int = 1,
        num_heads: int = 4,
        head_dim: int = 64,
        num_layers: int = 6,
        ffn_dim: int = 1024,
        text_dim: int = 256,
        freq_dim: int = 256,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        chunk_frames: int = 3,
        prediction: Literal["velocity", "x0", "preconditioned"] = "velocity",
        guide_skip_init: float = 1.0,
        zero_init_conditions: bool = True,
        minimum_level: float = 0.05,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in locals().items()
            if name not in ("self", "__class__")
        }
        if patch_size[0] != 1:
            raise ValueError(f"patch_size {tuple(patch_size)}: a patch must span one latent frame, its first number 1")
        if prediction not in ("velocity", "x0", "preconditioned"):
            raise ValueError(f"prediction '{prediction}' is unknown: choose velocity, x0 or preconditioned")
        self.latent_channels, self.head_dim, self.num_heads = latent_channels, head_dim, num_heads
        self.patch_size, self.chunk_frames = tuple(patch_size), chunk_frames
        self.prediction, self.minimum_level = prediction, minimum_level
        self.gradient_checkpointing = gradient_checkpointing
        self.transformer = WanTransformer3DModel(
            patch_size=tuple(patch_size),
            num_attention_heads=num_heads,
            attention_head_dim=head_dim,
            in_channels=2 * latent_channels + condition_channels,
            out_channels=latent_channels,
            text_dim=text_dim,
            freq_dim=freq_dim,
            ffn_dim=ffn_dim,
            num_layers=num_layers,
        )
        for layer, block in enumerate(self.transformer.blocks):
            block.attn1.set_processor(SelfAttentionProcessor(layer))
            block.attn2.set_processor(CrossAttentionProcessor(layer))
        if prediction == "x0":
            # Training begins at the guide itself, not at noise around it; pretrained weights take this place.
            nn.init.zeros_(self.transformer.proj_out.weight)
            nn.init.zeros_(self.transformer.proj_out.bias)
        if zero_init_conditions:
            with torch.no_grad():
                self.transformer.patch_embedding.weight[:, latent_channels:].zero_()
        self.condition_head = ConditionHead(
            feature_channels + PICTURE_CHANNELS,
            condition_channels,
            latent_channels,
            head_channels,
            spatial_stride,
            temporal_stride,
        )
        self.semantic_projection = nn.Linear(semantic_dim, text_dim)
        self.skip = nn.Parameter(torch.full((latent_channels,), float(guide_skip_init)))
        self.null_maps = nn.Parameter(torch.zeros(condition_channels))
        self.null_semantic = nn.Parameter(torch.zeros(semantic_dim))

    # ------------------------------------------------------------------ conditions

    def encode_condition(self, condition: ShaderCondition) -> ShaderCondition:
        """Pass the maps through the condition head, once for all denoising steps.

        `encoded` takes their place, and the guide is corrected; a condition that is encoded already stays as it is.
        """
        changes: dict[str, Tensor | None] = {"maps": None, "reference_maps": None}
        if condition.maps is not None:
            changes["encoded"], correction = self.condition_head(condition.maps, condition.starts_clip)
            changes["guide"] = condition.guide + correction
        if condition.reference_maps is not None and condition.reference_guide is not None:
            changes["reference_encoded"], correction = self.condition_head(condition.reference_maps, True)
            changes["reference_guide"] = condition.reference_guide + correction
        return replace(condition, **changes)

    def semantic_tokens(self, condition: ShaderCondition) -> Tensor:
        """F_sem as the blocks' cross-attention reads it, `[B,L,D]`; a lone null token without F_sem."""
        if condition.semantic is None:
            semantic = self.null_semantic.expand(condition.batch_size, 1, -1)
        else:
            if condition.semantic.shape[-1] != self.null_semantic.shape[0]:
                raise ValueError(
                    f"F_sem tokens have {condition.semantic.shape[-1]} channels, the shader's semantic_dim is "
                    f"{self.null_semantic.shape[0]}: set semantic_dim to the semantic encoder's width"
                )
            semantic = _replace_dropped(condition.semantic, condition.semantic_dropped, self.null_semantic)
        return self.transformer.condition_embedder.text_embedder(self.semantic_projection(semantic))

    def _input_channels(
        self, residual: Tensor, guide: Tensor, encoded: Tensor | None, dropped: Tensor | None
    ) -> Tensor:
        """Join residual and guide `[B,C,T,h,w]` and encoded maps `[B,Cc,T,h,w]` on channels: `[B,2C+Cc,T,h,w]`."""
        null = self.null_maps.view(-1, 1, 1, 1)
        if encoded is None:
            encoded = null.expand(guide.shape[0], -1, *guide.shape[2:])
            guide = torch.zeros_like(guide)
        else:
            encoded = _replace_dropped(encoded, dropped, null)
            guide = _replace_dropped(guide, dropped, guide.new_zeros(()))
        return torch.cat([residual, guide, encoded], dim=1)

    def embed_reference(self, condition: ShaderCondition) -> Tensor:
        """The reference photo as one clean frame of tokens `[B,1,N,D]`; `condition` is already encoded."""
        if condition.reference is None or condition.reference_guide is None:
            raise ValueError("the condition has no reference: give `reference` and `reference_guide`")
        residual = condition.reference - self._skipped(condition.reference_guide)
        residual = _replace_dropped(residual, condition.reference_dropped, residual.new_zeros(()))
        channels = self._input_channels(
            residual, condition.reference_guide, condition.reference_encoded, condition.reference_dropped
        )
        return self._patchify(channels)

    def embed_frames(self, noisy: Tensor, level: Tensor, condition: ShaderCondition) -> Tensor:
        """Noisy latents `[B,C,T,h,w]` at levels `[B,T]` -> tokens `[B,T,N,D]`; `condition` is already encoded."""
        signal = (1 - level)[:, None, :, None, None]
        residual = noisy - signal * self._skipped(condition.guide)
        return self._patchify(
            self._input_channels(residual, condition.guide, condition.encoded, condition.maps_dropped)
        )

    def _skipped(self, guide: Tensor) -> Tensor:
        return self.skip.view(-1, 1, 1, 1) * guide

    def _patchify(self, channels: Tensor) -> Tensor:
        """`[B,C',T,h,w]` -> tokens `[B,T,N,D]`."""
        height, columns = channels.shape[-2:]
        _, rows_px, columns_px = self.patch_size
        if height % rows_px or columns % columns_px:
            raise ValueError(f"latents of {height}x{columns} do not divide into patches of {rows_px}x{columns_px}")
        embedding = self.transformer.patch_embedding
        return embedding(channels.to(embedding.weight.dtype)).flatten(3).permute(0, 2, 3, 1)

    # ------------------------------------------------------------------ the network

    def forward(
        self,
        noisy: Tensor,
        level: Tensor,
        condition: ShaderCondition,
        attention: AttentionMode = "full",
        window: Window | None = None,
    ) -> Prediction:
        """Predict a whole clip at once.

        Args:
            noisy: x_s `[B,C,T,h,w]`.
            level: s `[B,T]`, one for each latent frame.
            condition: of the same T frames.
            attention: "full" lets every frame see every frame; "block_causal" lets a chunk of `chunk_frames` see
                itself, the reference and earlier chunks.
            window: limits the earlier chunks in "block_causal", exactly as the rollout's cache does; None for no limit.
        """
        condition = self.encode_condition(condition)
        tokens, embedded_level, context, semantic = self._prepare(noisy, level, condition, attention, window)
        for layer in range(len(self.transformer.blocks)):
            tokens = self.run_block(layer, tokens, embedded_level, semantic, context)
        num_references = context.num_frames - noisy.shape[2]
        raw = self.project_out(tokens, embedded_level, context.num_frames, noisy.shape[-2:])[:, :, num_references:]
        return self.interpret(raw, noisy, level, condition.guide)

    def features(
        self,
        noisy: Tensor,
        level: Tensor,
        condition: ShaderCondition,
        layers: Sequence[int],
        attention: AttentionMode = "full",
    ) -> list[TokenFeatures]:
        """Tokens after the blocks `layers` (indices, ascending); later blocks are not run."""
        if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < len(self.transformer.blocks):
            raise ValueError(f"layers {list(layers)}: give ascending indices below {len(self.transformer.blocks)}")
        condition = self.encode_condition(condition)
        tokens, embedded_level, context, semantic = self._prepare(noisy, level, condition, attention, None)
        collected = []
        for layer in range(layers[-1] + 1):
            tokens = self.run_block(layer, tokens, embedded_level, semantic, context)
            if layer in layers:
                split = tokens.unflatten(0, (-1, context.num_frames))
                num_references = context.num_frames - noisy.shape[2]
                reference = split[:, :num_references] if num_references else None
                collected.append(TokenFeatures(split[:, num_references:], reference))
        return collected

    def _prepare(
        self, noisy: Tensor, level: Tensor, condition: ShaderCondition, attention: AttentionMode, window: Window | None
    ) -> tuple[Tensor, EmbeddedLevel, AttentionContext, SemanticContext]:
        if condition.num_frames != noisy.shape[2]:
            raise ValueError(f"the condition has {condition.num_frames} latent frames, the latents {noisy.shape[2]}")
        if level.shape != (noisy.shape[0], noisy.shape[2]):
            raise ValueError(f"level has shape {tuple(level.shape)}: give one a latent frame, {[*noisy.shape[:3:2]]}")
        tokens = self.embed_frames(noisy, level, condition)
        num_references = 0
        if condition.reference is not None:
            tokens = torch.cat([self.embed_reference(condition), tokens], dim=1)
            level = F.pad(level, (1, 0))
            num_references = 1
        rotary = self.rotary_table(noisy.shape[-2:], noisy.device)
        num_frames = tokens.shape[1]
        if attention == "full":
            if window is not None:
                raise ValueError("a window limits block_causal attention only: leave it out for full attention")
            context: AttentionContext = FullAttention(rotary, num_frames, num_references)
        elif attention == "block_causal":
            context = BlockCausalAttention(rotary, num_frames, num_references, self.chunk_frames, window)
        else:
            raise ValueError(f"attention '{attention}' is unknown: choose full or block_causal")
        semantic = SemanticContext(self.semantic_tokens(condition), num_frames)
        return tokens.flatten(0, 1), self.embed_level(level), context, semantic

    def embed_level(self, level: Tensor) -> EmbeddedLevel:
        """Noise levels `[B,T]` -> what modulates each frame's tokens, one vector a frame and never one a token."""
        embedder = self.transformer.condition_embedder
        projected = embedder.timesteps_proj(level.flatten() * TIMESTEPS)
        output = embedder.time_embedder(projected.to(embedder.time_embedder.linear_1.weight.dtype))
        return EmbeddedLevel(output, embedder.time_proj(embedder.act_fn(output)).unflatten(1, (6, -1)))

    def run_block(
        self, layer: int, tokens: Tensor, level: EmbeddedLevel, semantic: SemanticContext, context: AttentionContext
    ) -> Tensor:
        """One diffusers block over tokens `[B*T,N,D]`.

        Frames stand in the batch, so that the block's own modulation broadcasts over a frame's tokens; the processors
        join a clip's frames for attention. The contexts travel in the arguments that the block only hands on.
        """
        block = self.transformer.blocks[layer]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, tokens, semantic, level.blocks, context, use_reentrant=False)
        return block(tokens, semantic, level.blocks, context)

    def project_out(self, tokens: Tensor, level: EmbeddedLevel, num_frames: int, size: Sequence[int]) -> Tensor:
        """Tokens `[B*T,N,D]` -> the raw output F `[B,C,T,h,w]` for a latent grid `size` (h, w)."""
        transformer = self.transformer
        shift, scale = (transformer.scale_shift_table + level.output[:, None]).chunk(2, dim=1)
        tokens = (transformer.norm_out(tokens.float()) * (1 + scale) + shift).type_as(tokens)
        patches = transformer.proj_out(tokens)
        _, rows_px, columns_px = self.patch_size
        grid = (size[0] // rows_px, size[1] // columns_px)
        patches = patches.reshape(-1, num_frames, *grid, rows_px, columns_px, self.latent_channels)
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)

    def interpret(self, raw: Tensor, noisy: Tensor, level: Tensor, guide: Tensor) -> Prediction:
        """Raw output F, x_s and g `[B,C,T,h,w]` at levels `[B,T]` -> velocity and x0 (equations at the file's top)."""
        level = level[:, None, :, None, None]
        if self.prediction == "velocity":
            velocity = raw - self._skipped(guide)
            return Prediction(velocity, noisy - level * velocity)
        if self.prediction == "preconditioned":
            power = (1 - level).square() + level.square()
            residual = noisy - (1 - level) * self._skipped(guide)
            x0 = ((1 - level) * residual + level * power.sqrt() * raw) / power + self._skipped(guide)
            velocity = (2 * level - 1) * residual / power - raw / power.sqrt() - self._skipped(guide)
            return Prediction(velocity, x0)
        x0 = raw + self._skipped(guide)
        return Prediction((noisy - x0) / level.clamp(min=self.minimum_level), x0)

    def rotary_table(self, size: Sequence[int], device: torch.device) -> RotaryTable:
        """Rotary angles of a latent grid `size` (h, w): whole patches from 0 as in Wan, at every resolution."""
        return RotaryTable(self.head_dim, size[0] // self.patch_size[1], size[1] // self.patch_size[2], device)

    # ------------------------------------------------------------------ weights

    def save_pretrained(self, path: str | Path) -> None:
        """Write weights and constructor arguments to one safetensors file."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, str(path), metadata={"config": json.dumps(self.config)})

    @classmethod
    def from_pretrained(cls, path: str | Path, **overrides: Any) -> VideoShader:
        """Read a file of `save_pretrained`; `overrides` replace constructor arguments, such as chunk_frames."""
        if not Path(path).is_file():
            raise ValueError(f"shader weights {path} do not exist: train the teacher first, or give another `path`")
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        if "config" not in metadata:
            raise ValueError(f"{path} is no shader file: write it with VideoShader.save_pretrained")
        shader = cls(**{**json.loads(metadata["config"]), **overrides})
        shader.load_state_dict(load_file(str(path)))
        return shader

    def load_wan_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a diffusers-format Wan 2.1 text-to-video transformer; every key must fit.

        Only the patch embedding differs: its first `latent_channels` inputs are copied, the added ones become zero.
        """
        own = self.transformer.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(
                f"the Wan weights lack {len(missing)} tensors ({missing[0]}, ...): is it the right checkpoint?"
            )
        if unexpected := sorted(state.keys() - own.keys()):
            raise ValueError(
                f"the Wan weights hold {len(unexpected)} unknown tensors ({unexpected[0]}, ...): use Wan 2.1 T2V"
            )
        name = "patch_embedding.weight"
        latent_weight = state[name]
        if latent_weight.shape[1] != self.latent_channels:
            raise ValueError(
                f"{name} reads {latent_weight.shape[1]} latent channels, the shader has {self.latent_channels}"
            )
        padding = own[name].shape[1] - self.latent_channels
        state = {**state, name: F.pad(latent_weight, (0, 0, 0, 0, 0, 0, 0, padding))}
        for key, value in state.items():
            if value.shape != own[key].shape:
                raise ValueError(
                    f"{key} is {tuple(value.shape)}, the shader's {tuple(own[key].shape)}: check its sizes"
                )
        self.transformer.load_state_dict(state, assign=next(iter(own.values())).is_meta)

    def load_wan_checkpoint(self, folder: str | Path) -> None:
        """`load_wan_state_dict` from a folder of diffusers safetensors (a `transformer` subfolder is found too)."""
        folder = Path(folder)
        folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError(
                f"no safetensors in {folder}: download Wan-AI/Wan2.1-T2V-1.3B-Diffusers and give its folder"
            )
        self.load_wan_state_dict({key: value for shard in shards for key, value in load_file(str(shard)).items()})


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
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

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


# ---------------------------------------------------------------------- attention


@dataclass
class EmbeddedLevel:
    """Of each frame: output `[B*T,D]` modulates the last norm, blocks `[B*T,6,D]` the blocks."""

    output: Tensor
    blocks: Tensor


class RotaryTable:
    """Rotary angles of Wan, a head's channels split into time, rows and columns; for any temporal position."""

    def __init__(self, head_dim: int, rows: int, columns: int, device: torch.device) -> None:
        axis = 2 * (head_dim // 6)
        self.tokens_per_frame = rows * columns
        self._time = _frequencies(head_dim - 2 * axis, device)
        frequencies = _frequencies(axis, device)
        index = torch.arange(max(rows, columns), dtype=torch.float64, device=device)[:, None] * frequencies
        grid = torch.cat(
            [index[:rows, None].expand(-1, columns, -1), index[None, :columns].expand(rows, -1, -1)], dim=-1
        )
        self._space = grid.flatten(0, 1)

    def at(self, positions: Sequence[int]) -> Tensor:
        """Unit complex numbers `[P*N,1,head_dim/2]` for frames at temporal `positions`."""
        times = torch.tensor(positions, dtype=torch.float64, device=self._time.device)[:, None] * self._time
        angles = torch.cat(
            [
                times[:, None].expand(-1, self.tokens_per_frame, -1),
                self._space[None].expand(len(positions), -1, -1),
            ],
            dim=-1,
        ).flatten(0, 1)
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None]


def rotate(tokens: Tensor, rotary: Tensor) -> Tensor:
    """Rotary embedding of interleaved channel pairs: tokens `[B,P*N,heads,head_dim]`, rotary `[P*N,1,head_dim/2]`."""
    pairs = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotary).flatten(-2).type_as(tokens)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Dense attention over `[B,L,heads,head_dim]`."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


class AttentionContext(ABC):
    """Of one call: joins a clip's frames, which stand in the batch of the blocks, and says what each of them sees.

    `num_frames` counts the reference. Query, key and value come before rotary, `[B,T*N,heads,head_dim]`.
    """

    num_frames: int

    @abstractmethod
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What the frames read in block `layer`, `[B,T*N,heads,head_dim]`."""


class FullAttention(AttentionContext):
    """Every frame sees every frame; the reference only itself."""

    def __init__(self, rotary: RotaryTable, num_frames: int, num_references: int) -> None:
        self.num_frames = num_frames
        self._num_reference_tokens = num_references * rotary.tokens_per_frame
        # Distances alone matter, so that frames may count from 1 whether or not a reference stands at 0.
        self._rotary = rotary.at(range(1 - num_references, 1 - num_references + num_frames))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        del layer
        query, key = rotate(query, self._rotary), rotate(key, self._rotary)
        first = self._num_reference_tokens
        if not first:
            return attend(query, key, value)
        reference = attend(query[:, :first], key[:, :first], value[:, :first])
        return torch.cat([reference, attend(query[:, first:], key, value)], dim=1)


class BlockCausalAttention(AttentionContext):
    """A chunk sees the reference, the earlier chunks that the window holds, and itself.

    Chunk by chunk rather than under one dense mask: it skips what is masked, and positions differ between chunks once
    the window slides.
    """

    def __init__(
        self, rotary: RotaryTable, num_frames: int, num_references: int, chunk_frames: int, window: Window | None
    ) -> None:
        self.num_frames = num_frames
        self._tokens_per_frame = rotary.tokens_per_frame
        self._rotary = rotary.at(range(1 - num_references, 1 - num_references + num_frames))
        self._num_references = num_references
        self._chunks: list[tuple[int, int, list[int] | None]] = [(0, 1, None)] if num_references else []
        for start in range(0, num_frames - num_references, chunk_frames):
            stop = min(start + chunk_frames, num_frames - num_references)
            seen = None
            if window is not None and start > window.capacity:
                seen = [*range(-num_references, 0), *window.held(start), *range(start, stop)]
                seen = [num_references + frame for frame in seen]
            self._chunks.append((start + num_references, stop + num_references, seen))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        del layer
        rotated_query, rotated_key = rotate(query, self._rotary), rotate(key, self._rotary)
        outputs = []
        for start, stop, seen in self._chunks:
            span, past = self._tokens(start, stop), self._tokens(0, stop)
            if seen is None:
                outputs.append(attend(rotated_query[:, span], rotated_key[:, past], value[:, past]))
                continue
            rotary = self._rotary[self._tokens(0, len(seen))]
            keys, values = (self._gather(tensor, seen) for tensor in (key, value))
            queries = rotate(query[:, span], rotary[-(span.stop - span.start) :])
            outputs.append(attend(queries, rotate(keys, rotary), values))
        return torch.cat(outputs, dim=1)

    def _tokens(self, start: int, stop: int) -> slice:
        return slice(start * self._tokens_per_frame, stop * self._tokens_per_frame)

    def _gather(self, tensor: Tensor, frames: list[int]) -> Tensor:
        return tensor.unflatten(1, (self.num_frames, -1))[:, frames].flatten(1, 2)


class SemanticContext:
    """What cross-attention reads: tokens `[B,L,D]`, or every layer's keys and values of them, kept between calls."""

    def __init__(self, tokens: Tensor, num_frames: int) -> None:
        self.tokens = tokens
        self.num_frames = num_frames
        self.keys_values: list[tuple[Tensor, Tensor]] | None = None

    def project(self, attention: nn.Module, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[B,L,heads,head_dim]` of `layer`."""
        if self.keys_values is not None:
            return self.keys_values[layer]
        key = attention.norm_k(attention.to_k(self.tokens)).unflatten(2, (attention.heads, -1))
        return key, attention.to_v(self.tokens).unflatten(2, (attention.heads, -1))


class SelfAttentionProcessor:
    """In place of diffusers' `WanAttnProcessor`: the context decides on mask, cache and positions."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self, attention: nn.Module, tokens: Tensor, encoder: None, mask: None, context: AttentionContext
    ) -> Tensor:
        del encoder, mask
        query = attention.norm_q(attention.to_q(tokens))
        key = attention.norm_k(attention.to_k(tokens))
        value = attention.to_v(tokens)
        query, key, value = (
            tensor.reshape(
                -1, context.num_frames * tokens.shape[1], attention.heads, tensor.shape[-1] // attention.heads
            )
            for tensor in (query, key, value)
        )
        output = context.attend(self.layer, query.type_as(value), key.type_as(value), value)
        return attention.to_out[0](output.reshape(tokens.shape[0], tokens.shape[1], -1))


class CrossAttentionProcessor:
    """Every token of a clip reads the clip's semantic tokens."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def __call__(
        self, attention: nn.Module, tokens: Tensor, semantic: SemanticContext, mask: None, rotary: None
    ) -> Tensor:
        del mask, rotary
        query = attention.norm_q(attention.to_q(tokens))
        query = query.reshape(
            -1, semantic.num_frames * tokens.shape[1], attention.heads, query.shape[-1] // attention.heads
        )
        key, value = semantic.project(attention, self.layer)
        output = attend(query.type_as(value), key.type_as(value), value)
        return attention.to_out[0](output.reshape(tokens.shape[0], tokens.shape[1], -1))


def _frequencies(width: int, device: torch.device) -> Tensor:
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
    return torch.exp(-math.log(ROTARY_BASE) * exponent)


def _replace_dropped(value: Tensor, dropped: Tensor | None, null: Tensor) -> Tensor:
    """Samples of `value` `[B,...]` where `dropped` `[B]` is true become `null`."""
    if dropped is None:
        return value
    return torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), null.to(value.dtype), value)
