"""The video shader's network: which coordinates it works in, and what its output stands for.

The network lives in *residual coordinates* of the guide g (the codec latent of the textured splat, plus the condition
head's correction d of it, zero at the start): it reads r = x_s - (1 - s) k g = (1 - s)(x0 - k g) + s e, where k [C] is
one learned skip a channel, and its raw output F stands for
    prediction "velocity": F = e - (x0 - k g), so v = F - k g and x0_hat = x_s - s v;
    prediction "x0":       F = x0 - k g, so x0_hat = F + k g and v = (x_s - x0_hat) / s   (Li and He, "JiT", 2025);
    prediction "preconditioned": F = (s (x0 - k g) - (1 - s) e) / sqrt(p) with p = (1 - s)^2 + s^2, so
                           x0_hat = k g + ((1 - s) r + s sqrt(p) F) / p and
                           v = ((2 s - 1) r - sqrt(p) F) / p - k g.
With k = 0 and "velocity" this is the pretrained network's own task. "preconditioned" is the scaling of Karras et al.
(2022, "EDM", arXiv:2206.00364, eq. 7) on this path, their c_in left at 1, for a residual x0 - k g of unit variance, to
which the codec's statistics bring it (tools/measure_latents.py): the target F then has unit variance at every level,
F = 0 says the best linear estimate of the residual, (1 - s) r / p, and nothing is divided by s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models import WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from visa.networks.shader.attention import (
    AttentionContext,
    AttentionMode,
    BlockCausalAttention,
    CrossAttentionProcessor,
    FullAttention,
    RotaryTable,
    SelfAttentionProcessor,
    SemanticContext,
    Window,
)
from visa.networks.shader.condition import PICTURE_CHANNELS, ShaderCondition, replace_dropped
from visa.networks.shader.head import ConditionHead

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformerBlock

TIMESTEPS = 1000.0  # Wan's clock: timestep = 1000 s


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


@dataclass
class EmbeddedLevel:
    """Of each frame: output `[B*T,D]` modulates the last norm, blocks `[B*T,6,D]` the blocks."""

    output: Tensor
    blocks: Tensor


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
        for layer, block in enumerate(self.blocks):
            # diffusers' type of a processor lists its own alone.
            block.attn1.set_processor(cast(Any, SelfAttentionProcessor(layer)))
            block.attn2.set_processor(cast(Any, CrossAttentionProcessor(layer)))
        if prediction == "x0":
            # Training begins at the guide itself, not at noise around it; pretrained weights take this place.
            for parameter in self.transformer.proj_out.parameters():
                nn.init.zeros_(parameter)
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

    @property
    def blocks(self) -> Sequence[WanTransformerBlock]:
        """The transformer's blocks."""
        return cast("Sequence[WanTransformerBlock]", self.transformer.blocks)

    # ------------------------------------------------------------------ conditions

    def encode_condition(self, condition: ShaderCondition) -> ShaderCondition:
        """Pass the maps through the condition head, once for all denoising steps.

        `encoded` takes their place, and the guide is corrected; a condition that is encoded already stays as it is.
        """
        changes: dict[str, Any] = {"maps": None, "reference_maps": None}
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
            semantic = replace_dropped(condition.semantic, condition.semantic_dropped, self.null_semantic)
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
            encoded = replace_dropped(encoded, dropped, null)
            guide = replace_dropped(guide, dropped, guide.new_zeros(()))
        return torch.cat([residual, guide, encoded], dim=1)

    def embed_reference(self, condition: ShaderCondition) -> Tensor:
        """The reference photo as one clean frame of tokens `[B,1,N,D]`; `condition` is already encoded."""
        if condition.reference is None or condition.reference_guide is None:
            raise ValueError("the condition has no reference: give `reference` and `reference_guide`")
        residual = condition.reference - self._skipped(condition.reference_guide)
        residual = replace_dropped(residual, condition.reference_dropped, residual.new_zeros(()))
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
        for layer in range(len(self.blocks)):
            tokens = self.run_block(layer, tokens, embedded_level, semantic, context)
        num_references = context.num_frames - noisy.shape[2]
        raw = self.project_out(tokens, embedded_level, context.num_frames, noisy.shape[-2:])[:, :, num_references:]
        return self.interpret(raw, noisy, level, condition.guide)

    def features(
        self, noisy: Tensor, level: Tensor, condition: ShaderCondition, layers: Sequence[int]
    ) -> list[TokenFeatures]:
        """Tokens after the blocks `layers` (indices, ascending) under full attention; later blocks are not run."""
        if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < len(self.blocks):
            raise ValueError(f"layers {list(layers)}: give ascending indices below {len(self.blocks)}")
        condition = self.encode_condition(condition)
        tokens, embedded_level, context, semantic = self._prepare(noisy, level, condition, "full", None)
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
        block = self.blocks[layer]
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
