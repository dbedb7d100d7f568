"""A live avatar: one photo, then pose and camera of each chunk -> painted frames, with state carried between chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from visa.datamodules.batch import VideoBatch
from visa.networks.avatar import Avatar
from visa.networks.body import FIELD_SHAPES, BodyParams
from visa.networks.detail import painted_at, with_detail
from visa.networks.photo import Photo
from visa.networks.rasterizer.cpu import kernels_alone
from visa.networks.rollout import CausalRollout
from visa.networks.shader import ShaderCondition
from visa.networks.splat_maps import MatteOptions
from visa.networks.view import Camera, View
from visa.runtime.conditioner import Conditioner
from visa.runtime.photos import at_geometry, fine_photos, photo_of


def view_of(camera: Camera, body: BodyParams) -> View:
    """Poses `[t]` before one still camera `[1,1,...]`, as one window `[1,t]`."""
    body, count = body.map(lambda value: value[None]), len(body.transl)
    intrinsics, extrinsics = camera.intrinsics.expand(1, count, 3, 3), camera.world_to_camera.expand(1, count, 4, 4)
    return View(intrinsics, extrinsics, camera.size, body)


class PoseQueue:
    """Poses that wait until enough of them have come.

    Args:
        num_expressions: of the body model.
    """

    def __init__(self, num_expressions: int) -> None:
        self.shapes = {
            name: (num_expressions,) if name == "expression" else FIELD_SHAPES[name] for name in FIELD_SHAPES
        }
        self._waiting: list[BodyParams] = []

    def clear(self) -> None:
        """Forget them."""
        self._waiting = []

    def add(self, body: BodyParams) -> None:
        """Check and keep poses `[t]`; a ValueError names the first wrong parameter, and then none is kept."""
        count = len(body.transl) if body.transl.ndim else 0
        for name, shape in self.shapes.items():
            value = getattr(body, name)
            if value.shape != (count, *shape):
                raise ValueError(f"{name} is {list(value.shape)}: give {[count, *shape]}, one row a pose")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} is not finite: this pose is left out")
        self._waiting += [body[index : index + 1] for index in range(count)]

    def take(self, count: int) -> BodyParams | None:
        """The first `count` poses; None while there are fewer."""
        if len(self._waiting) < count:
            return None
        first, self._waiting = self._waiting[:count], self._waiting[count:]
        return BodyParams.cat(first)


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
        self._poses = PoseQueue(conditioner.body.num_expressions)
        self.chunk_seconds: list[float] = []

    @torch.no_grad()
    def start(self, batch: VideoBatch) -> None:
        """Reconstruct the photo's person (the batch's reference) and fill the cache with the photo."""
        fine = fine_photos(batch)
        if not fine:
            avatar, still = self.conditioner.avatar(batch)
            self.begin(avatar, photo_of(batch), batch.reference.shape[-1], still=still)
            return
        made = at_geometry(batch)
        avatar = self.conditioner.reconstruct(made)[0]
        avatar = with_detail(self.conditioner.reconstructor, avatar, photo_of(made), fine)
        self.begin(avatar, photo_of(batch), fine[0][0].shape[-1], made.reference.shape[-1])

    @torch.no_grad()
    def begin(
        self,
        avatar: Avatar,
        photo: Photo,
        size: int,
        geometry: int | None = None,
        still: ShaderCondition | None = None,
    ) -> None:
        """Start with an avatar that is made already, such as a `visa.person.Person`'s.

        Args:
            avatar: of one person; with `detail` its pictures are of `size` px.
            photo: the first that it was made of, at the shader's size: its camera is that of `push`.
            size: px; the photo's own without `detail`.
            geometry: px at which what is shown with `detail` is drawn; None takes the shader's.
            still: what the shader is told of the photo; None makes it.
        """
        self._avatar = avatar
        self._still = still if still is not None else self.conditioner.still(avatar, photo)
        self._output_size, self._geometry, self._camera = size, geometry, photo.view()
        self._poses.clear()
        self.rollout.start(self._still)
        codec = self.conditioner.codec
        self._guides, self._decoder = codec.stream(), codec.stream()
        self._is_first = True
        self._generator = torch.Generator().manual_seed(self.seed)

    def chunk_length(self) -> int:
        """Frames that the next `step` takes: the first chunk of a codec with temporal stride is shorter."""
        codec, latents = self.conditioner.codec, self.rollout.shader.chunk_frames
        return codec.num_pixel_frames(latents) if self._is_first else latents * codec.temporal_stride

    def push(self, body: BodyParams) -> Tensor:
        """Live driving: poses in, pictures out as soon as a chunk is whole.

        Args:
            body: `[t]` poses of any number of moments, in the world of the photo, seen by its camera; the shape is the
                avatar's own, whatever `betas` say.

        Returns:
            `[n,3,P,P]`, not clamped, of all chunks that are whole by now: n is 0 until enough poses have come.

        Raises:
            ValueError: a parameter that is not finite or of another shape, in one line; nothing of `body` is kept, and
                the stream goes on.
        """
        self._poses.add(body)
        size = self._output_size if self._avatar is not None else 0
        pictures = [torch.empty(0, 3, size, size)]
        while (chunk := self._poses.take(self.chunk_length())) is not None:
            pictures.append(self.step(view_of(self._camera, chunk))[0][0])
        return torch.cat(pictures)

    @torch.no_grad()
    def step(self, view: View) -> tuple[Tensor, Tensor]:
        """Paint the next chunk of t frames (see `chunk_length`; only the video's last chunk may be shorter).

        Args:
            view: `[1,t]` poses and cameras, of the shader's size.

        Returns:
            painted frames `[1,t,3,P,P]`, not clamped, of the size of the batch's `fine_reference` where it has one; and
            splatted frames `[1,t,3,H,W]`.
        """
        if self._avatar is None or self._still is None:
            raise ValueError("the stream has not begun: call start with the photo first")
        body, avatar = self.conditioner.body, self._avatar
        with kernels_alone():
            posed = avatar.pose(body, view.body)
            splat = avatar.drawn(body, view, posed)
        chunk = replace(
            self._still, guide=self._guides.encode(splat.textured), maps=splat.condition(), starts_clip=self._is_first
        )
        latents = self.rollout.step(chunk, self._generator)
        self._is_first = False
        painted = splat.matted(self._decoder.decode(latents), self.matte)
        if avatar.detail is not None:
            shown = splat
            with kernels_alone():
                if self._geometry is not None and self._geometry != view.size:
                    plain = replace(posed, features=posed.features[..., :0])  # only the shader reads features
                    shown = avatar.drawn(body, view.resized(self._geometry), plain, is_composed=False)
                painted = painted_at(shown, painted - splat.textured, avatar.detail, self._output_size)
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
