"""Few-step autoregressive painting with a key-value cache: one object for training rollouts, `predict` and streaming.

Shapes as in `networks/shader`; t latent frames of one chunk (chunk_frames, fewer in a video's last chunk).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from visa.networks.sampler import draw_noise
from visa.networks.shader import (
    AttentionContext,
    EmbeddedLevel,
    Prediction,
    RotaryTable,
    SemanticContext,
    ShaderCondition,
    VideoShader,
    Window,
    attend,
    rotate,
)


class KVCache:
    """Keys and values of the reference, the sink, the recent frames and the chunk being painted, allocated once.

    Keys are kept before rotary embedding; a rotated copy is renewed once a chunk, when positions change, instead of at
    each denoising step. Slots: reference, sink, ring of recent frames, chunk. Attention does not care for the order of
    keys, so sliding moves nothing: the new chunk overwrites the oldest slots of the ring.
    """

    def __init__(
        self, shader: VideoShader, batch: int, rotary: RotaryTable, window: Window, dtype: torch.dtype
    ) -> None:
        self.window = window
        self.tokens_per_frame = rotary.tokens_per_frame
        num_slots = 1 + window.capacity + shader.chunk_frames
        self.rotary = rotary.at(range(num_slots))
        shape = (batch, num_slots * rotary.tokens_per_frame, shader.num_heads, shader.head_dim)
        layers = range(len(shader.blocks))
        device = self.rotary.device
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.rotated_keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.reset()

    def reset(self) -> None:
        """Forget everything, the reference included."""
        self.num_held = 0  # slots in use, the reference's among them
        self._oldest = 0  # of the ring's slots

    def tokens(self, start: int, stop: int) -> slice:
        """Tokens of the slots `start:stop`."""
        return slice(start * self.tokens_per_frame, stop * self.tokens_per_frame)

    def commit(self, num_frames: int) -> None:
        """Keep the chunk that the last pass wrote behind the held frames."""
        full = 1 + self.window.capacity
        if self.num_held < full:
            self.num_held += num_frames
            return
        ring = full - self.window.recent_frames
        source = self.tokens(full, full + num_frames)
        target = self.tokens(ring + self._oldest, ring + self._oldest + num_frames)
        self._oldest = (self._oldest + num_frames) % self.window.recent_frames
        span = self.tokens(ring, full)
        positions = self.rotary[span].roll(self._oldest * self.tokens_per_frame, dims=0)
        for keys, rotated_keys, values in zip(self.keys, self.rotated_keys, self.values, strict=True):
            keys[:, target] = keys[:, source]
            values[:, target] = values[:, source]
            rotated_keys[:, span] = rotate(keys[:, span], positions)


class CachedAttention(AttentionContext):
    """The current frames see what the cache holds and themselves.

    Without gradient the current keys and values go straight into the cache's last slots; with gradient the cache is
    only read, and a copy of what was read is kept, for the cache moves on before the backward pass.
    """

    def __init__(self, cache: KVCache, num_frames: int, keep_keys: bool, use_snapshot: bool) -> None:
        self.num_frames = num_frames
        self._cache, self._keep_keys = cache, keep_keys
        self._held = cache.tokens(0, cache.num_held)
        self._seen = cache.tokens(0, cache.num_held + num_frames)
        self._current = slice(self._held.stop, self._seen.stop)
        self._rotary = cache.rotary[self._current]
        self._snapshot: list[tuple[Tensor, Tensor]] | None = None
        if use_snapshot:
            self._snapshot = [
                (keys[:, self._held].clone(), values[:, self._held].clone())
                for keys, values in zip(cache.rotated_keys, cache.values, strict=True)
            ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, rotated_key = rotate(query, self._rotary), rotate(key, self._rotary)
        if self._snapshot is not None:
            held_keys, held_values = self._snapshot[layer]
            return attend(query, torch.cat([held_keys, rotated_key], 1), torch.cat([held_values, value], 1))
        cache = self._cache
        cache.rotated_keys[layer][:, self._current] = rotated_key
        cache.values[layer][:, self._current] = value
        if self._keep_keys:
            cache.keys[layer][:, self._current] = key
        return attend(query, cache.rotated_keys[layer][:, self._seen], cache.values[layer][:, self._seen])


class CausalRollout:
    """Paints a video chunk by chunk: a few denoising steps, then a pass over the clean chunk for its keys and values.

    A step predicts x0, then adds fresh noise down to the next level. `start` with the reference, then `step` for each
    chunk; or call the object for a whole clip.

    Args:
        shader: a network trained with block-causal attention.
        noise_levels: the denoising steps, from 1 downwards.
        window: frames that the cache holds besides the reference, in whole chunks, one recent chunk at least.
        has_clean_pass: whether the pass over the clean chunk is made; without it the keys and values of its last
            denoising step stand, which saw it at that step's noise level: faster, not quite the same, not for training.
    """

    def __init__(
        self,
        shader: VideoShader,
        noise_levels: Sequence[float] = (1.0, 0.9, 0.75, 0.5),
        window: Window = Window(),  # noqa: B008 (frozen)
        has_clean_pass: bool = True,
    ) -> None:
        levels = [float(level) for level in noise_levels]
        if not levels or levels[0] != 1.0 or levels[-1] <= 0 or sorted(set(levels), reverse=True) != levels:
            raise ValueError(f"noise_levels {levels}: start at 1.0 and fall strictly, above 0")
        size, sink, recent = shader.chunk_frames, window.sink_frames, window.recent_frames
        if sink < 0 or recent < size or sink % size or recent % size:
            raise ValueError(f"{window}: give multiples of the chunk's {size} frames, recent_frames at least one chunk")
        self.shader, self.noise_levels, self.window, self.has_clean_pass = shader, levels, window, has_clean_pass
        self._cache: KVCache | None = None
        self._cache_key: tuple[object, ...] | None = None
        self._semantic: SemanticContext | None = None
        self._start: ShaderCondition | None = None
        self._is_over = False

    @torch.no_grad()
    def start(self, condition: ShaderCondition) -> None:
        """Begin a video: cache reference and semantic tokens of `condition`; its driving frames are not read."""
        shader = self.shader
        alone = replace(condition, guide=condition.guide[:, :, :0], maps=None, encoded=None)
        start = shader.encode_condition(alone)
        tokens = shader.embed_reference(start)
        size = condition.guide.shape[-2:]
        cache = self._prepare_cache(start.batch_size, size)
        self._start, self._is_over = start, False
        self._semantic = SemanticContext(shader.semantic_tokens(start), 1)
        self._semantic.keys_values = [
            self._semantic.project(block.attn2, layer) for layer, block in enumerate(shader.blocks)
        ]
        level = torch.zeros(start.batch_size, 1, device=tokens.device)
        self._run(tokens.flatten(0, 1), level, self._semantic, CachedAttention(cache, 1, True, False))
        cache.commit(1)

    def step(
        self,
        condition: ShaderCondition,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        exit_step: int | None = None,
        requires_grad: bool = False,
    ) -> Tensor:
        """Paint the next chunk -> x0 `[B,C,t,h,w]`.

        Args:
            condition: the chunk's driving frames (guide, maps or encoded, maps_dropped; the rest was taken at `start`).
            generator: draws the noise.
            noise: `[num_levels,B,C,t,h,w]`, in place of drawing it.
            exit_step: index of the noise level whose x0 is returned; None for the last. Self-forcing
                leaves at a random one.
            requires_grad: keep the graph of the exit step, and of that one alone.
        """
        self._begun()
        if self._is_over:
            raise ValueError("a chunk shorter than chunk_frames ends the video: call start for the next one")
        if not 1 <= condition.num_frames <= self.shader.chunk_frames:
            raise ValueError(f"a chunk has 1 to {self.shader.chunk_frames} latent frames, not {condition.num_frames}")
        last = len(self.noise_levels) - 1 if exit_step is None else exit_step
        if not 0 <= last < len(self.noise_levels):
            raise ValueError(f"exit_step {last} is not one of the {len(self.noise_levels)} noise levels")
        if requires_grad and not self.has_clean_pass:
            raise ValueError("a rollout without the clean pass keeps no graph: train with has_clean_pass")
        with torch.set_grad_enabled(requires_grad):
            encoded = self._driving(condition)
        x0: Tensor | None = None
        for index, level in enumerate(self.noise_levels[: last + 1]):
            fresh = draw_noise(condition.guide, generator) if noise is None else noise[index]
            state = fresh if x0 is None else (1 - level) * x0 + level * fresh
            with torch.set_grad_enabled(requires_grad and index == last):
                x0 = self._denoise(state, level, encoded, index == last and not self.has_clean_pass).x0
        assert x0 is not None  # there is a first level
        if self.has_clean_pass:
            with torch.no_grad():
                self._write(x0.detach(), encoded)
        else:
            self._begun()[0].commit(condition.num_frames)
        self._is_over = condition.num_frames < self.shader.chunk_frames
        return x0

    def __call__(
        self,
        condition: ShaderCondition,
        generator: torch.Generator | None = None,
        exit_step: int | None = None,
        requires_grad: bool = False,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Paint all frames of `condition` -> latents `[B,C,T,h,w]`.

        Args:
            noise: `[num_levels,B,C,T,h,w]`, in place of drawing it.
            generator, exit_step, requires_grad: as in `step`, the same exit for every chunk.
        """
        size = self.shader.chunk_frames
        starts = range(0, condition.num_frames, size)
        with torch.set_grad_enabled(requires_grad):
            # The reference's graph is not wanted here: `start` encodes it without gradient.
            driving = self.shader.encode_condition(_without_reference(condition))
        self.start(condition)
        chunks = []
        for first in starts:
            frames = slice(first, min(first + size, condition.num_frames))
            chunk_noise = None if noise is None else noise[:, :, :, frames]
            chunk = driving.slice(frames.start, frames.stop)
            chunks.append(self.step(chunk, generator, chunk_noise, exit_step, requires_grad))
        return torch.cat(chunks, dim=2)

    def _begun(self) -> tuple[KVCache, SemanticContext, ShaderCondition]:
        """Cache, semantic tokens and still condition of the video that `start` has begun."""
        if self._cache is None or self._semantic is None or self._start is None:
            raise ValueError("the rollout has not begun: call start with the reference first")
        return self._cache, self._semantic, self._start

    def _prepare_cache(self, batch: int, size: Sequence[int]) -> KVCache:
        """Empty the cache; allocate it anew only where shape, precision or device changed."""
        weight = self.shader.skip
        device = weight.device
        is_autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if is_autocast else weight.dtype
        key = (batch, tuple(size), dtype, device)
        if self._cache is None or key != self._cache_key:
            self._cache = None  # let the old memory go first
            # A cache born in inference mode, in a validation between two training steps, could not be written by
            # training.
            with torch.inference_mode(False):
                self._cache = KVCache(self.shader, batch, self.shader.rotary_table(size, device), self.window, dtype)
            self._cache_key = key
        self._cache.reset()
        return self._cache

    def _driving(self, condition: ShaderCondition) -> ShaderCondition:
        return self.shader.encode_condition(_without_reference(condition))

    def _denoise(self, state: Tensor, level: float, condition: ShaderCondition, keep_keys: bool = False) -> Prediction:
        shader, (cache, kept, start) = self.shader, self._begun()
        num_frames = state.shape[2]
        levels = torch.full((state.shape[0], num_frames), level, device=state.device)  # bfloat16 would blur the clock
        tokens = shader.embed_frames(state, levels, condition).flatten(0, 1)
        needs_grad = torch.is_grad_enabled()
        # Kept keys and values of the semantic tokens carry no gradient: the step that learns projects them anew.
        semantic = SemanticContext(shader.semantic_tokens(start), num_frames) if needs_grad else kept
        semantic.num_frames = num_frames
        context = CachedAttention(cache, num_frames, keep_keys=keep_keys, use_snapshot=needs_grad)
        tokens, embedded_level = self._run(tokens, levels, semantic, context)
        raw = shader.project_out(tokens, embedded_level, num_frames, state.shape[-2:])
        return shader.interpret(raw, state, levels, condition.guide)

    def _write(self, x0: Tensor, condition: ShaderCondition) -> None:
        cache, semantic, _ = self._begun()
        num_frames = x0.shape[2]
        levels = torch.zeros(x0.shape[0], num_frames, device=x0.device)
        tokens = self.shader.embed_frames(x0, levels, condition).flatten(0, 1)
        semantic.num_frames = num_frames
        self._run(tokens, levels, semantic, CachedAttention(cache, num_frames, True, False))
        cache.commit(num_frames)

    def _run(
        self, tokens: Tensor, levels: Tensor, semantic: SemanticContext, context: CachedAttention
    ) -> tuple[Tensor, EmbeddedLevel]:
        embedded_level = self.shader.embed_level(levels)
        for layer in range(len(self.shader.blocks)):
            tokens = self.shader.run_block(layer, tokens, embedded_level, semantic, context)
        return tokens, embedded_level


def _without_reference(condition: ShaderCondition) -> ShaderCondition:
    """The driving frames alone, so that a chunk does not encode the reference again."""
    return ShaderCondition(
        guide=condition.guide,
        maps=condition.maps,
        encoded=condition.encoded,
        maps_dropped=condition.maps_dropped,
        starts_clip=condition.starts_clip,
    )
