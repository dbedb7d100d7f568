"""Avatars as batches: several as one, and an augmentation of colours applied to avatars in place of their photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar, Loose, Surface
from visa.networks.body import NUM_JOINTS
from visa.networks.gaussians import Gaussians
from visa.networks.precision import full_precision
from visa.networks.records import Record
from visa.networks.texture import Pattern, PhotoSet, Texture

# B people, N Gaussians of the template, M loose ones, S on its surface.

_ANY_SCALE = 1e-3  # m, of Gaussians that are not drawn


@full_precision
def mix_colours(avatar: Avatar, colour: Tensor) -> Avatar:
    """The avatar as if its photo's pixels had been mixed, `clamp(colour (x - 1/2) + 1/2)` before matting.

    Of the texture's photo this is exact: there pixels `x` of the person are premultiplied by the matte `m`, and
    `m clamp(y, 0, 1) = clamp(m y, 0, m)`. Gaussians' colours are mixed and clamped as pixels are; their features stay
    those of the plain photo. The identity gives the same avatar, bit for bit.

    Args:
        avatar: `[B,...]`.
        colour: `[B,3,3]`.

    Raises:
        ValueError: the avatar is of several photos.
    """

    def mixed(gaussians: Gaussians) -> Gaussians:
        colors = gaussians.colors
        return replace(gaussians, colors=colors + _change(colors, torch.ones_like(colors[..., :1]), colour))

    texture = _own_texture(avatar)
    if texture is not None:
        person = texture.photo - avatar.background[:, :, None, None] * (1 - texture.mask)
        change = _change(person.movedim(1, -1), texture.mask.movedim(1, -1), colour).movedim(-1, 1)
        texture = replace(texture, photo=texture.photo + change)
    loose, surface, pattern = avatar.loose, avatar.surface, avatar.pattern
    if loose is not None:
        loose = replace(loose, gaussians=mixed(loose.gaussians))
    if surface is not None:
        surface = replace(surface, gaussians=mixed(surface.gaussians))
    if pattern is not None:
        cloth = pattern.picture.movedim(1, -1)
        change = _change(cloth, torch.ones_like(cloth[..., :1]), colour).movedim(-1, 1)
        pattern = replace(pattern, picture=pattern.picture + change)
    return replace(
        avatar, gaussians=mixed(avatar.gaussians), texture=texture, loose=loose, surface=surface, pattern=pattern
    )


def _own_texture(avatar: Avatar) -> Texture | None:
    """The photo of an avatar that is made of one."""
    if isinstance(avatar.texture, PhotoSet):
        raise ValueError("avatars of several photos are neither mixed nor stacked: make them of one photo each")
    return avatar.texture


def _change(values: Tensor, matte: Tensor, colour: Tensor) -> Tensor:
    """What mixing adds to colours `[B,...,3]` that are premultiplied by `matte [B,...,1]`."""
    inside = torch.minimum(values.clamp_min(0), matte)
    change = torch.einsum("bdc,b...c->b...d", colour - torch.eye(3).to(colour), inside - matte / 2)
    return change.clamp(-inside, matte - inside)


def stack_avatars(avatars: Sequence[Avatar]) -> Avatar:
    """Avatars of one template, `[B_i,...]`, as one `[sum B_i,...]`.

    Who has fewer loose or surface Gaussians gets transparent ones that the photo does not show: each renders as it does
    alone. Photos of another size are enlarged to the largest.

    Raises:
        ValueError: the avatars lie on different templates, only some have a texture, or one is of several photos.
    """
    first = avatars[0]
    if len(avatars) == 1:
        return first
    if not all(torch.equal(avatar.vertex_ids, first.vertex_ids) for avatar in avatars):
        raise ValueError("avatars of different templates do not stack: reconstruct them with one body model and config")
    textures = [texture for avatar in avatars if (texture := _own_texture(avatar)) is not None]
    if len(textures) not in (0, len(avatars)):
        raise ValueError("avatars with and without texture do not stack: give all their photo, or none")
    counts = [[len(avatar.vertex_ids), _count(avatar.loose), _count(avatar.surface)] for avatar in avatars]
    most = [max(column) for column in zip(*counts, strict=True)]
    loose = [_more_loose(avatar, most[1]) for avatar in avatars] if most[1] else []
    surface = [_more_surface(avatar, most[2]) for avatar in avatars] if most[2] else []
    if textures:
        size = tuple(max(texture.photo.shape[axis] for texture in textures) for axis in (-2, -1))
        textures = [_padded(texture, size, have, most) for texture, have in zip(textures, counts, strict=True)]
    return Avatar(
        gaussians=_joined([avatar.gaussians for avatar in avatars]),
        betas=torch.cat([avatar.betas for avatar in avatars]),
        vertex_ids=first.vertex_ids,
        background=torch.cat([avatar.background for avatar in avatars]),
        texture=_joined(textures) if textures else None,
        loose=Loose(_joined([one.gaussians for one in loose]), torch.cat([one.skin_weights for one in loose]))
        if loose
        else None,
        surface=Surface(
            _joined([one.gaussians for one in surface]),
            torch.cat([one.corners for one in surface]),
            torch.cat([one.corner_weights for one in surface]),
        )
        if surface
        else None,
        pattern=_joined_patterns(avatars),
    )


def _joined_patterns(avatars: Sequence[Avatar]) -> Pattern | None:
    """Of avatars of which some have one; pictures of another size are enlarged to the largest."""
    patterns = [avatar.pattern for avatar in avatars]
    held = [pattern for pattern in patterns if pattern is not None]
    if not held:
        return None
    size = tuple(max(pattern.picture.shape[axis] for pattern in held) for axis in (-2, -1))
    parts = []
    for avatar, pattern in zip(avatars, patterns, strict=True):
        if pattern is None:
            weight = avatar.gaussians.opacities.new_zeros(avatar.gaussians.opacities.shape)
            pattern = Pattern(weight.new_zeros(len(weight), 3, *size), weight.new_zeros(*weight.shape, 2), weight)
        picture = pattern.picture
        if picture.shape[-2:] != size:
            picture = F.interpolate(picture, size, mode="bilinear")
        parts.append(replace(pattern, picture=picture))
    return _joined(parts)


def _count(part: Loose | Surface | None) -> int:
    return 0 if part is None else part.gaussians.means.shape[1]


def _joined(records: Sequence[Record]) -> Record:
    """Records of tensors `[B_i,...]` as one."""
    names = vars(records[0])
    return type(records[0])(**{name: torch.cat([getattr(record, name) for record in records]) for name in names})


def _more(gaussians: Gaussians, count: int) -> Gaussians:
    """The Gaussians and transparent ones after them, `count` together."""
    have = gaussians.means.shape[1]
    rows = (0, 0, 0, count - have)
    padded = {name: F.pad(value, rows) for name, value in vars(gaussians).items() if name != "opacities"}
    padded["scales"] = F.pad(gaussians.scales, rows, value=_ANY_SCALE)
    padded["opacities"] = F.pad(gaussians.opacities, rows[2:])
    padded["quats"][:, have:, 0] = 1
    return Gaussians(**padded)


def _none_of(avatar: Avatar) -> Gaussians:
    """No Gaussians, of the avatar's kind."""
    return avatar.gaussians.map(lambda value: value[:, :0])


def _on_first(weights: Tensor, count: int) -> Tensor:
    """Weights `[B,M,K]` with further rows, `count` together, that have all their weight on the first."""
    have = weights.shape[1]
    weights = F.pad(weights, (0, 0, 0, count - have))
    weights[:, have:, 0] = 1
    return weights


def _more_loose(avatar: Avatar, count: int) -> Loose:
    """The avatar's loose Gaussians and transparent ones, `count` together."""
    loose = avatar.loose
    if loose is None:
        loose = Loose(_none_of(avatar), avatar.betas.new_zeros(len(avatar.betas), 0, NUM_JOINTS))
    return Loose(_more(loose.gaussians, count), _on_first(loose.skin_weights, count))


def _more_surface(avatar: Avatar, count: int) -> Surface:
    """The avatar's surface Gaussians and transparent ones, `count` together."""
    surface = avatar.surface
    if surface is None:
        none = avatar.betas.new_zeros(len(avatar.betas), 0, 3)
        surface = Surface(_none_of(avatar), none.long(), none)
    corners = F.pad(surface.corners, (0, 0, 0, count - surface.corners.shape[1]))
    return Surface(_more(surface.gaussians, count), corners, _on_first(surface.corner_weights, count))


def _padded(texture: Texture, size: tuple[int, ...], have: Sequence[int], most: Sequence[int]) -> Texture:
    """The texture with a photo of `size` (height, width), and places of Gaussians that it does not show.

    Its Gaussians are `have[k]` of each kind, the result's `most[k]`.
    """
    pictures = {"photo": texture.photo, "mask": texture.mask, "photo_part": texture.photo_part}
    if texture.photo.shape[-2:] != size:
        pictures = {name: F.interpolate(value, size, mode="bilinear") for name, value in pictures.items()}

    def filled(values: Tensor) -> Tensor:
        """`[B,sum have,D]` -> `[B,sum most,D]`."""
        kinds = values.split(list(have), dim=1)
        return torch.cat([F.pad(kind, (0, 0, 0, n - kind.shape[1])) for kind, n in zip(kinds, most, strict=True)], 1)

    values = {name: filled(getattr(texture, name)[..., None])[..., 0] for name in ("seen", "trust", "part")}
    return Texture(places=filled(texture.places), **pictures, **values)
