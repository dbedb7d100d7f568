"""What a photo gives without any 3D or learning: its pixels, pulled along by the tracked body in the picture's plane.

Points of the tracked mesh that face the camera in photo and frame are joined by a thin-plate spline (Bookstein 1989),
which carries the photo and its mask. A row of a table must beat it before its third dimension has earned anything.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.datamodules.batch import VideoBatch
from visa.evaluation.faces import MOVING
from visa.evaluation.regions import face_places
from visa.networks.body import BodyModel
from visa.networks.farthest import farthest_points
from visa.networks.joints import LEG_JOINTS
from visa.networks.view import View

NUM_POINTS = 160  # of the body, spread over its upper half
FACING = 0.2  # cosine of the angle between surface and line of sight, from which on a point counts as seen
STIFFNESS = 10.0  # px^2: what points that disagree are smoothed by; not tuned


class ControlPoints(NamedTuple):
    """Places on a body model: corners `[P,3]` of their triangles, and weights `[P,3]` of the corners."""

    corners: Tensor
    weights: Tensor


def control_points(body: BodyModel) -> ControlPoints:
    """Points spread over the upper body, and those of lips, lids and brows where they are known on this model."""
    legs = body.lbs_weights[:, list(LEG_JOINTS)].sum(dim=1)
    is_upper = (legs < 0.5) & (body.part == body.part_names.index("skin"))
    faces = body.faces[is_upper[body.faces].all(dim=1)]
    chosen = faces[farthest_points(body.v_template[faces].mean(dim=1), NUM_POINTS)]
    points = ControlPoints(chosen, torch.full(chosen.shape, 1 / 3))
    try:
        corners, weights = face_places(body)
    except ValueError:
        return points
    moving = list(dict.fromkeys(MOVING))
    return ControlPoints(torch.cat([chosen, corners[moving]]), torch.cat([points.weights, weights[moving]]))


def seen_points(body: BodyModel, points: ControlPoints, view: View) -> tuple[Tensor, Tensor]:
    """Where points lie in the picture, `[T,P,2]` px, and whether they face the camera, `[T,P]`, of a `[T]` view."""
    vertices, _ = body(view.body, points.corners.flatten())
    inside = vertices @ view.world_to_camera[:, :3, :3].mT + view.world_to_camera[:, None, :3, 3]
    a, b, c = inside.unflatten(1, points.corners.shape).unbind(dim=2)
    place = torch.stack([a, b, c], dim=2).mul(points.weights[..., None].to(a)).sum(dim=2)
    normal = F.normalize(torch.linalg.cross(b - a, c - a, dim=-1), dim=-1)
    facing = -(normal * F.normalize(place, dim=-1)).sum(dim=-1)
    pixels = place @ view.intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:].clamp_min(1e-3), (facing > FACING) & (place[..., 2] > 1e-3)


def thin_plate(source: Tensor, target: Tensor, places: Tensor, stiffness: float = STIFFNESS) -> Tensor:
    """The smoothing thin-plate spline through `source [P,2]` -> `target [P,2]`, read at `places [N,2]` -> `[N,2]`.

    Raises:
        ValueError: fewer than three points, which fix no plane.
    """
    if len(source) < 3:
        raise ValueError(f"a thin-plate spline needs 3 points, got {len(source)}")
    source, target, places = source.double(), target.double(), places.double()
    count, middle = len(source), source.mean(dim=0)
    scale = (source - middle).abs().max().clamp_min(1e-9)  # the plane's columns are then no smaller than the bending's

    def bending(points: Tensor) -> Tensor:
        squared = torch.cdist(points, source).square()
        return 0.5 * squared * squared.clamp_min(1e-300).log()

    def plane(points: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(points[:, :1]), (points - middle) / scale], dim=1)

    system = torch.zeros(count + 3, count + 3, dtype=torch.float64)
    system[:count, :count] = bending(source) + stiffness * torch.eye(count, dtype=torch.float64)
    system[:count, count:], system[count:, :count] = plane(source), plane(source).T
    solved = torch.linalg.solve(system, torch.cat([target, target.new_zeros(3, 2)]))
    return bending(places) @ solved[:count] + plane(places) @ solved[count:]


@torch.no_grad()
def warped_photo(body: BodyModel, points: ControlPoints, batch: VideoBatch) -> tuple[Tensor, Tensor]:
    """The photo of one window `[1,T]` pulled into its frames: pictures `[T,3,H,W]` and the mask `[T,1,H,W]`.

    Beyond the photo's sides and below it the person goes on as the photo ends, above it is nobody. A frame in which
    fewer than three points of the photo are seen shows the photo as it is.
    """
    view, size = batch.view(), batch.frames.shape[-1]
    frames = View(
        view.intrinsics[0].cpu(), view.world_to_camera[0].cpu(), size, view.body.map(lambda value: value[0].cpu())
    )
    photo = View(
        batch.reference_intrinsics.cpu(), batch.reference_world_to_camera.cpu(), size,
        batch.reference_body.map(lambda value: value.cpu()),
    )  # fmt: skip
    places, is_seen = seen_points(body, points, frames)
    (own,), (is_own,) = seen_points(body, points, photo)
    steps = torch.arange(size) + 0.5
    grid = torch.stack([steps.expand(size, size), steps[:, None].expand(size, size)], dim=-1).flatten(0, 1)
    layers = torch.cat([batch.reference, batch.reference_mask], dim=1).cpu()
    background = batch.background[0].cpu().view(3, 1, 1)
    pictures, masks = [], []
    for place, seen in zip(places, is_seen & is_own, strict=True):
        read = thin_plate(place[seen], own[seen], grid) if int(seen.sum()) >= 3 else grid.double()
        lookup = (2 * read / size - 1).float().unflatten(0, (size, size))[None]
        moved = F.grid_sample(layers, lookup, mode="bicubic", padding_mode="border", align_corners=False)[0].clamp(0, 1)
        mask = moved[3:] * (lookup[..., 1] >= -1)
        masks.append(mask)
        pictures.append(torch.where(mask > 0, moved[:3], background))
    return torch.stack(pictures), torch.stack(masks)
