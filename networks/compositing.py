"""Splatting with texture: Gaussians are rasterized, and the photos' own pixels composited over their colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.continuation import REACH
from visa.networks.gaussians import Gaussians
from visa.networks.precision import full_precision
from visa.networks.rasterizer import rasterize
from visa.networks.splat_maps import Layers, SplatMaps
from visa.networks.texture import Pattern, Texture, mean_part, read_photo
from visa.networks.view import Camera

# B people, T frames, K photos, N Gaussians.

# A photo's pixel is one of the surface asked for where their part codes (`networks.regions.part_code`) differ by less
# than the first, is none from the second on; chosen on validation windows.
SAME_PART, OTHER_PART = 0.1, 0.25
# The photo's matte ends a person, not the Gaussians' soft rim: from this alpha on the photo stands as a whole.
FULL_ALPHA = 0.2
SHARPNESS = 2.0  # power of the photos' shares in a pixel: a mean of two is a blurred one
LEAST_AGREEING = 0.25  # share of the photos, from which on they stand for the others whose part is another one
# A photo saw a surface at a slant where its pixels cover many of the picture's: streaks. From the second share of its
# density on it stands as a whole, below the first not at all; chosen on turned heads and frames of validation people.
SLANTED, UPRIGHT = 0.25, 0.6
# So far within its silhouette the splat is whole, and so far beside what the photo does not show its outline may lie
# (shares of the picture's side); so much the photo's matte may lack before its pixel counts less, and so much more
# until it does not count.
AMID, BESIDE, LEAST_FRINGE, FRINGE = 2 / 128, 6 / 128, 0.04, 0.12
LEAST_PATTERN = 1 / 42  # share of the picture's side: half the width of what shows a pattern; narrower is a rim


@full_precision
def splat(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,
    texture: Texture | None = None,
    pattern: Pattern | None = None,
    part: Tensor | None = None,
) -> SplatMaps:
    """Rasterize `[B,T]` sets of Gaussians for `[B,T]` cameras; colours are laid over `background [B,3]`.

    Without a texture nothing is read of a pattern. `part [B,T,N]` are the frames' part codes; None takes the texture's.
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
    moved, weight = flow.detach(), shown.detach()
    pixels, inside, read_part = _read(texture.photo, texture.mask, texture.photo_part, moved, weight)
    share = _share_of_photo(shown, trusted, alpha) * _agreement(read_part, part, alpha)
    share = share * _density(moved, weight) * _of_person(inside, shown, alpha)
    # The photo was matted over the same background: where the flow leads out of the person, the background stands.
    coverage = torch.lerp(alpha, inside, share)
    layers = Layers(moved[:, :, None], weight[:, :, None], share.detach()[:, :, None])
    below = _pattern_layers(pattern, beyond, alpha)
    textured = torch.lerp(_with_pattern(rgb, pattern, below), pixels, share)
    return SplatMaps(rgb, alpha, features, textured, share, coverage, layers, below)


@full_precision
def splat_photos(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,
    textures: Texture,
    shares: Tensor,
    pattern: Pattern | None = None,
    part: Tensor | None = None,
) -> SplatMaps:
    """`splat` with textures of K photos `[B,K,...]`, of which each has `shares [B,T,K,N]` in each Gaussian.

    Each pixel is a mean of the photos' pixels, mostly of the one with the greatest share, among those that show the
    part of the body that the frame asks for, and not at a slant.
    """
    frames, count = shares.shape[1:3]
    now = camera.places(gaussians.means.detach())
    part = (textures.part[:, :1].expand(-1, frames, -1) if part is None else part)[..., None]
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
    near_weight, near_trusted = (_near(value.flatten(0, 2)).view_as(value) for value in (weight, trusted))
    agreeing, pixels, inside = [], [], []
    for k in range(count):
        picture, mask, photo_part = textures.photo[:, k], textures.mask[:, k], textures.photo_part[:, k]
        way = moved[:, :, k].detach(), weight[:, :, k].detach()
        read, matte, read_part = _read(picture, mask, photo_part, *way)
        pixels.append(read)
        inside.append(matte)
        agreeing.append(
            near_weight[:, :, k] * _agreement(read_part, part, alpha) * _density(*way) * _of_person(matte, shown, alpha)
        )
    total, weighed = near_weight.sum(dim=2).clamp_min(1e-4), torch.stack(agreeing, dim=2)
    fraction = (weighed / weighed.amax(dim=2, keepdim=True).clamp_min(1e-4)) ** SHARPNESS
    fraction = fraction / fraction.sum(dim=2, keepdim=True).clamp_min(1e-4)
    trust = near_trusted / near_weight.clamp_min(1e-4)
    whole = covered_by_photo(shown, alpha) * (alpha / FULL_ALPHA).clamp(0, 1)
    whole = whole * (weighed.sum(dim=2) / (LEAST_AGREEING * total)).clamp(0, 1)
    share = fraction * trust * whole[:, :, None]
    together = share.sum(dim=2)
    below = _pattern_layers(pattern, beyond, alpha)
    textured = _with_pattern(rgb, pattern, below) * (1 - together) + (share * torch.stack(pixels, dim=2)).sum(dim=2)
    coverage = alpha * (1 - together) + (share * torch.stack(inside, dim=2)).sum(dim=2)
    layers = Layers(moved.detach(), weight.detach(), share.detach())
    return SplatMaps(rgb, alpha, features, textured, together, coverage, layers, below)


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


def _read(photo: Tensor, mask: Tensor, part: Tensor, moved: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels `[B,T,3,H,W]` of a photo, its matte and its part codes `[B,T,1,H,W]`, moved as `Layers` says."""
    flow = moved / weight.clamp_min(1e-4)
    # Between pixel centres bilinear weights blur: of the finest octave 3 to 4 dB are lost, with cubic ones 2 to 3.
    pixels = read_photo(photo, flow, "bicubic").clamp(0, 1)
    inside, read_part = read_photo(torch.cat([mask, part], dim=1), flow, "bilinear").split(1, dim=2)
    return pixels, inside, read_part


def _agreement(read_part: Tensor, part: Tensor, alpha: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 1 where the photo's pixel is of the part in front, 0 where it is of another.

    The flow leads past a part's end there (a lip's, a lid's, the chin's), to what lay beside it in the photo only: the
    teeth of a mouth that has closed since. All Gaussians count for the part in front, seen or not: teeth that no photo
    showed are no lips.

    Args:
        read_part: the photo's part codes, as `_read` gives them.
        part: splat of the Gaussians' part codes.
        alpha: splat of ones.
    """
    between = (read_part - mean_part(part.detach(), alpha.detach())).abs()
    return ((OTHER_PART - between) / (OTHER_PART - SAME_PART)).clamp(0, 1)


def _of_person(matte: Tensor, shown: Tensor, alpha: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 0 for the photo's outline amid the person, beside what the photo does not show; else 1.

    Its pixels are mixed with what lay behind: a cheek's outline in the photo is a grey line on the cheek that turned to
    the camera. At an outline of the picture itself, and around a gap that the photo shows, they are right.

    Args:
        matte: the photo's, as `_read` gives it.
        shown: splat of `Texture.seen`.
        alpha: splat of ones.
    """
    size, flat = alpha.shape[-1], alpha.detach().flatten(0, 1)
    amid = -_greatest(-flat, max(round(AMID * size), 1))
    hidden = amid * (1 - covered_by_photo(shown, alpha).flatten(0, 1))
    beside = _greatest(hidden, round(BESIDE * size)).view_as(alpha)
    lacks = ((amid.view_as(alpha) - matte - LEAST_FRINGE) / FRINGE).clamp(0, 1)
    return 1 - beside * lacks


def _density(moved: Tensor, weight: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 0 where the flow leads out of the photo, or to a surface that it saw at a slant, else 1.

    Pixels of the photo to one of the picture are the determinant of the flow's derivative (central differences).

    Args:
        moved: motion times its weight, as `Layers` says.
        weight: of the motion.
    """
    size = moved.new_tensor([moved.shape[-1], moved.shape[-2]]).view(2, 1, 1)
    flow = _smooth(moved / weight.clamp_min(1e-4))
    rows, columns = (2 * torch.arange(n, device=flow.device) / n + 1 / n - 1 for n in flow.shape[-2:])
    place = flow + torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
    across, down = (torch.gradient(place * size / 2, dim=dim)[0] for dim in (-1, -2))
    density = across[:, :, :1] * down[:, :, 1:] - across[:, :, 1:] * down[:, :, :1]
    is_within = (place.abs() < 1 + 2 / size).all(dim=2, keepdim=True)
    return _smooth(((density - SLANTED) / (UPRIGHT - SLANTED)).clamp(0, 1) * is_within)


def _smooth(maps: Tensor) -> Tensor:
    """Means of `[B,T,D,H,W]` over 3 x 3 pixels, borders repeated."""
    padded = F.pad(maps.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, 1).view_as(maps)


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
    core = -_greatest(-share, reach)
    share = torch.minimum(share, _greatest(core, reach)).view_as(alpha) * alpha.detach()
    return Layers(moved[:, :, None], weight[:, :, None], share[:, :, None])


def _greatest(maps: Tensor, reach: int) -> Tensor:
    """Greatest value of `[M,1,H,W]` up to `reach` pixels beside each: of rows, then of columns."""
    rows = F.max_pool2d(maps, (1, 2 * reach + 1), 1, (0, reach))
    return F.max_pool2d(rows, (2 * reach + 1, 1), 1, (reach, 0))


def _with_pattern(rgb: Tensor, pattern: Pattern | None, layers: Layers | None) -> Tensor:
    """`rgb [B,T,3,H,W]` with the pattern; the silhouette stays the Gaussians'."""
    if pattern is None or layers is None:
        return rgb
    flow = layers.moved[:, :, 0] / layers.weight[:, :, 0].clamp_min(1e-4)
    return torch.lerp(rgb, read_photo(pattern.picture, flow, "bicubic", REACH).clamp(0, 1), layers.share[:, :, 0])


def _share_of_photo(shown: Tensor, trusted: Tensor, alpha: Tensor) -> Tensor:
    """How far the photo stands for each pixel `[B,T,1,H,W]`: whether it shows the front surface, times its trust there.

    Args:
        shown: splat of `Texture.seen`, `[B,T,1,H,W]` as the others.
        trusted: splat of `Texture.seen` times `Texture.trust`.
        alpha: splat of ones.
    """
    near_shown, near_trusted = (_near(value.flatten(0, 1)).view_as(value) for value in (shown, trusted))
    is_there = (alpha / FULL_ALPHA).clamp(0, 1)
    return is_there * covered_by_photo(shown, alpha) * near_trusted / near_shown.clamp_min(1e-4)


def covered_by_photo(shown: Tensor, alpha: Tensor) -> Tensor:
    """Share of what each pixel `[...,1,H,W]` shows that the photo shows too.

    What lies behind shimmers through between the front Gaussians, which are pixels apart, and is mostly not in the
    photo. The share of shown Gaussians is therefore taken over a neighbourhood, and from a half on it counts as whole.

    Args:
        shown: splat of `Texture.seen`.
        alpha: splat of ones.
    """
    near_shown, near_alpha = (_near(value.detach().flatten(0, -4)).view_as(value) for value in (shown, alpha))
    return ((near_shown / near_alpha.clamp_min(1e-4) - 0.2) / 0.3).clamp(0, 1)


def _near(maps: Tensor) -> Tensor:
    """Mean of `[M,1,H,W]` over 3 % of the picture's side around each pixel."""
    height, width = maps.shape[-2:]
    reach = round(width / 64)
    side = 2 * reach + 1
    padded = F.pad(maps, (reach, reach, reach, reach))
    # Sums of rows, then of columns: a fraction of what pooling over the square takes.
    rows = torch.stack([padded[..., i : i + width] for i in range(side)]).sum(0)
    return torch.stack([rows[..., i : i + height, :] for i in range(side)]).sum(0) / side**2
