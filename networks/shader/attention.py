"""Attention of the video shader: who sees whom, at which rotary positions, in place of diffusers' processors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanAttention

AttentionMode = Literal["full", "block_causal"]
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class Window:
    """Which earlier latent frames a chunk sees besides the reference.

    Positions count the frames seen, so that distances stop growing once the window slides: reference 0, sink 1..,
    recent, chunk.

    Args:
        sink_frames: of the video's beginning, seen for ever.
        recent_frames: right before the chunk.
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

    def project(self, attention: WanAttention, layer: int) -> tuple[Tensor, Tensor]:
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
        self, attention: WanAttention, tokens: Tensor, encoder: None, mask: None, context: AttentionContext
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
        self, attention: WanAttention, tokens: Tensor, semantic: SemanticContext, mask: None, rotary: None
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
