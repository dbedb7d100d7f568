"""Where the template's anchors lie in a photo, which of them it shows, and what stands before them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.anatomy import Kind, Region
from visa.networks.anchors import Anchors, vertex_normals
from visa.networks.photo import Photo
from visa.networks.photo_colour import cloth_pixels, skin_pixels
from visa.networks.rasterizer.mesh import MeshView, view_mesh
from visa.networks.skin import SkinTone

# B photos, N anchors, h w px of the z-buffer.

VISIBLE_WITHIN = 0.003  # m
LEAST_FACING = 0.15  # cosine between an anchor's normal and the view
MESH_OVERSAMPLING = 4  # z-buffer's pixels along one of the photo's
LEAST_OPEN = 0.12  # share of an eyeball's disc that a photo must show: a half with open lids, a quarter when squinting


@dataclass
class Projection:
    """Where the anchors lie in the photo.

    Attributes:
        grid: `[B,N,2]` coordinates of `grid_sample` (align_corners false).
        visible: `[B,N]` 1 where the photo shows the anchor, else 0.
        facing: `[B,N]` cosine between normal and view, negative for what faces away.
        normals: `[B,N,3]` unit normals in the camera's axes.
        before: `[B,1,H,W]` 1 where the photo shows hands before the trunk that the template has elsewhere, else 0.
        depth: `[B,1,H,W]` m, of the posed template; 0 where there is none.
        cloth: `[B,H,W]` bool, pixels of the clothes of trunk and arms.
        tone: the colour of the person's skin.
    """

    grid: Tensor
    visible: Tensor
    facing: Tensor
    normals: Tensor
    before: Tensor
    depth: Tensor
    cloth: Tensor
    tone: SkinTone


@torch.no_grad()
def project(anchors: Anchors, photo: Photo) -> Projection:
    """Project the anchors and test their visibility against a z-buffer of the posed mesh.

    An anchor is seen where nothing lies before it (`_in_front`), where it faces the camera and the photo's matte holds
    it; one of the torso not behind hands.
    """
    vertices, _ = anchors.body(photo.body)
    camera, (height, width) = photo.world_to_camera, photo.image.shape[-2:]
    fine = photo.intrinsics.clone()
    fine[:, :2] *= MESH_OVERSAMPLING
    view = view_mesh(vertices, anchors.body.faces, fine, camera, MESH_OVERSAMPLING * width, MESH_OVERSAMPLING * height)
    means = anchors.template.points(vertices)
    inside = (camera[:, None, :3, :3] @ means[..., None])[..., 0] + camera[:, None, :3, 3]
    grid = photo.places(means)
    normals = vertex_normals(vertices, anchors.body.faces)[:, anchors.template.vertex_ids] @ camera[:, :3, :3].mT
    covered = F.grid_sample(photo.mask, grid[:, :, None], mode="bilinear", align_corners=False)[:, 0, :, 0]
    facing = -(normals * F.normalize(inside, dim=-1)).sum(-1)
    visible = _in_front(anchors, view, grid, inside[..., 2])
    visible = visible & (facing > LEAST_FACING) & (covered > 0.8) & (grid.abs() < 1).all(-1)
    centres = slice(MESH_OVERSAMPLING // 2, None, MESH_OVERSAMPLING)  # of the photo's pixels in the z-buffer
    face = view.face[:, centres, centres]
    tone, skin, is_before = skin_pixels(anchors, photo, grid, visible, face)
    cloth = cloth_pixels(anchors, photo, skin, is_before, face)
    before = is_before[:, None].float()
    is_hidden = F.grid_sample(before, grid[:, :, None], mode="nearest", align_corners=False)[:, 0, :, 0] > 0.5
    visible &= ~(is_hidden & (anchors.region == int(Region.TORSO)))
    depth = torch.where(view.face < 0, 0.0, view.depth)[:, None, centres, centres]
    return Projection(grid, visible.float(), facing, normals, before, depth, cloth, tone)


def _in_front(anchors: Anchors, view: MeshView, grid: Tensor, depth: Tensor) -> Tensor:
    """`[B,N]` bool: anchors at places `grid [B,N,2]` and of `depth [B,N]` before which the mesh has nothing.

    Nothing lies more than VISIBLE_WITHIN before the anchor, and the front triangle is of its own part (a tooth does not
    take the lip's pixel). What lies in the mouth is in front where it fills a pixel, and an eyeball where lids leave
    LEAST_OPEN of it: a chink between lips or lids has no colour of its own.
    """
    is_empty = view.face < 0
    height, width = (size // MESH_OVERSAMPLING for size in is_empty.shape[-2:])

    def read(values: Tensor, right: float = 0.0, down: float = 0.0) -> Tensor:
        """At the anchors, or so many of the photo's pixels beside them."""
        places = grid[:, :, None] + grid.new_tensor([2 * right / width, 2 * down / height])
        return F.grid_sample(values[:, None], places, mode="nearest", padding_mode="zeros", align_corners=False)[
            :, 0, :, 0
        ]

    # The farthest of 3 x 3 pixels: at a grazing angle the surface falls by millimetres within one.
    farthest = F.max_pool2d(torch.where(is_empty, 0.0, view.depth)[:, None], 3, 1, 1)[:, 0]
    is_uncovered, there = read(is_empty.float()) > 0.5, read(farthest)
    labels = torch.where(is_empty, -1, anchors.face_label[view.face.clamp_min(0)]).float()
    label, half = read(labels), (-0.5, 0.0, 0.5)
    fills = torch.stack([read(labels, x, y) == label for x in half for y in half]).all(dim=0)
    in_front = is_uncovered | ((depth < there + VISIBLE_WITHIN) & (label == anchors.label))
    is_eyeball = anchors.kind == int(Kind.EYEBALL)
    return in_front & (~anchors.is_inner | fills | (is_eyeball & _is_open(anchors, labels, grid)))


def _is_open(anchors: Anchors, labels: Tensor, grid: Tensor) -> Tensor:
    """`[B,N]` bool: anchors of eyeballs that lids leave open, by the front triangles' `labels [B,h,w]`."""
    is_open = torch.zeros(grid.shape[:2], dtype=torch.bool, device=grid.device)
    size = grid.new_tensor([labels.shape[-1], labels.shape[-2]]) / 2
    for index, name in enumerate(anchors.body.part_names):
        if name.startswith("eyeball"):
            mine = anchors.label == index
            places = grid[:, mine] * size
            extent = (places.amax(dim=1) - places.amin(dim=1)).clamp_min(1.0)
            area = math.pi / 4 * extent.prod(dim=1)
            share = (labels == index).flatten(1).sum(dim=1) / area
            is_open |= mine & (share > LEAST_OPEN)[:, None]
    return is_open
