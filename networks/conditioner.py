"""From a batch to what the shader is told: reconstruct the avatar, pose it, splat it, encode guide, photo and truth."""

from __future__ import annotations

from torch import nn

from datamodules.batch import VideoBatch
from networks.body import BodyModel
from networks.codec import BlockCodec, WanCodec
from networks.gaussians import Avatar, SplatMaps
from networks.reconstructor import GaussianReconstructor, Photo
from networks.shader import ShaderCondition


def photo_of(batch: VideoBatch) -> Photo:
    """The reference photo of a batch as reconstruction reads it."""
    return Photo(
        image=batch.reference,
        mask=batch.reference_mask,
        body=batch.reference_body,
        intrinsics=batch.reference_intrinsics,
        world_to_camera=batch.reference_world_to_camera,
        background=batch.background,
    )


class Conditioner(nn.Module):
    """Frozen reconstruction + codec: what every shading stage shares, in training, test and streaming.

    Args:
        reconstructor: photo -> avatar.
        codec: frames <-> latents.
    """

    def __init__(self, reconstructor: GaussianReconstructor, codec: BlockCodec | WanCodec) -> None:
        super().__init__()
        self.reconstructor, self.codec = reconstructor, codec
        self.requires_grad_(False)

    @property
    def body(self) -> BodyModel:
        """The body model that poses the avatar."""
        return self.reconstructor.body

    def avatar(self, batch: VideoBatch) -> tuple[Avatar, ShaderCondition]:
        """Reconstruct the photo's person.

        Returns:
            the avatar, and the part of the condition that does not change with time: the photo's latent, its own splat
            and its semantic tokens. Its `guide` and `maps` are those of the photo.
        """
        photo = photo_of(batch)
        avatar, semantic = self.reconstructor(photo)
        size = batch.reference.shape[-1]
        own = avatar.render(
            self.body,
            batch.reference_body.map(lambda value: value[:, None]),
            batch.reference_intrinsics[:, None],
            batch.reference_world_to_camera[:, None],
            size,
        )
        guide = self.codec.encode(own.textured)
        return avatar, ShaderCondition(
            guide=guide,
            maps=own.condition(),
            reference=self.codec.encode(batch.reference[:, None]),
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
        splat = avatar.render(self.body, batch.body, batch.intrinsics, batch.world_to_camera, batch.frames.shape[-1])
        condition = ShaderCondition(
            guide=self.codec.encode(splat.textured),
            maps=splat.condition(),
            reference=still.reference,
            reference_guide=still.reference_guide,
            reference_maps=still.reference_maps,
            semantic=still.semantic,
        )
        return condition, splat
