"""Triangle meshes: subdivision as a matrix, normals, smoothing, seeded noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def midpoint_matrix(faces: Ints, num_vertices: int, levels: int) -> tuple[sparse.csr_matrix, Ints]:
    """Midpoint subdivision: a matrix [N, V] from old vertices to new ones, and the new faces [4^levels F, 3]."""
    matrix = sparse.identity(num_vertices, format="csr")
    for _ in range(levels):
        count = matrix.shape[0]
        sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        edges, inverse = np.unique(sides, axis=0, return_inverse=True)
        ab, bc, ca = (count + inverse.reshape(3, -1)).astype(np.int64)
        rows = np.repeat(np.arange(len(edges)), 2)
        middle = sparse.csr_matrix((np.full(len(rows), 0.5), (rows, edges.ravel())), (len(edges), count))
        matrix = sparse.vstack([matrix, middle @ matrix], format="csr")
        a, b, c = faces.T
        corners = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = np.concatenate([np.stack(corner, axis=1) for corner in corners])
    return matrix, faces


def compact(matrix: sparse.csr_matrix, faces: Ints) -> tuple[sparse.csr_matrix, Ints]:
    """Leave out the vertices (rows of `matrix`) that no face uses."""
    used, inverse = np.unique(faces, return_inverse=True)
    return matrix[used], inverse.reshape(-1, 3).astype(np.int64)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Unit normals [N, 3], area-weighted."""
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.stack(
        [np.bincount(faces.ravel(), np.repeat(normal[:, axis], 3), minlength=len(vertices)) for axis in range(3)],
        axis=1,
        dtype=np.float64,
    )
    return unit(total)


def smoothing_matrix(faces: Ints, num_vertices: int, rounds: int) -> sparse.csr_matrix:
    """`rounds` steps of averaging each vertex with its neighbours, [N, N]; edges of open borders move along them."""
    a, b, c = faces.T
    rows, columns = np.concatenate([a, b, b, c, c, a]), np.concatenate([b, a, c, b, a, c])
    links = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (num_vertices, num_vertices))
    borders = links.copy()
    borders.data[:] = borders.data == 1
    borders.eliminate_zeros()
    on_border = np.asarray(borders.sum(axis=1)).ravel() > 0
    links.data[:] = 1
    keep = sparse.diags(on_border.astype(float)) @ borders + sparse.diags((~on_border).astype(float)) @ links
    degree = np.maximum(np.asarray(keep.sum(axis=1)).ravel(), 1)
    step = 0.5 * sparse.identity(num_vertices) + 0.5 * sparse.diags(1 / degree) @ keep
    result = sparse.identity(num_vertices, format="csr")
    for _ in range(rounds):
        result = step @ result
    return result.tocsr()


def unit(vectors: Floats) -> Floats:
    """Vectors [..., 3] at length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def wave_noise(rng: np.random.Generator, points: Floats, wavelength: float, count: int = 24) -> Floats:
    """Smooth noise [N] of about unit deviation at `points` [N, 3]: random plane waves around one wavelength (m)."""
    directions = unit(rng.normal(size=(count, 3))) * (2 * np.pi / (wavelength * rng.uniform(0.6, 1.6, (count, 1))))
    phases = rng.uniform(0, 2 * np.pi, count)
    return np.cos(points @ directions.T + phases).sum(axis=1) * np.sqrt(2 / count)


def ramp(values: Floats, low: float, high: float) -> Floats:
    """Smooth step from 0 at `low` to 1 at `high` (either order)."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


def linear(srgb: Floats | list[float] | tuple[float, ...]) -> Floats:
    """sRGB colours in [0, 1] to linear reflectance."""
    srgb = np.clip(np.asarray(srgb, dtype=np.float64), 0, 1)
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def mix(first: Floats, second: Floats, share: Floats) -> Floats:
    """Colours [N, 3] between two (each [3] or [N, 3]) by `share` [N]."""
    share = np.asarray(share)[..., None]
    return first * (1 - share) + second * share
