"""A small z-buffer renderer: which triangle is seen through each pixel, and a shaded picture that a face detector
accepts.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@numba.njit(cache=True)
def fill_triangles(
    screen: NDArray[np.float64], depth: NDArray[np.float64], faces: NDArray[np.int64], height: int, width: int
) -> NDArray[np.int64]:
    """Nearest triangle of each pixel (-1 where none) from vertices `screen` [V, 2] px and their `depth` [V]; pixel
    centres at +0.5.
    """
    nearest = np.full((height, width), np.inf)
    triangle = np.full((height, width), -1, np.int64)
    for f in range(len(faces)):
        a, b, c = faces[f]
        if depth[a] <= 0 or depth[b] <= 0 or depth[c] <= 0:
            continue
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        left, right = max(0, int(min(ax, bx, cx))), min(width - 1, int(max(ax, bx, cx)))
        top, bottom = max(0, int(min(ay, by, cy))), min(height - 1, int(max(ay, by, cy)))
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + 0.5, y + 0.5
                u = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                v = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                w = 1 - u - v
                if u < 0 or v < 0 or w < 0:
                    continue
                z = 1 / (u / depth[a] + v / depth[b] + w / depth[c])
                if z < nearest[y, x]:
                    nearest[y, x] = z
                    triangle[y, x] = f
    return triangle


def project(points: Floats, focal: float, size: int) -> tuple[Floats, Floats]:
    """Camera points [V, 3] (OpenCV axes, m) to px [V, 2] of a square picture, and their depth [V]."""
    return points[:, :2] / points[:, 2:] * focal + size / 2, points[:, 2]


def visible_triangles(points: Floats, faces: NDArray[np.int64], focal: float, size: int) -> NDArray[np.int64]:
    """[size, size] index into `faces` of what is seen at each pixel of a square picture, -1 where nothing is."""
    screen, depth = project(points, focal, size)
    return fill_triangles(screen.astype(np.float64), depth.astype(np.float64), faces.astype(np.int64), size, size)


def pixel_barycentric(points: Floats, corners: NDArray[np.int64], pixels: Floats, focal: float, size: int) -> Floats:
    """Barycentric coordinates [N, 3] at which rays through `pixels` [N, 2] meet the planes of triangles `corners` [N,
    3].
    """
    rays = np.concatenate([(pixels - size / 2) / focal, np.ones((len(pixels), 1))], -1)
    weights = np.linalg.solve(np.swapaxes(points[corners].astype(np.float64), 1, 2), rays[..., None])[..., 0]
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def vertex_normals(points: Floats, faces: NDArray[np.int64]) -> Floats:
    """Unit normals [V, 3], weighted by area."""
    corners = points[faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(points)
    for k in range(3):
        np.add.at(normals, faces[:, k], flat)
    return normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)


def shade(points: Floats, faces: NDArray[np.int64], colours: Floats, focal: float, size: int) -> NDArray[np.uint8]:
    """A picture [size, size, 3] of camera points [V, 3] with vertex `colours` [V, 3] in [0, 1], soft light from the
    upper left.
    """
    triangle = visible_triangles(points, faces, focal, size)
    y, x = np.nonzero(triangle >= 0)
    corners = faces[triangle[y, x]]
    weights = pixel_barycentric(points, corners, np.stack([x, y], -1) + 0.5, focal, size)
    normals = (vertex_normals(points, faces)[corners] * weights[..., None]).sum(1)
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    light = np.array([-0.4, -0.5, -0.77])
    strength = 0.45 + 0.55 * np.clip(normals @ light, 0, 1)
    picture = np.full((size, size, 3), 0.75)
    picture[y, x] = np.clip((colours[corners] * weights[..., None]).sum(1) * strength[:, None], 0, 1)
    return (picture * 255).astype(np.uint8)
