"""From a batch to what the shader is told: reconstruct the avatar, pose it, splat it, encode guide, photo and truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from visa.datamodules.batch import VideoBatch
from visa.networks.avatar import Avatar
from visa.networks.avatar_batch import mix_colours
from visa.networks.body import BodyModel
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.shader import ShaderCondition
from visa.networks.splat_maps import SplatMaps
from visa.runtime.photos import photo_of


def _is_same(first: Photo, second: Photo) -> bool:
    """Whether two photos are one, by their pixels and tracks."""
    pairs = [(first.image, second.image), (first.mask, second.mask), (first.intrinsics, second.intrinsics)]
    pairs += [(first.world_to_camera, second.world_to_camera), (first.background, second.background)]
    pairs += zip(first.body.tensors(), second.body.tensors(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _are_same(first: Sequence[Photo], second: Sequence[Photo]) -> bool:
    return len(first) == len(second) and all(_is_same(a, b) for a, b in zip(first, second, strict=True))


class Conditioner(nn.Module):
    """Frozen reconstruction + codec: what every shading stage shares, in training, test and streaming.

    Args:
        reconstructor: photo -> avatar.
        codec: frames <-> latents.
        fit: how avatars are fitted to their photos; in training mode they are not, unless there is a cache.
        cache: gives fitted avatars `[B,...]` of one photo each, in training mode as well (`runtime.avatar_cache`); None
            has none.
    """

    def __init__(
        self,
        reconstructor: GaussianReconstructor,
        codec: BlockCodec | WanCodec,
        fit: FitOptions | None = None,
        cache: Callable[[Photo], Avatar] | None = None,
    ) -> None:
        super().__init__()
        self.reconstructor, self.codec, self.fit, self.cache = reconstructor, codec, fit or FitOptions(), cache
        self._fitted: tuple[list[Photo], Avatar, Tensor] | None = None
        self.requires_grad_(False)

    @property
    def body(self) -> BodyModel:
        """The body model that poses the avatar."""
        return self.reconstructor.body

    def reconstruct(self, batch: VideoBatch) -> tuple[Avatar, Tensor]:
        """Avatar `[B,...]` and semantic tokens `[B,L,D]` of the reference, and of the batch's further photos.

        In eval mode the avatar is fitted to the photos, once for the same ones in a row; in training mode it is where
        there is a cache.
        """
        photo, further = photo_of(batch), [photo_of(one) for one in batch.further]
        if self.training:
            return self.reconstructor(photo) if self.cache is None else self._cached(batch, self.cache)
        if self.fit.steps == 0 and not further:
            return self.reconstructor(photo)
        photos = [photo, *further]
        if self._fitted is None or not _are_same(self._fitted[0], photos):
            if self.cache is None or further:
                avatar, semantic = self.reconstructor(photo)
                avatar = fit_avatar(self.reconstructor, avatar, photo, self.fit, further=further)
            else:
                avatar, semantic = self._cached(batch, self.cache)
            self._fitted = photos, avatar, semantic
        return self._fitted[1:]

    def _cached(self, batch: VideoBatch, cache: Callable[[Photo], Avatar]) -> tuple[Avatar, Tensor]:
        """The plain photo's avatar in the batch's colours and before its background, and the photo's semantic tokens.

        Entries know no augmentation: the same photo is one avatar in any colours.
        """
        photo = photo_of(batch)
        plain = replace(photo, image=batch.plain_reference, background=batch.plain_background)
        avatar = mix_colours(cache(plain), batch.colour).over(batch.background)
        return avatar, full_precision(self.reconstructor.semantic)(photo.image, photo.mask)

    def avatar(self, batch: VideoBatch) -> tuple[Avatar, ShaderCondition]:
        """Reconstruct the photo's person.

        Returns:
            the avatar, and the part of the condition that does not change with time: the photo's latent, its own splat
            and its semantic tokens. Its `guide` and `maps` are those of the photo.
        """
        avatar, semantic = self.reconstruct(batch)
        return avatar, self.still(avatar, photo_of(batch), semantic)

    def still(self, avatar: Avatar, photo: Photo, semantic: Tensor | None = None) -> ShaderCondition:
        """What the shader is told of an avatar that does not change with time, see `avatar`.

        Args:
            avatar: of one person.
            photo: the first that it was made of.
            semantic: its tokens `[B,L,D]`; None reads them of the photo.
        """
        if semantic is None:
            semantic = full_precision(self.reconstructor.semantic)(photo.image, photo.mask)
        own = avatar.render(self.body, photo.view())
        guide = self.codec.encode(own.textured)
        return ShaderCondition(
            guide=guide,
            maps=own.condition(),
            reference=self.codec.encode(photo.image[:, None]),
            reference_guide=guide,
            reference_maps=own.condition(),
            semantic=semantic,
        )

    def forward(self, batch: VideoBatch) -> tuple[ShaderCondition, SplatMaps]:
        """Condition of a whole window.

        Returns:
            the condition (latent frames T') and the splat that it was made of. The guide is the textured splat: the
            photo's own pixels stand where the photo shows the surface.
        """
        avatar, still = self.avatar(batch)
        splat = avatar.render(self.body, batch.view())
        condition = ShaderCondition(
            guide=self.codec.encode(splat.textured),
            maps=splat.condition(),
            reference=still.reference,
            reference_guide=still.reference_guide,
            reference_maps=still.reference_maps,
            semantic=still.semantic,
        )
        return condition, splat
