"""Further photos of a person: whom they show in the avatar's shape, what they show of it, and textures of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.joints import HEAD
from visa.networks.photo import Photo
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.texture import PhotoSet, Texture, shown_part, stacked, view_directions

# B people, K photos, N Gaussians of the template, M others: loose ones, and those on its surface.

LOOSE_WITHIN = 0.95  # cosine between two photos' views of a loose Gaussian up to which the second shows it as well
LEAST_COVERED = 0.8  # of the matte, where a photo shows a Gaussian


@dataclass
class Shown:
    """What a photo shows of an avatar.

    Attributes:
        seen: `[B,N+M]` 1 where the photo shows the Gaussian, else 0.
        trust: `[B,N+M]` as `Texture.trust`.
        colors: `[B,N+M,3]` the photo's, where the Gaussians lie in it.
        facing: `[B,N+M]` cosine between normal and view, not below 0.
    """

    seen: Tensor
    trust: Tensor
    colors: Tensor
    facing: Tensor


def own_shape(body: BodyModel, photo: Photo, betas: Tensor) -> Photo:
    """The photo's track with the avatar's shape `betas [B,10]`: the head stays where the photo has it."""
    params = replace(photo.body, betas=betas)
    moved = body(photo.body)[1][:, HEAD] - body(params)[1][:, HEAD]
    return replace(photo, body=replace(params, transl=params.transl + moved))


@torch.no_grad()
def shown_by(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo, trust: Tensor) -> Shown:
    """What a further photo shows of the avatar.

    Args:
        reconstructor: made the avatar.
        avatar: `[B,...]` with the first photo as texture.
        photo: in the avatar's shape (`own_shape`).
        trust: `[B,N]` what the network says of this photo.
    """
    projection = project(reconstructor.anchors, photo)
    posed = avatar.pose(reconstructor.body, photo.view().body)
    places = photo.places(posed.means[:, 0])
    seen = projection.visible
    directions = view_directions(posed, photo.world_to_camera[:, None])[:, 0]
    facing = projection.facing.clamp_min(0)
    colors = F.grid_sample(photo.image, places[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
    on_template = [seen, facing, trust]
    if avatar.loose is not None:
        first, beside = seen.shape[1], avatar.loose.gaussians.means.shape[1]
        rows = slice(first, first + beside)
        covered = F.grid_sample(photo.mask, places[:, rows, None], align_corners=False)[:, 0, :, 0]
        # A loose Gaussian faces the camera of the photo that it was lifted from, which looks along its third axis.
        cosine = directions[:, rows, 2].abs()
        loose = ((covered > LEAST_COVERED) & (cosine > LOOSE_WITHIN)).float()
        seen, facing = torch.cat([seen, loose], dim=1), torch.cat([facing, cosine], dim=1)
        trust = torch.cat([trust, torch.ones_like(loose)], dim=1)
    if avatar.surface is not None:  # as its triangle's corners are
        mixed = avatar.surface.mixed(torch.stack(on_template, dim=-1)[:, None])[:, 0]
        seen, facing = torch.cat([seen, (mixed[..., 0] > 0.5).float()], dim=1), torch.cat([facing, mixed[..., 1]], 1)
        trust = torch.cat([trust, mixed[..., 2]], dim=1)
    seen = seen * (places.abs() < 1).all(-1)
    return Shown(seen, trust, colors, facing)


@torch.no_grad()
def with_photos(
    reconstructor: GaussianReconstructor, avatar: Avatar, photos: Sequence[Photo], trusts: Sequence[Tensor]
) -> Avatar:
    """The avatar with several photos as its texture.

    Args:
        reconstructor: made the avatar.
        avatar: `[B,...]` whose texture is the first photo.
        photos: K, the first one the avatar's own; the others in its shape, with corrected poses.
        trusts: `[B,N]` of each photo but the first.
    """
    first, body = avatar.texture, reconstructor.body
    assert isinstance(first, Texture)
    textures, directions, positions = [], [], []
    for photo, trust in zip(photos, [None, *trusts], strict=True):
        view = photo.view()
        posed = avatar.pose(body, view.body)
        directions.append(view_directions(posed, view.world_to_camera)[:, 0])
        positions.append(avatar.head_positions(body, view.body, posed.means)[:, 0])
        if trust is None:
            textures.append(first)
            continue
        shown = shown_by(reconstructor, avatar, photo, trust)
        still = posed.map(lambda value: value[:, 0])
        part = shown_part(still, shown.seen, avatar.part(body, first.part, still.means), photo)
        places = photo.places(still.means)
        textures.append(Texture(photo.image, photo.mask, places, shown.seen, shown.trust, first.part, part))
    photo_set = PhotoSet(stacked(textures), torch.stack(directions, dim=1), torch.stack(positions, dim=1))
    pattern = avatar.pattern
    if pattern is not None:  # of cloth that no photo shows
        seen = photo_set.textures.seen[..., : pattern.weight.shape[1]].amax(dim=1)
        pattern = replace(pattern, weight=pattern.weight * (1 - seen))
    return replace(avatar, texture=photo_set, pattern=pattern)
