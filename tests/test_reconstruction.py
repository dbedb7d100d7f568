"""The avatar: posing against the body model's own skinning, and what the untrained network already gives."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from datamodules.clip import Clip
from datamodules.template import build_template
from datamodules.video import WindowReader
from lightning_modules.stage import build_reconstructor
from networks.body import BodyModel, BodyParams
from networks.conditioner import photo_of
from networks.gaussians import Avatar, Gaussians, matrix_to_quaternion, quaternion_multiply
from networks.reconstructor import GaussianReconstructor
from tests.conftest import ROOT

BODY = ROOT / "assets/body/smplx_anny.npz"


def random_params(body: BodyModel, frames: int) -> BodyParams:
    generator = torch.Generator().manual_seed(0)
    return BodyParams.zeros((1, frames), body.num_expressions).map(
        lambda value: 0.3 * torch.randn(value.shape, generator=generator)
    )


def test_matrix_to_quaternion_agrees_with_scipy() -> None:
    rotations = Rotation.random(200, random_state=0)
    ours = matrix_to_quaternion(torch.from_numpy(rotations.as_matrix()))
    theirs = torch.from_numpy(rotations.as_quat()[:, [3, 0, 1, 2]])
    assert torch.allclose((ours * theirs).sum(-1).abs(), torch.ones(200, dtype=torch.float64))


def test_quaternion_product_agrees_with_scipy() -> None:
    a, b = Rotation.random(50, random_state=1), Rotation.random(50, random_state=2)
    product = quaternion_multiply(
        torch.from_numpy(a.as_quat()[:, [3, 0, 1, 2]]), torch.from_numpy(b.as_quat()[:, [3, 0, 1, 2]])
    )
    expected = torch.from_numpy((a * b).as_quat()[:, [3, 0, 1, 2]])
    assert torch.allclose((product * expected).sum(-1).abs(), torch.ones(50, dtype=torch.float64))


def test_gaussians_on_vertices_move_as_the_body_model_moves_vertices() -> None:
    body = BodyModel.from_file(BODY)
    ids = build_template(body).vertex_ids[::17]
    params = random_params(body, 3)
    betas = params.betas[:, 0]
    params.betas = betas[:, None].expand(1, 3, -1)
    rest = body.rest_vertices(betas, torch.zeros(1, body.num_expressions), ids)
    quats = torch.zeros(1, len(ids), 4)
    quats[..., 0] = 1
    gaussians = Gaussians(rest, quats, rest, rest[..., 0], rest, rest[..., :0])
    posed = Avatar(gaussians, betas, ids, torch.zeros(1, 3)).pose(body, params)
    vertices, _ = body(params, ids)
    assert torch.allclose(posed.means, vertices, atol=1e-5)
    assert torch.allclose(posed.quats.norm(dim=-1), torch.ones(()), atol=1e-5)


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    torch.manual_seed(0)
    return build_reconstructor(str(BODY), remove_neck=True, feature_channels=16)


def test_the_untrained_avatar_has_the_photo_s_colours(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    with torch.no_grad():
        avatar, tokens = reconstructor(photo_of(batch))
        projection = reconstructor.project(photo_of(batch))
    seen = projection.visible[0] > 0
    assert 0.1 < seen.float().mean() < 0.6  # a front view shows less than half of the surface
    grid = projection.grid[:, seen][:, :, None]
    photo = torch.nn.functional.grid_sample(batch.reference, grid, align_corners=False)[0, :, :, 0].T
    assert torch.allclose(avatar.gaussians.colors[0, seen], photo, atol=1e-5)
    assert tokens.shape == (1, 64, 128)
    assert torch.isfinite(avatar.gaussians.colors).all()


def test_visible_anchors_face_the_camera(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    projection = reconstructor.project(photo_of(batch))
    assert (projection.normals[0, projection.visible[0] > 0, 2] < 0).float().mean() > 0.95


def test_every_parameter_gets_a_gradient(reconstructor: GaussianReconstructor, clip_path: object) -> None:
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.arange(2), 3, 64)
    torch.nn.init.normal_(reconstructor.heads.weight, std=1e-2)  # zero heads pass nothing on
    avatar, tokens = reconstructor(photo_of(batch))
    maps = avatar.render(reconstructor.body, batch.body, batch.intrinsics, batch.world_to_camera, 64)
    (maps.rgb.square().sum() + maps.features.square().sum() + tokens.square().sum()).backward()
    missing = [name for name, p in reconstructor.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []
    reconstructor.zero_grad()
