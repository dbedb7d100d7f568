"""Where photos' pixels stand in a picture: what they show of the surface in front, upright, and within the person."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.rasterizer.cpu import filtered
from visa.networks.rasterizer.cpu import standing as standing_by_kernel
from visa.networks.rasterizer.standing import (
    AMID,
    BESIDE,
    COVERED,
    FRINGE,
    LEAST_COVERED,
    LEAST_FRINGE,
    OTHER_PART,
    SAME_PART,
    SLANTED,
    UPRIGHT,
)
from visa.networks.texture import mean_part, read_photo

# B people, T frames, K photos.


@dataclass(frozen=True)
class Splats:
    """What is splatted of Gaussians for the photos' sake.

    Attributes:
        alpha: `[B,T,1,H,W]` of ones.
        shown: `[B,T,1,H,W]` of what any photo shows (`Texture.seen`).
        part: `[B,T,1,H,W]` of part codes.
        moved: `[B,T,K,2,H,W]` motion to each photo's place times `weight`.
        weight: `[B,T,K,1,H,W]`, each photo's.
        trusted: `[B,T,K,1,H,W]` `weight` times `Texture.trust`.
    """

    alpha: Tensor
    shown: Tensor
    part: Tensor
    moved: Tensor
    weight: Tensor
    trusted: Tensor


@dataclass(frozen=True)
class Standing:
    """How far photos' pixels stand at each pixel.

    Attributes:
        covered: `[B,T,1,H,W]` as `covered_by_photo`.
        weight: `[B,T,K,1,H,W]` mean of `Splats.weight` around the pixel.
        trusted: `[B,T,K,1,H,W]` the same of `Splats.trusted`.
        fits: `[B,T,K,1,H,W]` 0 to 1, whether the photo's pixel is of the part in front, was not seen at a slant and is
            no outline amid the person; without gradients.
    """

    covered: Tensor
    weight: Tensor
    trusted: Tensor
    fits: Tensor


def standing(splats: Splats, masks: Tensor, parts: Tensor) -> Standing:
    """How far the photos stand, of `masks` and part codes `[B,K,1,P,P]` of each.

    On the CPU, where no gradient is asked for, in one pass over each frame.
    """
    alpha = splats.alpha
    needs_grad = torch.is_grad_enabled() and (splats.weight.requires_grad or splats.trusted.requires_grad)
    if needs_grad or not _has_kernel(alpha):
        return standing_by_tensors(splats, masks, parts)
    photos = torch.cat([splats.moved, splats.weight, splats.trusted], dim=3).flatten(2, 3)
    maps = torch.cat([alpha, splats.shown, splats.part, photos], dim=2)
    size = alpha.shape[-1]
    near, fits = standing_by_kernel(maps, masks, parts, (_means_reach(size), _amid_reach(size), round(BESIDE * size)))
    near_alpha, near_shown, near_photos = near.split([1, 1, near.shape[2] - 2], dim=2)
    weight, trusted = near_photos.unflatten(2, (-1, 2, 1)).unbind(3)
    return Standing(_covered(near_shown, near_alpha), weight, trusted, fits[:, :, :, None])


def standing_by_tensors(splats: Splats, masks: Tensor, parts: Tensor) -> Standing:
    """`standing` on any device, with gradients: what its kernel is tested against."""
    covered = covered_by_photo(splats.shown, splats.alpha)
    weight, trusted = (_near(value.flatten(0, 2)).view_as(value) for value in (splats.weight, splats.trusted))
    fits = []
    for k in range(masks.shape[1]):
        moved, shown = splats.moved[:, :, k].detach(), splats.weight[:, :, k].detach()
        flow = moved / shown.clamp_min(1e-4)
        read = read_photo(torch.cat([masks[:, k], parts[:, k]], dim=1), flow, "bilinear")
        inside, part = read.detach().split(1, dim=2)
        fits.append(
            _agreement(part, splats.part, splats.alpha)
            * _density(moved, shown)
            * _of_person(inside, covered, splats.alpha)
        )
    return Standing(covered, weight, trusted, torch.stack(fits, dim=2))


def covered_by_photo(shown: Tensor, alpha: Tensor) -> Tensor:
    """Share of what each pixel `[...,1,H,W]` shows that the photo shows too.

    What lies behind shimmers through between the front Gaussians, which are pixels apart, and is mostly not in the
    photo. The share of shown Gaussians is therefore taken over a neighbourhood, and from a half on it counts as whole.

    Args:
        shown: splat of `Texture.seen`.
        alpha: splat of ones.
    """
    near_shown, near_alpha = (_near(value.detach().flatten(0, -4)).view_as(value) for value in (shown, alpha))
    return _covered(near_shown, near_alpha)


def greatest(maps: Tensor, reach: int) -> Tensor:
    """Greatest value of `[M,1,H,W]` up to `reach` pixels beside each, without gradients."""
    maps = maps.detach()
    if _has_kernel(maps):
        return -filtered(-maps, reach, "least")
    rows = F.max_pool2d(maps, (1, 2 * reach + 1), 1, (0, reach))
    return F.max_pool2d(rows, (2 * reach + 1, 1), 1, (reach, 0))


def _has_kernel(maps: Tensor) -> bool:
    return not maps.is_cuda and maps.dtype == torch.float32


def _covered(near_shown: Tensor, near_alpha: Tensor) -> Tensor:
    return ((near_shown / near_alpha.clamp_min(1e-4) - LEAST_COVERED) / (COVERED - LEAST_COVERED)).clamp(0, 1)


def _means_reach(size: int) -> int:
    """Means are over 3 % of the picture's side around each pixel."""
    return round(size / 64)


def _amid_reach(size: int) -> int:
    return max(round(AMID * size), 1)


def _agreement(read_part: Tensor, part: Tensor, alpha: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 1 where the photo's pixel is of the part in front, 0 where it is of another.

    The flow leads past a part's end there (a lip's, a lid's, the chin's), to what lay beside it in the photo only: the
    teeth of a mouth that has closed since. All Gaussians count for the part in front, seen or not: teeth that no photo
    showed are no lips.

    Args:
        read_part: the photo's part codes, read where the motion leads.
        part: splat of the Gaussians' part codes.
        alpha: splat of ones.
    """
    between = (read_part - mean_part(part.detach(), alpha.detach())).abs()
    return ((OTHER_PART - between) / (OTHER_PART - SAME_PART)).clamp(0, 1)


def _of_person(matte: Tensor, covered: Tensor, alpha: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 0 for the photo's outline amid the person, beside what the photo does not show; else 1.

    Its pixels are mixed with what lay behind: a cheek's outline in the photo is a grey line on the cheek that turned to
    the camera. At an outline of the picture itself, and around a gap that the photo shows, they are right.

    Args:
        matte: the photo's, read where the motion leads.
        covered: as `covered_by_photo`.
        alpha: splat of ones.
    """
    size, flat = alpha.shape[-1], alpha.detach().flatten(0, 1)
    amid = -greatest(-flat, _amid_reach(size))
    beside = greatest(amid * (1 - covered.flatten(0, 1)), round(BESIDE * size)).view_as(alpha)
    lacks = ((amid.view_as(alpha) - matte - LEAST_FRINGE) / FRINGE).clamp(0, 1)
    return 1 - beside * lacks


def _density(moved: Tensor, weight: Tensor) -> Tensor:
    """`[B,T,1,H,W]` 0 where the flow leads out of the photo, or to a surface that it saw at a slant, else 1.

    Pixels of the photo to one of the picture are the determinant of the flow's derivative (central differences).

    Args:
        moved: motion times its weight, as `Splats` says.
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


def _near(maps: Tensor) -> Tensor:
    """Mean of `[M,1,H,W]` over `_means_reach` around each pixel."""
    height, width = maps.shape[-2:]
    reach = _means_reach(width)
    if _has_kernel(maps) and not (torch.is_grad_enabled() and maps.requires_grad):
        return filtered(maps, reach, "mean")
    side = 2 * reach + 1
    padded = F.pad(maps, (reach, reach, reach, reach))
    # Sums of rows, then of columns: a fraction of what pooling over the square takes.
    rows = torch.stack([padded[..., i : i + width] for i in range(side)]).sum(0)
    return torch.stack([rows[..., i : i + height, :] for i in range(side)]).sum(0) / side**2
