"""What an avatar takes of its photo besides colours: hull, loose and surface Gaussians, cloth that goes on, texture."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.anchors import Anchors
from visa.networks.avatar import Avatar
from visa.networks.continuation import continued
from visa.networks.gaussians import Gaussians, concatenated
from visa.networks.loose import GRID, TemplateInPhoto, lift_loose
from visa.networks.outline import outlined
from visa.networks.photo import Photo
from visa.networks.projection import Projection
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.surface import COARSE, SPARSE, cell_size, lift_surface
from visa.networks.texture import Pattern, Texture, shown_part

# B photos, N Gaussians of the template, M loose ones, S on its surface.


@dataclass
class _InPhoto:
    """One layer's Gaussians as the photo shows them, each `[B,...]`; the fields are those of `Texture`."""

    posed: Gaussians
    places: Tensor
    seen: Tensor
    part: Tensor


def with_photo(
    anchors: Anchors,
    avatar: Avatar,
    photo: Photo,
    projection: Projection,
    trust: Tensor,
    options: ReconstructorOptions,
    is_lifted: bool = True,
) -> Avatar:
    """The avatar with the photo as its texture, its head at the photo's outline and its opacities cut to its hull.

    Gradients flow to the avatar's Gaussians and to `trust`.

    Args:
        anchors: of the template.
        avatar: with a Gaussian at each, `[B,N,...]`.
        photo: what it is made of.
        projection: of the anchors.
        trust: `[B,N]` as `Texture.trust`.
        options: say which layers there are.
        is_lifted: False makes neither loose nor surface Gaussians nor a pattern.
    """
    with torch.no_grad():
        if options.use_hull:
            avatar = outlined(anchors, avatar, photo, projection.visible)
        template = _template_in_photo(anchors, avatar, photo, projection)
        inside = _in_hull(template.places, photo.mask) if options.use_hull else torch.ones_like(template.seen)
        size, layers = photo.image.shape[-1], [template]
        cell = cell_size(size, options.pixels_per_gaussian) if is_lifted else 0.0
        cells = round(size / cell) if cell else 0
        is_dense = size <= COARSE and options.pixels_per_gaussian is None  # the template, for such a photo
        loose = surface = pattern = None
        if is_lifted and options.use_loose:  # by the template before the hull cuts its rim, no hole to be filled
            side = GRID if is_dense else max(cells, GRID)
            lifted = lift_loose(_carriers(anchors, avatar, photo, projection, template), photo, side)
            loose = lifted.loose
            template.posed = replace(template.posed, opacities=template.posed.opacities * inside)
            layers.append(_InPhoto(lifted.posed, lifted.places, torch.ones_like(lifted.part), lifted.part))
        if cells:
            spacing = SPARSE if is_dense else 0.0
            on = lift_surface(avatar, anchors.body, anchors.corner_rows, photo, projection.before, cells, spacing)
            if on.places.shape[1] > 0:
                surface, part = on.surface, on.surface.mixed(anchors.part[None, None, :, None])[:, 0, :, 0]
                layers.append(_InPhoto(on.posed, on.places, torch.ones_like(part), part))
        if is_lifted:
            pattern = _pattern(anchors, photo, projection, avatar.gaussians.colors, template)
        places, seen, part = (
            torch.cat([getattr(layer, name) for layer in layers], dim=1) for name in ("places", "seen", "part")
        )
        posed = concatenated([replace(layer.posed, features=layer.posed.features[..., :0]) for layer in layers])
        photo_part = shown_part(posed, seen, avatar.part(anchors.body, part, posed.means), photo)
    trusts = [trust]
    if loose is not None:
        trusts.append(torch.ones_like(loose.gaussians.opacities))
    if surface is not None:
        trusts.append(surface.mixed(trust[:, None, :, None])[:, 0, :, 0])
        features = surface.mixed(avatar.gaussians.features[:, None])[:, 0]
        surface = replace(surface, gaussians=replace(surface.gaussians, features=features))
    texture = Texture(photo.image, photo.mask, places, seen, torch.cat(trusts, dim=1), part, photo_part)
    cut = replace(avatar.gaussians, opacities=avatar.gaussians.opacities * inside)
    return replace(avatar, gaussians=cut, texture=texture, loose=loose, surface=surface, pattern=pattern)


def _template_in_photo(anchors: Anchors, avatar: Avatar, photo: Photo, projection: Projection) -> _InPhoto:
    posed = avatar.pose(anchors.body, photo.view().body).map(lambda value: value[:, 0])
    places = photo.places(posed.means)
    seen = projection.visible * (places.abs() < 1).all(-1)
    return _InPhoto(posed, places, seen, anchors.part.expand_as(seen))


def _carriers(
    anchors: Anchors, avatar: Avatar, photo: Photo, projection: Projection, template: _InPhoto
) -> TemplateInPhoto:
    """The template as `lift_loose` reads it."""
    return TemplateInPhoto(
        posed=template.posed,
        places=template.places,
        seen=template.seen,
        skin_weights=anchors.body.lbs_weights[avatar.vertex_ids],
        part=anchors.part,
        transforms=anchors.body.joint_transforms(photo.body)[..., :3, :],
        before=projection.before,
        depth=projection.depth,
    )


def _pattern(
    anchors: Anchors, photo: Photo, projection: Projection, colors: Tensor, template: _InPhoto
) -> Pattern | None:
    """Cloth of trunk and upper arms where they lie outside of the photo, or behind hands; bare ones have none.

    `colors [B,N,3]` are those of the anchors.
    """
    picture, has_any = continued(photo.image, projection.cloth)
    places = template.places
    before = F.grid_sample(projection.before, places[:, :, None], mode="nearest", align_corners=False)[:, 0, :, 0]
    is_hidden = (template.seen == 0) & ((before > 0) | (places.abs() > 1).any(dim=-1))
    is_used = anchors.is_trunk & has_any[:, None] & is_hidden & ~projection.tone.is_skin(colors)
    return Pattern(picture, places, is_used.float()) if bool(is_used.any()) else None


def _in_hull(places: Tensor, matte: Tensor) -> Tensor:
    """`[B,N]` share by which Gaussians at `places [B,N,2]` of a photo with `matte [B,1,H,W]` belong to the person.

    The visual hull of one silhouette (Laurentini, 1994): what projects outside of the matte is not the person, behind
    a raised hand as well as before it. Of what lies outside of the picture the photo says nothing.
    """
    there = F.grid_sample(matte, places[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0]
    return torch.where((places.abs() <= 1).all(dim=-1), there, 1.0)
