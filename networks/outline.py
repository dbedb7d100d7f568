"""The head's outline as the photo has it: a face outside of the matte is drawn in, the scalp grows to the hair.

The template ends at the skin of a mean head, and its track is off by millimetres. A cheek cut off at the matte has
holes once the head turns, and hair that only stands beside the template in the photo's plane is a board seen from the
side: so the surface moves first, and what is left is for the hull and for loose Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.anatomy import Region
from visa.networks.anchors import Anchors
from visa.networks.avatar import Avatar
from visa.networks.photo import Photo
from visa.networks.precision import full_precision

# B photos, N anchors, S of the scalp.

INSIDE = 0.8  # of the matte: a face goes no further out
MOST_DRAWN = 0.02  # m that a face is drawn in
SMOOTHING = 30  # steps by which what was drawn in draws its neighbours, each by 0.95 of their mean
MOST_GROWN = 0.04  # m that a scalp grows
RIM = 0.014  # m from the matte's edge: the last of the hair is the Gaussians' own size, and loose strands
HAIRLINE = 0.03  # m from the face, over which the growth sets in
HEAD_RADIUS = 0.09  # m: Gaussians of a scalp that grows spread as a sphere's would
DIRECTIONS, SAMPLES = 48, 33  # around the head; along each, to find the matte's edge


@torch.no_grad()
@full_precision
def outlined(anchors: Anchors, avatar: Avatar, photo: Photo, seen: Tensor) -> Avatar:
    """The avatar with the head's Gaussians moved to the outline that its photo shows.

    Args:
        anchors: of the template.
        avatar: with a Gaussian at each, `[B,N,...]`.
        photo: what it is made of, `[B,...]`.
        seen: `[B,N]` 1 where the photo shows the anchor.
    """
    return _grown(anchors, _drawn_in(anchors, avatar, photo, seen), photo)


def _drawn_in(anchors: Anchors, avatar: Avatar, photo: Photo, seen: Tensor) -> Avatar:
    """A face that lies within the matte: each Gaussian outside goes towards the face's middle, at its own depth."""
    is_face = anchors.region == int(Region.FACE)
    places, depth = _in_photo(anchors, avatar, photo)
    is_shown = (seen * is_face)[..., None]
    middle = (places * is_shown).sum(dim=1) / is_shown.sum(dim=1).clamp_min(1)
    way = torch.linspace(0, 0.5, SAMPLES, device=places.device)[:, None]
    path = places[:, :, None] + (middle[:, None, None] - places[:, :, None]) * way
    is_inside = _matte(photo, path) > INSIDE
    first = is_inside.float().argmax(dim=-1)[..., None, None].expand(-1, -1, 1, 2)
    is_outside = is_face & ~is_inside[..., 0] & is_inside.any(dim=-1) & (places.abs() < 1).all(dim=-1)
    metres = (path.gather(2, first)[:, :, 0] - places) * depth / _focal(photo)
    is_drawn = is_outside & (metres.norm(dim=-1) < MOST_DRAWN)
    shift = F.pad(metres * is_drawn[..., None], (0, 1))
    is_still = (is_drawn | ~is_face)[..., None]
    for _ in range(SMOOTHING):
        shift = torch.where(is_still, shift, 0.95 * shift[:, anchors.neighbours].mean(dim=2))
    moves = avatar.linear_part(anchors.body, photo.view().body)[:, 0]
    change = torch.linalg.solve(moves, (shift @ photo.world_to_camera[:, :3, :3])[..., None])[..., 0]
    return _moved(avatar, change)


def _grown(anchors: Anchors, avatar: Avatar, photo: Photo) -> Avatar:
    """A scalp that grows along its normals until its outline is nearly that of the hair, all around the head."""
    scalp, face = anchors.region == int(Region.SCALP), anchors.region == int(Region.FACE)
    rest = avatar.gaussians.means
    places, depth = _in_photo(anchors, avatar, photo)
    pixels = _focal(photo) / depth[:, scalp].mean(dim=1, keepdim=True)
    middle = (places[:, scalp].amin(dim=1) + places[:, scalp].amax(dim=1))[:, None] / 2
    away = places - middle
    radius, angle = away.norm(dim=-1), torch.atan2(away[..., 1], away[..., 0])
    turn = ((angle / (2 * math.pi) + 0.5) * DIRECTIONS).long().clamp(0, DIRECTIONS - 1)
    outline = radius.new_zeros(len(radius), DIRECTIONS)
    outline = outline.scatter_reduce(1, turn[:, scalp | face], radius[:, scalp | face], "amax")  # also of ears
    radius, turn = radius[:, scalp], turn[:, scalp]
    grown = _growth(photo, middle, outline, pixels)
    # What lies before the middle of the head or behind it grows as all do on average.
    share = (radius / outline.gather(1, turn).clamp_min(1e-6)).clamp(0, 1)
    mean = grown.sum(dim=1, keepdim=True) / (outline > 0).sum(dim=1, keepdim=True).clamp_min(1)
    hairline = torch.stack([torch.cdist(points[scalp], points[face]).amin(dim=1) for points in rest])
    amount = torch.lerp(mean.expand_as(share), grown.gather(1, turn), share) * (hairline / HAIRLINE).clamp(max=1)
    change, spread = torch.zeros_like(rest), torch.ones_like(rest)
    change[:, scalp] = amount[..., None] * anchors.normals[scalp]
    spread[:, scalp] = 1 + amount[..., None] / HEAD_RADIUS
    return _moved(avatar, change, spread)


def _growth(photo: Photo, middle: Tensor, outline: Tensor, pixels: Tensor) -> Tensor:
    """`[B,DIRECTIONS]` m from the template's outline to the hair's, 0 where there is no head.

    Args:
        photo: with the matte.
        middle: `[B,1,2]` of the scalp in the photo, as `grid_sample` counts.
        outline: `[B,DIRECTIONS]` radius of the head around it, 0 where there is none.
        pixels: `[B,1,1]` of a metre at the scalp, in the units of `middle`.
    """
    angle = (torch.arange(DIRECTIONS, device=outline.device) + 0.5) * 2 * math.pi / DIRECTIONS - math.pi
    ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
    far = torch.linspace(0, MOST_GROWN, SAMPLES, device=outline.device)
    path = middle[:, None] + ray[:, None] * (outline[..., None] + far * pixels)[..., None]
    is_within = (path.abs() < 1).all(dim=-1)
    is_hair = ((_matte(photo, path) > 0.5) & is_within).int().cumprod(dim=-1)
    found = (is_hair.sum(dim=-1) - 1).clamp_min(0) * MOST_GROWN / (SAMPLES - 1) - RIM
    known = (outline > 0) & (ray[:, 1] < 0.5)  # what falls to the shoulders is no outline of the head
    grown, weight = _around(found.clamp_min(0) * known), _around(known.float())
    return grown / weight.clamp_min(1e-3) * (outline > 0)


def _around(values: Tensor) -> Tensor:
    """Weighted sums of `[B,DIRECTIONS]` over five neighbours on the circle."""
    kernel = values.new_tensor([[[1.0, 2.0, 3.0, 2.0, 1.0]]])
    return F.conv1d(F.pad(values[:, None], (2, 2), mode="circular"), kernel)[:, 0]


def _in_photo(anchors: Anchors, avatar: Avatar, photo: Photo) -> tuple[Tensor, Tensor]:
    """Places `[B,N,2]` in the photo as `grid_sample` counts, and depths `[B,N,1]`, m."""
    means = avatar.pose(anchors.body, photo.view().body).means[:, 0]
    camera = photo.world_to_camera
    return photo.places(means), means @ camera[:, 2:3, :3].mT + camera[:, 2:3, 3:]


def _focal(photo: Photo) -> Tensor:
    """`[B,1,1]` focal length in the units in which `grid_sample` counts."""
    return 2 * photo.intrinsics[:, :1, :1] / photo.image.shape[-1]


def _matte(photo: Photo, places: Tensor) -> Tensor:
    """The photo's matte `[B,P,Q]` at `places [B,P,Q,2]`."""
    return F.grid_sample(photo.mask, places, padding_mode="border", align_corners=False)[:, 0]


def _moved(avatar: Avatar, change: Tensor, spread: Tensor | None = None) -> Avatar:
    """The avatar whose template's Gaussians have moved by `change [B,N,3]` (m) and grown by the factor `spread`."""
    gaussians = avatar.gaussians
    scales = gaussians.scales if spread is None else gaussians.scales * spread
    return replace(avatar, gaussians=replace(gaussians, means=gaussians.means + change, scales=scales))
