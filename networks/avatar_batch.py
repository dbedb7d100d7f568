"""Avatars as batches: several as one, and an augmentation of colours applied to avatars in place of their photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.gaussians import Avatar, Gaussians, Loose, Texture
from networks.precision import full_precision

# B people, N Gaussians of the template, M loose ones.

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
    """

    def mixed(gaussians: Gaussians) -> Gaussians:
        colors = gaussians.colors
        return replace(gaussians, colors=colors + _change(colors, torch.ones_like(colors[..., :1]), colour))

    texture = avatar.texture
    if texture is not None:
        person = texture.photo - avatar.background[:, :, None, None] * (1 - texture.mask)
        change = _change(person.movedim(1, -1), texture.mask.movedim(1, -1), colour).movedim(-1, 1)
        texture = replace(texture, photo=texture.photo + change)
    beside, on = (
        None if part is None else replace(part, gaussians=mixed(part.gaussians))
        for part in (avatar.loose, avatar.surface)
    )
    return replace(avatar, gaussians=mixed(avatar.gaussians), texture=texture, loose=beside, surface=on)


def _change(values: Tensor, matte: Tensor, colour: Tensor) -> Tensor:
    """What mixing adds to colours `[B,...,3]` that are premultiplied by `matte [B,...,1]`."""
    inside = torch.minimum(values.clamp_min(0), matte)
    change = torch.einsum("bdc,b...c->b...d", colour - torch.eye(3).to(colour), inside - matte / 2)
    return change.clamp(-inside, matte - inside)


def stack_avatars(avatars: Sequence[Avatar]) -> Avatar:
    """Avatars of one template, `[B_i,...]`, as one `[sum B_i,...]`.

    Who has fewer loose Gaussians gets transparent ones that the photo does not show: each renders as it does alone.
    Photos of another size are enlarged to the largest.

    Raises:
        ValueError: the avatars lie on different templates, only some have a texture, or they are of photos above 128
            px, whose Gaussians on the surface are as many as each photo shows.
    """
    first = avatars[0]
    if len(avatars) == 1:
        return first
    if any(avatar.surface is not None for avatar in avatars):
        raise ValueError("avatars of photos above 128 px do not stack: set batch_size of data.schedule to 1")
    if not all(torch.equal(avatar.vertex_ids, first.vertex_ids) for avatar in avatars):
        raise ValueError("avatars of different templates do not stack: reconstruct them with one body model and config")
    textures = [avatar.texture for avatar in avatars if avatar.texture is not None]
    if len(textures) not in (0, len(avatars)):
        raise ValueError("avatars with and without texture do not stack: give all their photo, or none")
    loose = [avatar.loose for avatar in avatars if avatar.loose is not None]
    counts = [0 if avatar.loose is None else avatar.loose.skin_weights.shape[1] for avatar in avatars]
    most = max(counts)
    if loose:
        joints = loose[0].skin_weights.shape[-1]
        loose = [_with_transparent(avatar, most, joints) for avatar in avatars]
    if textures:
        size = tuple(max(texture.photo.shape[axis] for texture in textures) for axis in (-2, -1))
        missing = [most - count for count in counts]
        textures = [_padded(texture, size, more) for texture, more in zip(textures, missing, strict=True)]
    return Avatar(
        gaussians=_joined([avatar.gaussians for avatar in avatars]),
        betas=torch.cat([avatar.betas for avatar in avatars]),
        vertex_ids=first.vertex_ids,
        background=torch.cat([avatar.background for avatar in avatars]),
        texture=_joined(textures) if textures else None,
        loose=Loose(_joined([one.gaussians for one in loose]), torch.cat([one.skin_weights for one in loose]))
        if loose
        else None,
    )


def _joined(records: Sequence[Gaussians] | Sequence[Texture]) -> Gaussians | Texture:
    """Records of tensors `[B_i,...]` as one."""
    names = vars(records[0])
    return type(records[0])(**{name: torch.cat([getattr(record, name) for record in records]) for name in names})


def _with_transparent(avatar: Avatar, count: int, joints: int) -> Loose:
    """The avatar's loose Gaussians and transparent ones after them, `count` together."""
    loose = avatar.loose
    if loose is None:
        none = {name: value[:, :0] for name, value in vars(avatar.gaussians).items()}
        loose = Loose(Gaussians(**none), avatar.betas.new_zeros(len(avatar.betas), 0, joints))
    have = loose.skin_weights.shape[1]
    rows = (0, 0, 0, count - have)
    padded = {name: F.pad(value, rows) for name, value in vars(loose.gaussians).items() if name != "opacities"}
    padded["scales"] = F.pad(loose.gaussians.scales, rows, value=_ANY_SCALE)
    padded["opacities"] = F.pad(loose.gaussians.opacities, rows[2:])
    skin_weights = F.pad(loose.skin_weights, rows)
    padded["quats"][:, have:, 0] = 1
    skin_weights[:, have:, 0] = 1
    return Loose(Gaussians(**padded), skin_weights)


def _padded(texture: Texture, size: tuple[int, ...], missing: int) -> Texture:
    """The texture with a photo of `size` (height, width), and places of `missing` Gaussians that it does not show."""
    pictures = {"photo": texture.photo, "mask": texture.mask, "photo_part": texture.photo_part}
    if texture.photo.shape[-2:] != size:
        pictures = {name: F.interpolate(value, size, mode="bilinear") for name, value in pictures.items()}
    values = {name: F.pad(getattr(texture, name), (0, missing)) for name in ("seen", "trust", "part")}
    return Texture(places=F.pad(texture.places, (0, 0, 0, missing)), **pictures, **values)
