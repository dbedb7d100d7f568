"""The mesh's z-buffer against rays through the pixels' centres, by brute force in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import ROOT
from visa.networks.body import BodyModel, BodyParams
from visa.networks.rasterizer.mesh import MeshView, view_mesh

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 30, 22
INTRINSICS = np.array([[24.0, 0, 14.3], [0, 26.0, 11.8], [0, 0, 1]])
CAMERA = np.array([[0.8, 0, 0.6, 0.1], [0, 1, 0, -0.2], [-0.6, 0, 0.8, 0.3], [0, 0, 0, 1]])


def hits(corners: Floats, pixels: Floats, intrinsics: Floats) -> tuple[Floats, Floats]:
    """Depth `[P,F]`, infinity where a ray misses, and barycentric coordinates `[P,F,3]` (Moeller and Trumbore, 1997).

    Args:
        corners: `[F,3,3]` m in the camera's axes.
        pixels: `[P,2]` x, y.
        intrinsics: `[3,3]`.
    """
    rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(intrinsics).T  # z = 1: distance along it is depth
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    across = np.cross(rays[:, None], second[None])
    determinant = (first * across).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        v = -(corners[:, 0] * across).sum(-1) / determinant
        turned = np.cross(-corners[:, 0], first)
        w = (rays[:, None] * turned).sum(-1) / determinant
        depth = (second * turned).sum(-1) / determinant
        weights = np.stack([1 - v - w, v, w], axis=-1)
        is_hit = np.isfinite(depth) & (weights >= 0).all(-1) & (depth > 0)
    return np.where(is_hit, depth, np.inf), weights


def view(vertices: Floats, faces: NDArray[np.int64], camera: Floats = CAMERA) -> MeshView:
    tensors = (torch.from_numpy(value).float()[None] for value in (INTRINSICS, camera))
    return view_mesh(torch.from_numpy(vertices).float()[None], torch.from_numpy(faces), *tensors, WIDTH, HEIGHT)


def centres(width: int, height: int) -> Floats:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], axis=-1)


def test_a_random_mesh_is_what_rays_meet() -> None:
    rng = np.random.default_rng(0)
    inside = rng.uniform([-1.2, -1.0, -0.3], [1.2, 1.0, 3.0], (60, 3)).astype(np.float32).astype(np.float64)
    inside[:6] = [[-9, -9, 2], [9, -9, 2], [0, 9, 2.5], [8, 8, 1], [9, 8, 1], [8, 9, 1]]  # one far larger, one outside
    faces = np.r_[[[0, 1, 2], [3, 4, 5]], rng.integers(6, 60, (40, 3))]
    world = ((inside - CAMERA[:3, 3]) @ CAMERA[:3, :3]).astype(np.float32).astype(np.float64)
    corners = (world @ CAMERA[:3, :3].T + CAMERA[:3, 3])[faces]
    is_behind = corners[..., 2].min(axis=1) <= 0.01
    assert 3 < is_behind.sum() < 20
    drawn = view(world, faces)

    pixels = centres(WIDTH, HEIGHT)
    depth, weights = hits(corners, pixels, INTRINSICS)
    depth[:, is_behind] = np.inf
    face = np.where(np.isinf(depth.min(axis=1)), -1, depth.argmin(axis=1))
    assert len(np.unique(face)) > 10
    assert 1 not in face
    assert np.array_equal(drawn.face[0].numpy().ravel(), face)
    np.testing.assert_allclose(drawn.depth[0].numpy().ravel(), depth.min(axis=1), rtol=1e-5)
    expected = np.where(face[:, None] < 0, 0, weights[np.arange(len(face)), face])
    np.testing.assert_allclose(drawn.corner_weights[0].numpy().reshape(-1, 3), expected, atol=1e-4)
    # The weights belong to the surface, not to the picture: they give the very point that the ray meets.
    hit = np.flatnonzero(face >= 0)
    points = np.einsum("pk,pkd->pd", drawn.corner_weights[0].numpy().reshape(-1, 3)[hit], corners[face[hit]])
    projected = points @ INTRINSICS.T
    np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], pixels[hit], atol=2e-3)


@pytest.mark.slow
def test_the_body_is_what_rays_meet() -> None:
    body = BodyModel.from_file(ROOT / "assets/body/smplx_anny.npz")
    params = BodyParams.zeros((2,), body.num_expressions)
    params.body_pose[1, 15] = torch.tensor([0.0, 0.4, -0.7])  # the second raises an arm
    params.jaw_pose[1, 0] = 0.3
    vertices, _ = body(params)
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0])).repeat(2, 1, 1)
    camera[:, 1, 3], camera[:, 2, 3] = 0.25, 1.2
    intrinsics = torch.tensor([[90.0, 0, 32], [0, 90, 32], [0, 0, 1]]).repeat(2, 1, 1)
    drawn = view_mesh(vertices, body.faces, intrinsics, camera, 64, 64)
    pixels = centres(64, 64)
    chosen = np.random.default_rng(1).permutation(len(pixels))[:150]
    for b in range(2):
        inside = vertices[b].double().numpy() @ camera[b, :3, :3].double().numpy().T + camera[b, :3, 3].double().numpy()
        depth, _ = hits(inside[body.faces.numpy()], pixels[chosen], intrinsics[b].double().numpy())
        face = np.where(np.isinf(depth.min(axis=1)), -1, depth.argmin(axis=1))
        assert (face >= 0).sum() > 20
        assert np.array_equal(drawn.face[b].numpy().ravel()[chosen], face)
        np.testing.assert_allclose(drawn.depth[b].numpy().ravel()[chosen], depth.min(axis=1), rtol=1e-5)


@pytest.mark.parametrize("shift", [(0.0, 0.0, -5.0), (50.0, 0.0, 0.0)])
def test_what_lies_behind_or_outside_leaves_the_picture_empty(shift: tuple[float, float, float]) -> None:
    triangle = np.array([[-1.0, -1, 2], [1, -1, 2], [0, 1, 2]]) + shift
    drawn = view(triangle, np.array([[0, 1, 2]]), np.eye(4))
    assert (drawn.face == -1).all()
    assert torch.isinf(drawn.depth).all()
    assert (drawn.corner_weights == 0).all()


def test_both_sides_of_a_triangle_are_drawn_and_none_without_an_area() -> None:
    triangle = np.array([[-1.0, -1, 2], [1, -1, 2], [0, 1, 2]])
    front, back = (view(triangle, np.array([order]), np.eye(4)) for order in ([0, 1, 2], [0, 2, 1]))
    assert torch.equal(front.face, back.face)
    assert (front.face == 0).any()
    assert (view(triangle, np.array([[0, 1, 1]]), np.eye(4)).face == -1).all()
