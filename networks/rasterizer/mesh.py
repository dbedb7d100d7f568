"""A z-buffer of a triangle mesh: which triangle stands in front at each pixel, and how far away it is.

Gaussians blur a surface over some pixels, so that what lies two centimetres behind it (an eyeball behind a lid, teeth
behind lips) cannot be told from it. A mesh can. It is drawn on the CPU, without gradients, once a photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visa.networks.rasterizer.compiler import kernel


@dataclass
class MeshView:
    """A mesh as a camera sees it.

    Attributes:
        face: `[B,H,W]` int64 index of the front triangle at each pixel's centre; -1 where there is none.
        depth: `[B,H,W]` metres along the camera's axis; infinity where there is none.
        corner_weights: `[B,H,W,3]` barycentric coordinates of the point in its triangle, on the surface (not in the
            picture); zeros where there is none.
    """

    face: Tensor
    depth: Tensor
    corner_weights: Tensor


@kernel
def _fill(
    places: np.ndarray, depths: np.ndarray, faces: np.ndarray, near: float, face: np.ndarray, depth: np.ndarray,
    weights: np.ndarray,
) -> None:  # fmt: skip
    """Draw every triangle of one frame into `face [H,W]`, `depth [H,W]` and `weights [H,W,3]`.

    1/z is linear in the picture, and so is each corner's weight times its 1/z.
    """
    height, width = face.shape
    for index in range(faces.shape[0]):
        i, j, k = faces[index, 0], faces[index, 1], faces[index, 2]
        if min(depths[i], depths[j], depths[k]) <= near:
            continue
        ax, ay, bx, by = places[i, 0], places[i, 1], places[j, 0], places[j, 1]
        cx, cy = places[k, 0], places[k, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        left = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - 0.5)), height - 1)
        inverse_i, inverse_j, inverse_k = 1.0 / depths[i], 1.0 / depths[j], 1.0 / depths[k]
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                inverse = u * inverse_i + v * inverse_j + w * inverse_k
                z = 1.0 / inverse
                if z < depth[row, column]:
                    depth[row, column], face[row, column] = z, index
                    weights[row, column, 0] = u * inverse_i * z
                    weights[row, column, 1] = v * inverse_j * z
                    weights[row, column, 2] = w * inverse_k * z


@torch.no_grad()
def view_mesh(
    vertices: Tensor,
    faces: Tensor,
    intrinsics: Tensor,
    world_to_camera: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
) -> MeshView:
    """Draw a mesh, both sides of its triangles.

    Args:
        vertices: `[B,V,3]` m, in the world.
        faces: `[F,3]` int64.
        intrinsics: `[B,3,3]` px of the `width` x `height` picture; pixel centres are at +0.5.
        world_to_camera: `[B,4,4]` OpenCV.
        width: px.
        height: px.
        near: m; triangles with a corner that is not beyond it are dropped.
    """
    inside = vertices.double() @ world_to_camera[:, :3, :3].double().mT + world_to_camera[:, None, :3, 3].double()
    projected = inside @ intrinsics.double().mT
    places = (projected[..., :2] / projected[..., 2:].clamp_min(near)).cpu().numpy()
    depths, triangles = inside[..., 2].cpu().numpy(), faces.cpu().numpy()
    batch = len(places)
    face = np.full((batch, height, width), -1, np.int64)
    depth = np.full((batch, height, width), np.inf)
    weights = np.zeros((batch, height, width, 3))
    for b in range(batch):
        _fill(places[b], depths[b], triangles, near, face[b], depth[b], weights[b])
    device = vertices.device
    return MeshView(
        torch.from_numpy(face).to(device),
        torch.from_numpy(depth).float().to(device),
        torch.from_numpy(weights).float().to(device),
    )
