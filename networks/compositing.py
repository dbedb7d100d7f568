"""Splatting with texture: Gaussians are rasterized, and the photos' own pixels composited over their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.composition import composed
from visa.networks.gaussians import Gaussians
from visa.networks.precision import full_precision
from visa.networks.rasterizer import rasterize
from visa.networks.splat_maps import Layers, SplatMaps
from visa.networks.standing import Splats, covered_by_photo, greatest, standing
from visa.networks.texture import Detail, Pattern, Texture
from visa.networks.view import Camera

# B people, T frames, K photos, N Gaussians.

# The photo's matte ends a person, not the Gaussians' soft rim: from this alpha on the photo stands as a whole.
FULL_ALPHA = 0.2
SHARPNESS = 2.0  # power of the photos' shares in a pixel: a mean of two is a blurred one
LEAST_AGREEING = 0.25  # share of the photos, from which on they stand for the others whose part is another one
LEAST_PATTERN = 1 / 42  # share of the picture's side: half the width of what shows a pattern; narrower is a rim


@full_precision
def splat(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,
    texture: Texture | None = None,
    pattern: Pattern | None = None,
    part: Tensor | None = None,
    pictures: Detail | None = None,
    is_composed: bool = True,
) -> SplatMaps:
    """Rasterize `[B,T]` sets of Gaussians for `[B,T]` cameras; colours are laid over `background [B,3]`.

    Without a texture nothing is read of a pattern. `part [B,T,N]` are the frames' part codes; None takes the texture's.
    `pictures` are those of texture and pattern, kept between calls. Without `is_composed` the maps' `textured` is their
    `rgb`: enough for maps that are enlarged.
    """
    if texture is None:
        image, alpha = _rasterized(gaussians, [gaussians.colors, gaussians.features], camera)
        rgb = _over(image[:, :, :3], alpha, background)
        share = torch.zeros_like(alpha)
        return SplatMaps(rgb, alpha, image[:, :, 3:], textured=rgb, photo_share=share, coverage=alpha)
    now = camera.places(gaussians.means.detach())
    seen = texture.seen[:, None, :, None].expand(-1, now.shape[1], -1, -1)
    trust, part = texture.trust[:, None, :, None], (texture.part[:, None] if part is None else part)[..., None]
    moved = (texture.places[:, None] - now) * seen
    beyond = _pattern_channels(pattern, now)
    channels = [gaussians.colors, gaussians.features, *beyond, moved, seen, part.expand_as(seen), seen * trust]
    image, alpha = _rasterized(gaussians, channels, camera)
    colors, features, *beyond, flow, shown, part, trusted = image.split([one.shape[-1] for one in channels], dim=2)
    rgb = _over(colors, alpha, background)
    splats = Splats(alpha, shown, part, *(one[:, :, None] for one in (flow, shown, trusted)))
    found = standing(splats, texture.mask[:, None], texture.photo_part[:, None])
    trust = found.trusted / found.weight.clamp_min(1e-4)
    share = (_is_there(alpha) * found.covered)[:, :, None] * trust * found.fits
    layers, below = Layers(flow[:, :, None], shown[:, :, None], share), _pattern_layers(pattern, beyond, alpha)
    if pictures is None:
        pictures = Detail(texture.photo[:, None], texture.mask[:, None], None if pattern is None else pattern.picture)
    return _textured(rgb, alpha, features, layers, below, pictures if is_composed else None)


@full_precision
def splat_photos(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,
    textures: Texture,
    shares: Tensor,
    pattern: Pattern | None,
    part: Tensor,
    pictures: Detail,
    is_composed: bool = True,
) -> SplatMaps:
    """`splat` with textures of K photos `[B,K,...]`, of which each has `shares [B,T,K,N]` in each Gaussian.

    Each pixel is a mean of the photos' pixels, mostly of the one with the greatest share, among those that show the
    part of the body that the frame asks for, and not at a slant.
    """
    frames, count = shares.shape[1:3]
    now = camera.places(gaussians.means.detach())
    part = part[..., None]
    anywhere = textures.seen.amax(dim=1)[:, None, :, None].expand(-1, frames, -1, -1)
    weight = shares[..., None]
    moved = (textures.places[:, None] - now[:, :, None]) * weight
    of_photos = torch.cat([moved, weight, weight * textures.trust[:, None, ..., None]], dim=-1)  # [B,T,K,N,4]
    beyond = _pattern_channels(pattern, now)
    channels = [gaussians.colors, gaussians.features, *beyond, part, anywhere, *of_photos.unbind(2)]
    image, alpha = _rasterized(gaussians, channels, camera)
    widths = [*(one.shape[-1] for one in channels[:-count]), 4 * count]
    colors, features, *beyond, part, shown, maps = image.split(widths, dim=2)
    rgb = _over(colors, alpha, background)
    moved, weight, trusted = maps.unflatten(2, (count, 4)).split([2, 1, 1], dim=3)  # [B,T,K,.,H,W]
    splats = Splats(alpha, shown, part, moved, weight, trusted)
    found = standing(splats, textures.mask, textures.photo_part)
    weighed, total = found.weight * found.fits, found.weight.sum(dim=2).clamp_min(1e-4)
    fraction = (weighed / weighed.amax(dim=2, keepdim=True).clamp_min(1e-4)) ** SHARPNESS
    fraction = fraction / fraction.sum(dim=2, keepdim=True).clamp_min(1e-4)
    trust = found.trusted / found.weight.clamp_min(1e-4)
    whole = found.covered * _is_there(alpha) * (weighed.sum(dim=2) / (LEAST_AGREEING * total)).clamp(0, 1)
    share = fraction * trust * whole[:, :, None]
    layers, below = Layers(moved, weight, share), _pattern_layers(pattern, beyond, alpha)
    return _textured(rgb, alpha, features, layers, below, pictures if is_composed else None)


def _textured(
    rgb: Tensor, alpha: Tensor, features: Tensor, layers: Layers, pattern: Layers | None, detail: Detail | None
) -> SplatMaps:
    """Maps with the pictures of `detail` laid over `rgb`; only by their shares do gradients reach the Gaussians."""
    layers = replace(layers, moved=layers.moved.detach(), weight=layers.weight.detach())
    if detail is None:
        return SplatMaps(rgb, alpha, features, rgb, torch.zeros_like(alpha), alpha, layers, pattern)
    picture = composed(rgb, alpha, layers, pattern, detail, alpha.shape[-1])
    layers = replace(layers, share=layers.share.detach())
    return SplatMaps(rgb, alpha, features, picture.textured, picture.photo_share, picture.coverage, layers, pattern)


def _rasterized(gaussians: Gaussians, channels: Sequence[Tensor], camera: Camera) -> tuple[Tensor, Tensor]:
    """Splats `[B,T,D,H,W]` of the Gaussians' `channels [B,T,N,.]`, D together, and alpha `[B,T,1,H,W]`."""
    batch, frames = gaussians.means.shape[:2]
    result = rasterize(
        gaussians.means.flatten(0, 1),
        gaussians.quats.flatten(0, 1),
        gaussians.scales.flatten(0, 1),
        gaussians.opacities.flatten(0, 1),
        torch.cat(list(channels), dim=-1).flatten(0, 1),
        camera.intrinsics.flatten(0, 1),
        camera.world_to_camera.flatten(0, 1),
        width=camera.size,
        height=camera.size,
    )
    image, alpha = (value.permute(0, 3, 1, 2).unflatten(0, (batch, frames)) for value in (result.image, result.alpha))
    return image, alpha


def _over(colors: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """Premultiplied `colors [B,T,3,H,W]` over `background [B,3]`."""
    return colors + background[:, None, :, None, None] * (1 - alpha)


def _pattern_channels(pattern: Pattern | None, now: Tensor) -> list[Tensor]:
    """What to splat of a pattern, `[B,T,N,3]`: motion from places `now [B,T,N,2]` to the pattern's, and its weight."""
    if pattern is None:
        return []
    beside = now.shape[2] - pattern.weight.shape[1]  # loose and surface Gaussians are what the photo shows
    places, weight = F.pad(pattern.places, (0, 0, 0, beside))[:, None], F.pad(pattern.weight, (0, beside))
    weight = weight[:, None, :, None].expand(-1, now.shape[1], -1, -1)
    return [torch.cat([(places - now) * weight, weight], dim=-1)]


def _pattern_layers(pattern: Pattern | None, beyond: list[Tensor], alpha: Tensor) -> Layers | None:
    """How the pattern is read, by what was splatted of it: where it stands before all else, but for narrow rims."""
    if pattern is None:
        return None
    moved, weight = beyond[0].detach().split([2, 1], dim=2)
    reach = round(LEAST_PATTERN * alpha.shape[-1])
    share = covered_by_photo(weight, alpha).flatten(0, 1)
    core = -greatest(-share, reach)
    share = torch.minimum(share, greatest(core, reach)).view_as(alpha) * alpha.detach()
    return Layers(moved[:, :, None], weight[:, :, None], share[:, :, None])


def _is_there(alpha: Tensor) -> Tensor:
    return (alpha / FULL_ALPHA).clamp(0, 1)
