"""Loose Gaussians: what the photo shows beside the template (hair, cloth), lifted from its own pixels.

The template ends at the skin. Hair that falls to the shoulders, a collar, a hood stand off it, and Gaussians that are
pulled there from the skin reach them only as smears. The photo's pixels that no Gaussian of the template shows are
lifted to 3D instead: each takes depth and skinning weights from the surface beside it in the photo, so that hair beside
a cheek turns with the head and hair on a shoulder stays with it. (Pixels lifted to Gaussians beside a template: Chu and
Harada, "Generalizable and Animatable Gaussian Head Avatar", 2024, who learn the depth.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Loose
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.rasterizer import rasterize
from visa.networks.rotation import matrix_to_quaternion
from visa.networks.skinning import unposed
from visa.networks.standing import covered_by_photo

# B photos, N Gaussians of the template, M loose ones, S of the template's as carriers, G cells along the photo's side.

GRID = 64  # G, of a photo without surface Gaussians
MOST = 0.375  # M: at most so large a share of the grid's cells, those that the template covers least
LEAST = 0.2  # a cell uncovered by less gets none, one by more than 1 - LEAST is opaque: rims stay the template's
HIDDEN = 0.5  # how far what the photo does not show covers: the back of the head, drawn out sideways, is half a cover
CARRIERS = 4  # every so many Gaussians of the template one may carry loose ones
NEAREST = 8  # carriers of a loose Gaussian
EVEN, EVEN_STEPS = 3 / 64, 6  # share of the side over which a step mixes depth and weights of hair and cloth, and steps
MOST_LIMB = 0.2  # of the weights on forearms and hands: what has more is not mixed, for they pass what is not theirs
BEHIND = 0.03  # m behind its carriers: they are the nearest that the photo shows, the silhouette lies behind them
HELD = 0.25  # share of a cell that is a hand before the trunk
BEFORE = 0.02  # m by which such a hand lies before the trunk
# Forearms and hands carry what they hold, not the chair, lap or cloth that they pass before: they count as farther.
LIMBS = (18, 19, 20, 21, *range(25, 55))  # joints
FOREARMS = {18: (18, 20, *range(25, 40)), 19: (19, 21, *range(40, 55))}  # joints of elbows, and what hangs on each
FARTHER = 0.15  # shares of the photo's side
FINGERS = {20: tuple(range(25, 40)), 21: tuple(range(40, 55))}  # joints of wrists, and of the fingers on each
REACH = 0.02  # share of the photo's side by which a farther carrier counts 1/e


@dataclass
class TemplateInPhoto:
    """The template's Gaussians as the photo shows them.

    Attributes:
        posed: `[B,N,...]` as in the photo.
        places: `[B,N,2]` in the photo, as `grid_sample` counts.
        seen: `[B,N]` 1 where the photo shows the Gaussian, else 0.
        skin_weights: `[N,55]`.
        part: `[N]` codes (`networks.regions.part_code`).
        transforms: `[B,55,3,4]` of the joints, from the T-pose to the photo's.
        before: `[B,1,H,W]` 1 where the photo shows hands before the trunk that the template has elsewhere.
        depth: `[B,1,H,W]` m, of the posed template; 0 where there is none.
    """

    posed: Gaussians
    places: Tensor
    seen: Tensor
    skin_weights: Tensor
    part: Tensor
    transforms: Tensor
    before: Tensor
    depth: Tensor


@dataclass
class Lifted:
    """Loose Gaussians and how the photo shows them.

    Attributes:
        loose: in the T-pose.
        posed: `[B,M,...]` as in the photo.
        places: `[B,M,2]` in the photo, as `grid_sample` counts.
        part: `[B,M]` codes.
    """

    loose: Loose
    posed: Gaussians
    places: Tensor
    part: Tensor


@torch.no_grad()
@full_precision
def lift_loose(template: TemplateInPhoto, photo: Photo, grid: int = GRID) -> Lifted:
    """Lift what the photo shows and the template does not.

    Args:
        template: as it lies in the photo.
        photo: what shows it.
        grid: G; each cell may become a Gaussian.
    """
    free = _uncovered(template, photo, grid)
    free = ((free.flatten(1) - LEAST) / (1 - 2 * LEAST)).clamp(0, 1)
    most = min(
        int(MOST * grid * grid), int((free > 0).sum(dim=1).max())
    )  # of the batch; who has fewer gets transparent ones
    opacity, cells = free.topk(most, dim=1)
    places = torch.stack([(cells % grid + 0.5) / grid, (cells // grid + 0.5) / grid], dim=-1) * 2 - 1
    held = F.grid_sample(
        F.adaptive_avg_pool2d(template.before, grid), places[:, :, None], "nearest", align_corners=False
    )
    held = held[:, 0, :, 0] > HELD
    index, weight = _carriers(template, places, held)

    def carried(value: Tensor) -> Tensor:
        """Mean over the carriers of a value `[B,S,D]` -> `[B,M,D]`."""
        batch = torch.arange(len(value), device=value.device)[:, None, None]
        return (value[batch, index] * weight[..., None]).sum(dim=2)

    rotation, shift = photo.world_to_camera[:, :3, :3], photo.world_to_camera[:, :3, 3]
    camera_points = template.posed.means[:, ::CARRIERS] @ rotation.mT + shift[:, None]
    skin_weights = _by_wrists(carried(template.skin_weights[::CARRIERS].expand(len(places), -1, -1)))
    depth = carried(camera_points[..., 2:]) + BEHIND
    joins = (opacity > 0) & ~held & (skin_weights[..., LIMBS].sum(dim=-1) < MOST_LIMB)
    depth, skin_weights = _evened(torch.cat([depth, skin_weights], dim=-1), places / 2, joins).split([1, 55], -1)
    trunk = F.grid_sample(template.depth, places[:, :, None], "nearest", align_corners=False)[:, 0]
    depth = torch.where(held[..., None] & (trunk > 0), torch.minimum(depth, trunk - BEFORE), depth)
    size = places.new_tensor([photo.image.shape[-1], photo.image.shape[-2]])
    pixels = torch.cat([(places + 1) / 2 * size, torch.ones_like(depth)], dim=-1)
    means = (depth * (pixels @ torch.linalg.inv(photo.intrinsics).mT) - shift[:, None]) @ rotation
    # A cell's Gaussian, round to the camera and thin along its view, overlaps the next.
    side = 0.6 * depth / grid * (size[0] / photo.intrinsics[:, None, None, 0, 0])
    facing = matrix_to_quaternion(rotation.mT)[:, None].expand(-1, places.shape[1], -1)
    colors = F.grid_sample(photo.image, places[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
    posed = Gaussians(
        means=means,
        quats=facing,
        scales=torch.cat([side, side, 0.5 * side], dim=-1),
        opacities=0.95 * opacity,
        colors=colors,
        features=carried(template.posed.features[:, ::CARRIERS]),
    )
    skin_weights = torch.where(held[..., None], _by_forearm(skin_weights), skin_weights)
    part = carried(template.part[::CARRIERS, None].expand(len(places), -1, -1))[..., 0]
    return Lifted(Loose(unposed(posed, skin_weights, template.transforms), skin_weights), posed, places, part)


def _uncovered(template: TemplateInPhoto, photo: Photo, grid: int) -> Tensor:
    """`[B,G,G]`: share of each cell that is foreground and that the template does not cover."""
    posed = template.posed
    maps = rasterize(
        posed.means,
        posed.quats,
        posed.scales,
        posed.opacities,
        template.seen[..., None],
        photo.intrinsics,
        photo.world_to_camera,
        width=photo.mask.shape[-1],
        height=photo.mask.shape[-2],
    )
    alpha = maps.alpha.permute(0, 3, 1, 2)
    shown = covered_by_photo(maps.image.permute(0, 3, 1, 2), alpha)
    covered = alpha * torch.lerp(shown, torch.ones_like(shown), HIDDEN)
    covered = covered * (1 - template.before)
    inside = (5 * photo.mask - 4).clamp(0, 1)  # edges are mixed with what lies behind
    return F.adaptive_avg_pool2d(inside * (1 - covered), grid)[:, 0]


def _evened(values: Tensor, places: Tensor, joins: Tensor) -> Tensor:
    """Values `[B,M,D]` mixed with those beside them: a sheet of hair from head to shoulder bends, and does not tear.

    Args:
        values: depth and skinning weights.
        places: `[B,M,2]` in shares of the photo's side.
        joins: `[B,M]` bool, what is mixed; the rest stays.
    """
    near = torch.exp(-torch.cdist(places, places).square() / (2 * EVEN**2)) * joins[:, None]
    near = near / near.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    for _ in range(EVEN_STEPS):
        values = torch.where(joins[..., None], near @ values, values)
    return values


def _by_wrists(skin_weights: Tensor) -> Tensor:
    """Weights `[B,M,55]`, the fingers at their wrists: what a hand holds does not scatter when its fingers move."""
    moved = skin_weights.clone()
    for wrist, fingers in FINGERS.items():
        moved[..., wrist] += skin_weights[..., fingers].sum(dim=-1)
        moved[..., fingers] = 0.0
    return moved


def _by_forearm(skin_weights: Tensor) -> Tensor:
    """Weights `[B,M,55]` of what one forearm carries as a whole: that of the side with the greater part of these."""
    side = torch.stack([skin_weights[..., list(joints)].sum(dim=-1) for joints in FOREARMS.values()], dim=-1)
    joints = torch.tensor(list(FOREARMS), device=side.device)[side.argmax(dim=-1)]
    return F.one_hot(joints, skin_weights.shape[-1]).to(skin_weights)


def _carriers(template: TemplateInPhoto, places: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    """The template's Gaussians nearest in the photo to `places [B,M,2]`: indices and weights `[B,M,NEAREST]`.

    Where the photo shows hands before the trunk, `held [B,M]`, they are of the limbs, seen or not.
    """
    distance = torch.cdist(places, template.places[:, ::CARRIERS]) / 2  # shares of the photo's side
    limb = template.skin_weights[::CARRIERS, LIMBS].sum(dim=-1)
    hidden = 1 - template.seen[:, None, ::CARRIERS]  # what the photo does not show lies behind
    distance = distance + torch.where(held[..., None], 10.0 * (limb < 0.5), 10.0 * hidden + FARTHER * limb)
    near = distance.topk(NEAREST, dim=-1, largest=False)
    return near.indices, torch.softmax((near.values[..., :1] - near.values) / REACH, dim=-1)
