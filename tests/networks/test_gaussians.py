"""The avatar's record: skinning of a small change, Gaussians put back, copies, and the matte of its texture."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.lightning_modules.test_reconstruction import walls
from visa.networks.anatomy import read_anatomy
from visa.networks.avatar import Avatar, Loose, Surface
from visa.networks.body import BodyModel, BodyParams
from visa.networks.compositing import splat
from visa.networks.gaussians import Gaussians
from visa.networks.records import copied
from visa.networks.texture import Texture
from visa.networks.view import Camera

SIZE = 64
MIDDLE = slice(8, SIZE - 8)


def random_gaussians(means: Tensor, generator: torch.Generator) -> Gaussians:
    def rand(channels: int) -> Tensor:
        return torch.rand(*means.shape[:-1], channels, generator=generator)

    quats = torch.nn.functional.normalize(rand(4) - 0.5, dim=-1)
    return Gaussians(means, quats, 0.01 * rand(3), rand(1)[..., 0], rand(3), rand(5))


@pytest.fixture
def avatar(body: BodyModel) -> Avatar:
    """Two people of 200 Gaussians on the template and 30 loose ones."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randperm(len(body.v_template), generator=generator)[:200]
    on_template = random_gaussians(body.v_template[ids].expand(2, -1, -1).contiguous(), generator)
    beside = random_gaussians(body.v_template[ids[:30]].expand(2, -1, -1) + 0.05, generator)
    weights = torch.softmax(3 * torch.randn(2, 30, 55, generator=generator), dim=-1)
    betas = torch.randn(2, 10, generator=generator)
    return Avatar(on_template, betas, ids, torch.zeros(2, 3), loose=Loose(beside, weights))


@pytest.mark.parametrize("has_loose", [True, False])
def test_the_linear_part_is_how_posing_moves_a_change(body: BodyModel, avatar: Avatar, has_loose: bool) -> None:
    """Against differences of `pose`, which is linear in the means: a step of 1 m is exact but for rounding."""
    avatar = avatar if has_loose else replace(avatar, loose=None)
    generator = torch.Generator().manual_seed(1)
    params = BodyParams.zeros((2, 3), body.num_expressions).map(
        lambda value: 0.3 * torch.randn(value.shape, generator=generator)
    )
    linear = avatar.linear_part(body, params)
    canonical = avatar.canonical()
    before = avatar.pose(body, params).means
    for axis in range(3):
        step = torch.eye(3)[axis]
        moved = avatar.with_canonical(replace(canonical, means=canonical.means + step)).pose(body, params).means
        torch.testing.assert_close(linear[..., axis], moved - before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [(), ("loose",), ("surface",), ("loose", "surface")])
def test_the_kernel_moves_gaussians_as_the_tensors_do(body: BodyModel, avatar: Avatar, parts: tuple[str, ...]) -> None:
    """Two people in three poses each, their own weights and triangles, a chunk that is not full."""
    generator = torch.Generator().manual_seed(2)
    corners = torch.randint(200, (2, 40, 3), generator=generator)
    shares = torch.softmax(torch.randn(2, 40, 3, generator=generator), dim=-1)
    on_triangles = Surface(random_gaussians(torch.randn(2, 40, 3, generator=generator), generator), corners, shares)
    avatar = replace(avatar, loose=avatar.loose if "loose" in parts else None)
    avatar = replace(avatar, surface=on_triangles if "surface" in parts else None)
    params = BodyParams.zeros((2, 3), body.num_expressions).map(
        lambda value: torch.randn(value.shape, generator=generator)
    )
    carrier, canonical = avatar._carrier(body), avatar.canonical()
    motion = carrier.model.motion(params)
    means, quats = carrier.moved(canonical, *motion)
    expected_means, expected_quats = carrier.moved_by_tensors(canonical, *motion)
    assert means.shape == (2, 3, 200 + 30 * ("loose" in parts) + 40 * ("surface" in parts), 3)
    torch.testing.assert_close(means, expected_means, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(quats, expected_quats, atol=1e-5, rtol=1e-5)


def test_gaussians_are_put_back_as_they_were_taken(avatar: Avatar) -> None:
    canonical = avatar.canonical()
    assert canonical.means.shape == (2, 230, 3)
    again = avatar.with_canonical(canonical)
    for name, value in vars(avatar.gaussians).items():
        assert torch.equal(getattr(again.gaussians, name), value)
        assert torch.equal(getattr(again.loose.gaussians, name), getattr(avatar.loose.gaussians, name))
    assert again.loose.skin_weights is avatar.loose.skin_weights
    alone = replace(avatar, loose=None)
    assert alone.with_canonical(alone.canonical()).loose is None


def test_a_copy_shares_nothing_and_has_no_history(avatar: Avatar) -> None:
    tracked = replace(avatar, gaussians=replace(avatar.gaussians, means=avatar.gaussians.means.requires_grad_() * 1))
    twin = copied(tracked)
    assert not twin.gaussians.means.requires_grad
    assert twin.texture is None
    twin.gaussians.means.zero_()
    twin.loose.skin_weights.zero_()
    assert tracked.gaussians.means.abs().max() > 0
    assert tracked.loose.skin_weights.sum() > 0
    with torch.inference_mode():
        made = replace(avatar, betas=avatar.betas + 1)
    assert made.betas.is_inference()
    assert not copied(made).betas.is_inference()


def wall_before_the_camera(mask: Tensor, shift: float, opacity: float, seen: float) -> tuple[Gaussians, Texture]:
    """A white wall 2 m away whose Gaussians lie `shift` px farther right in the photo, black where `mask` is 1."""
    posed = walls([2.0], 0.03, opacity)
    posed = replace(posed, colors=torch.ones_like(posed.colors))
    means = posed.means[:, 0]
    ones = torch.ones(means.shape[:-1])
    places = means[..., :2] + torch.tensor([2 * shift / SIZE, 0.0])
    photo = (1 - mask).expand(1, 3, SIZE, SIZE) * 0.4  # matted over a background of 0.4
    return posed, Texture(photo, mask[None, None], places, seen * ones, ones, ones * 0, mask[None, None] * 0)


def drawn(posed: Gaussians, texture: Texture) -> object:
    intrinsics = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])[None, None]
    return splat(posed, Camera(intrinsics, torch.eye(4)[None, None], SIZE), torch.full((1, 3), 0.4), texture)


@pytest.mark.parametrize("opacity", [0.9, 0.15])
def test_where_the_flow_leads_out_of_the_matte_the_background_stands(opacity: float) -> None:
    """The photo's person ends at column 40; seen 6 px to the left, he ends at 34, however sheer the Gaussians are."""
    column = torch.arange(SIZE).expand(SIZE, SIZE)
    maps = drawn(*wall_before_the_camera((column < 40).float(), 6.0, opacity, 1.0))
    alpha = maps.alpha[0, 0, 0, MIDDLE, MIDDLE]
    assert alpha.min() > 0.2
    assert alpha.max() > 0.9 if opacity == 0.9 else alpha.max() < 0.7
    inside, outside = (slice(8, 33), slice(36, SIZE - 8))
    assert maps.textured[..., MIDDLE, inside].abs().max() < 1e-3  # the photo's black
    assert (maps.coverage[..., MIDDLE, inside] - 1).abs().max() < 1e-3
    assert (maps.textured[..., MIDDLE, outside] - 0.4).abs().max() < 1e-3
    assert maps.coverage[..., MIDDLE, outside].abs().max() < 1e-3


@pytest.mark.parametrize(("density", "share"), [(1.0, 1.0), (0.7, 1.0), (0.425, 0.5), (0.2, 0.0)])
def test_what_the_photo_saw_at_a_slant_is_the_splat(density: float, share: float) -> None:
    """A wall that the photo saw turned away, so that its width there is `density` times that of now."""
    posed, texture = wall_before_the_camera(torch.ones(SIZE, SIZE), 0.0, 0.9, 1.0)
    turned = replace(texture, places=texture.places * torch.tensor([density, 1.0]))
    found = drawn(posed, turned).photo_share[..., MIDDLE, MIDDLE]
    assert (found - share).abs().max() < 0.03


def test_coverage_is_alpha_where_the_photo_shows_nothing() -> None:
    maps = drawn(*wall_before_the_camera(torch.zeros(SIZE, SIZE), 0.0, 0.15, 0.0))
    assert torch.equal(maps.coverage, maps.alpha)
    assert torch.equal(maps.textured, maps.rgb)
    assert maps.photo_share.max() == 0


def test_a_soft_matte_is_a_soft_coverage() -> None:
    ramp = torch.linspace(0, 1, SIZE).expand(SIZE, SIZE)
    maps = drawn(*wall_before_the_camera(ramp, 0.0, 0.9, 1.0))
    torch.testing.assert_close(maps.coverage[0, 0, 0, MIDDLE, MIDDLE], ramp[MIDDLE, MIDDLE], atol=1e-3, rtol=0)


def test_lids_grow_by_the_square_of_their_edges_stretch(body: BodyModel) -> None:
    """On the body's own vertices, against its mesh in numpy; skin elsewhere keeps its size."""
    anatomy = read_anatomy(body)
    rest = body.v_template[None]
    sizes, count = torch.full_like(rest, 0.002), len(body.v_template)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4)
    gaussians = Gaussians(rest, quats, sizes, rest[..., 0], rest, rest[..., :0])
    avatar = Avatar(gaussians, torch.zeros(1, 10), torch.arange(count), torch.zeros(1, 3))
    params = BodyParams.zeros((1, 1), body.num_expressions)
    assert torch.equal(avatar.pose(body, params).scales[:, 0], sizes)
    params.expression[..., body.expression_names.index("eyeBlinkLeft")] = 1
    posed = avatar.pose(body, params)
    edges = np.unique(np.sort(body.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).numpy(), axis=1), axis=0)
    total = np.zeros((2, count))
    for row, points in zip(total, (rest[0].numpy(), posed.means[0, 0].numpy()), strict=True):
        length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
        np.add.at(row, edges[:, 0], length)
        np.add.at(row, edges[:, 1], length)
    lids = anatomy.is_lid.numpy()
    expected = np.clip((total[1] / total[0])[lids] ** 2, 1, 4)
    assert expected.max() > 1.5
    np.testing.assert_allclose(posed.scales[0, 0, lids, 0].numpy() / 0.002, expected, rtol=1e-3)
    assert (posed.scales[0, 0, ~lids] == 0.002).all()
