"""Surface Gaussians: one for each cell of the photo that shows the template, as dense as the photo is large.

The template has a Gaussian a vertex, on the trunk a few pixels apart in a photo of 128 px and thrice as many in one of
384: without the photo as texture, as in an exported file, that is a blur. The photo says more. Where it shows a
triangle of the template, each cell of a grid over it becomes a Gaussian that lies flat on the triangle, has the
photo's colour, and rides on the triangle's corners by its barycentric coordinates (as in Shao et al.,
"SplattingAvatar", CVPR 2024). What the photo shows beside the template is lifted by `networks.loose`. The template's
own Gaussians stay below: they show what the photo does not, and close the gaps of a lid that shuts or a lip that
stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.avatar import Avatar, Surface
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.precision import full_precision
from visa.networks.rasterizer.mesh import view_mesh
from visa.networks.rotation import matrix_to_quaternion

# B photos, F triangles, S Gaussians, G cells along each side of the photo, P = G * G.

CELL = 2.0  # px: one or one and a half is no sharper once fitted
COARSE, COARSE_CELL = 128, 1.5  # px: photos up to this size are shown by the template alone where it is dense
SPARSE = 1.5  # cells from vertex to vertex: there it is not
LEAST_FACING = 0.15  # cosine between a triangle's normal and the view
SPREAD = 0.6  # standard deviation, in cells: each overlaps the next
THICKNESS = 0.2  # of the spread
LONGEST = 3.0  # spreads: on a slanted triangle a cell's footprint is longer, by 1 / cosine


@dataclass
class LiftedSurface:
    """Surface Gaussians and how the photo shows them.

    Attributes:
        surface: in the T-pose, without features.
        posed: `[B,S,...]` as in the photo.
        places: `[B,S,2]` in the photo, as `grid_sample` counts.
    """

    surface: Surface
    posed: Gaussians
    places: Tensor


def cell_size(size: int, chosen: float | None) -> float:
    """Side in px of the cells of a photo of `size` px; 0 for no surface Gaussians. `chosen` None goes by the size."""
    if chosen is not None and chosen < 0:
        raise ValueError(f"pixels_per_gaussian is {chosen}: give a number of px, 0 for no surface Gaussians, or null")
    if chosen is None:
        return CELL if size > COARSE else COARSE_CELL
    return chosen


@torch.no_grad()
@full_precision
def lift_surface(
    avatar: Avatar, body: BodyModel, rows: Tensor, photo: Photo, before: Tensor, side: int, spacing: float
) -> LiftedSurface:
    """A Gaussian for each cell in which the photo shows the front of one of the template's triangles.

    Args:
        avatar: the template's Gaussians, `[B,...]`.
        body: the body model.
        rows: `[F,3]` the template's Gaussians at the corners of each triangle; -1 for a vertex without.
        photo: what the avatar is made of.
        before: `[B,1,H,W]` as `networks.projection.Projection.before`: hands are no part of the trunk's surface.
        side: G.
        spacing: cells from vertex to vertex beyond which a triangle has them; 0 for all.
    """
    size, camera = photo.image.shape[-2:], photo.world_to_camera
    vertices, _ = body(photo.body)
    scale = vertices.new_tensor([side / size[1], side / size[0], 1.0])
    view = view_mesh(vertices, body.faces, photo.intrinsics * scale[:, None], camera, side, side)
    face = view.face.flatten(1)
    hit = face.clamp_min(0)
    rays, places = _rays(photo.intrinsics, size, side)
    normals = _facet_normals(vertices, body.faces, hit) @ camera[:, :3, :3].mT
    facing = -(normals * F.normalize(rays, dim=-1)).sum(dim=-1)
    inside = F.adaptive_avg_pool2d((5 * photo.mask - 4).clamp(0, 1), side).flatten(1)  # edges hold what lies behind
    is_free = F.adaptive_max_pool2d(before, side).flatten(1) == 0
    is_sparse = _spacing(vertices, body.faces, photo, side).gather(1, hit) > spacing
    is_used = is_sparse & (face >= 0) & (rows[hit] >= 0).all(dim=-1) & (facing > LEAST_FACING) & (inside > 0) & is_free
    # Used cells first, in their order; who has fewer than another of the batch gets transparent ones.
    order = is_used.long().argsort(dim=1, descending=True, stable=True)[:, : int(is_used.sum(dim=1).max())]
    batch = torch.arange(len(order), device=order.device)[:, None]
    normals, rays, places, facing = normals[batch, order], rays[batch, order], places[order], facing[batch, order]
    opacity = (inside * is_used)[batch, order]
    depth = view.depth.flatten(1)[batch, order]
    depth = torch.where(torch.isfinite(depth), depth, 1.0)[..., None]
    along = F.normalize(torch.cross(normals, rays, dim=-1), dim=-1)  # the triangle's direction across the view
    frame = torch.stack([along, torch.cross(normals, along, dim=-1), normals], dim=-1)
    wide = SPREAD * depth / side * (size[1] / photo.intrinsics[:, None, None, 0, 0])
    long = wide / facing[..., None].clamp_min(1 / LONGEST)
    colors = F.grid_sample(photo.image, places[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
    posed = Gaussians(
        means=(depth * rays - camera[:, None, :3, 3]) @ camera[:, :3, :3],
        quats=matrix_to_quaternion(camera[:, None, :3, :3].mT @ frame),
        scales=torch.cat([wide, long, THICKNESS * wide], dim=-1),
        opacities=0.95 * opacity,
        colors=colors,
        features=colors[..., :0],
    )
    corners = rows[hit[batch, order]].clamp_min(0)
    # A cell without a triangle rides on one corner: of none, it would have no way back to the T-pose.
    one = facing.new_tensor([1.0, 0.0, 0.0])
    weights = torch.where(is_used[batch, order][..., None], view.corner_weights.flatten(1, 2)[batch, order], one)
    surface = avatar.unposed_surface(Surface(posed, corners, weights), body, photo.body)
    return LiftedSurface(surface, posed, places)


def _rays(intrinsics: Tensor, size: tuple[int, int] | torch.Size, side: int) -> tuple[Tensor, Tensor]:
    """Through the cells' centres: rays `[B,P,3]` in the camera's axes, z = 1, and places `[P,2]` as `grid_sample`'s."""
    cells = torch.arange(side * side, device=intrinsics.device)
    places = torch.stack([(cells % side + 0.5) / side, (cells // side + 0.5) / side], dim=-1)
    pixels = torch.cat([places * places.new_tensor([size[1], size[0]]), torch.ones_like(places[:, :1])], dim=-1)
    return pixels @ torch.linalg.inv(intrinsics).mT, places * 2 - 1


def _spacing(vertices: Tensor, faces: Tensor, photo: Photo, side: int) -> Tensor:
    """`[B,F]` cells from vertex to vertex, by the area of each triangle of `vertices [B,V,3]` in the photo."""
    camera = photo.world_to_camera
    seen = vertices @ camera[:, :3, :3].mT + camera[:, None, :3, 3]
    pixels = seen @ photo.intrinsics.mT
    cells = pixels[..., :2] / pixels[..., 2:].clamp_min(1e-3) * (side / photo.image.shape[-1])
    a, b, c = (cells[:, faces[:, k]] for k in range(3))
    (x, y), (u, v) = (b - a).unbind(-1), (c - a).unbind(-1)
    return (x * v - y * u).abs().sqrt()  # a mesh has half as many vertices as triangles


def _facet_normals(vertices: Tensor, faces: Tensor, chosen: Tensor) -> Tensor:
    """`[B,P,3]` unit normals of the `chosen [B,P]` triangles of meshes of `vertices [B,V,3]`."""
    a, b, c = (vertices[:, faces[:, k]] for k in range(3))
    normals = F.normalize(torch.cross(b - a, c - a, dim=-1), dim=-1)
    return normals[torch.arange(len(chosen), device=chosen.device)[:, None], chosen]
