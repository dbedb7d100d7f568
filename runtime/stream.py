"""A live avatar: one photo, then pose and camera of each chunk -> painted frames, with state carried between chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from visa.datamodules.batch import VideoBatch
from visa.networks.avatar import Avatar
from visa.networks.detail import painted_at, with_detail
from visa.networks.rollout import CausalRollout
from visa.networks.shader import ShaderCondition
from visa.networks.splat_maps import MatteOptions
from visa.networks.view import View
from visa.runtime.conditioner import Conditioner, photo_of


def fine_photos(batch: VideoBatch) -> list[tuple[Tensor, Tensor]]:
    """The batch's photos and mattes at the resolution of the output; none where it is that of its frames."""
    found = []
    for one in [batch, *batch.further]:
        if one.fine_reference is None or one.fine_reference_mask is None:
            return []
        found.append((one.fine_reference, one.fine_reference_mask))
    return found


class AvatarStream:
    """Paints chunk by chunk: pose, splat, encode the guide, denoise, decode.

    `test` and `predict` paint through this same object, so what they time is what a live application gets.

    Args:
        conditioner: reconstruction and codec.
        rollout: the causal student with its cache.
        seed: of the noise.
        matte: what of the painted picture stands.
    """

    def __init__(
        self,
        conditioner: Conditioner,
        rollout: CausalRollout,
        seed: int = 0,
        matte: MatteOptions = MatteOptions(),  # noqa: B008
    ) -> None:
        self.conditioner, self.rollout, self.seed, self.matte = conditioner, rollout, seed, matte
        self._avatar: Avatar | None = None
        self._still: ShaderCondition | None = None
        self.chunk_seconds: list[float] = []

    @torch.no_grad()
    def start(self, batch: VideoBatch) -> None:
        """Reconstruct the photo's person (the batch's reference) and fill the cache with the photo."""
        self._avatar, self._still = self.conditioner.avatar(batch)
        fine = fine_photos(batch)
        self._output_size = batch.reference.shape[-1]
        if fine:
            self._avatar = with_detail(self.conditioner.reconstructor, self._avatar, photo_of(batch), fine)
            self._output_size = fine[0][0].shape[-1]
        self.rollout.start(self._still)
        codec = self.conditioner.codec
        self._guides, self._decoder = codec.stream(), codec.stream()
        self._is_first = True
        self._generator = torch.Generator().manual_seed(self.seed)

    def chunk_length(self) -> int:
        """Frames that the next `step` takes: the first chunk of a codec with temporal stride is shorter."""
        codec, latents = self.conditioner.codec, self.rollout.shader.chunk_frames
        return codec.num_pixel_frames(latents) if self._is_first else latents * codec.temporal_stride

    @torch.no_grad()
    def step(self, view: View) -> tuple[Tensor, Tensor]:
        """Paint the next chunk of t frames (see `chunk_length`; only the video's last chunk may be shorter).

        Args:
            view: `[1,t]` poses and cameras, of the photo's size.

        Returns:
            painted frames `[1,t,3,P,P]`, not clamped, of the size of the batch's `fine_reference` where it has one; and
            splatted frames `[1,t,3,H,W]`.
        """
        if self._avatar is None or self._still is None:
            raise ValueError("the stream has not begun: call start with the photo first")
        splat = self._avatar.render(self.conditioner.body, view)
        chunk = replace(
            self._still, guide=self._guides.encode(splat.textured), maps=splat.condition(), starts_clip=self._is_first
        )
        latents = self.rollout.step(chunk, self._generator)
        self._is_first = False
        painted = splat.matted(self._decoder.decode(latents), self.matte)
        if self._avatar.detail is not None:
            painted = painted_at(splat, painted, self._avatar.detail, self._output_size)
        return painted, splat.rgb

    def chunks(self, batch: VideoBatch) -> Iterator[tuple[Tensor, Tensor]]:
        """Paint a whole window `[1,T]` in one unbroken rollout, chunk by chunk -> as `step`, without the batch.

        `chunk_seconds` then holds the time of each chunk, from its motion to its painted frames.
        """
        self.start(batch)
        self.chunk_seconds = []
        first, total = 0, batch.intrinsics.shape[1]
        while first < total:
            last = min(first + self.chunk_length(), total)
            window = batch.cut(slice(first, last))
            begin = time.perf_counter()
            chunk, splat = self.step(window.view())
            if chunk.is_cuda:
                torch.cuda.synchronize(chunk.device)
            self.chunk_seconds.append(time.perf_counter() - begin)
            yield chunk[0], splat[0]
            first = last

    def paint(self, batch: VideoBatch) -> tuple[Tensor, Tensor]:
        """All painted and splatted frames of `chunks`, each `[T,3,.,.]`."""
        painted, splats = zip(*self.chunks(batch), strict=True)
        return torch.cat(painted), torch.cat(splats)
