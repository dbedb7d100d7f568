"""Surface Gaussians: where the photo shows the template, carried by its triangles, as dense as the photo is large."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.reconstructors import shipped, untrained
from visa.benchmarks.export import draw_file
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.networks.avatar import Avatar
from visa.networks.avatar_batch import stack_avatars
from visa.networks.body import BodyModel, BodyParams
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.surface import cell_size
from visa.networks.view import View
from visa.runtime.avatar_files import load_avatar, save_avatar
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BODY
from visa.tools.export_avatar import export, read_photo

SIZE = 192


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(True, 4, 64).eval().requires_grad_(False)


def read(clip_path: Path, size: int) -> Photo:
    photo = photo_of(WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, size))
    photo.body.expression[:, 5] = 0.6  # no neutral face: what expressions add is taken back
    return photo


@pytest.fixture(scope="module")
def photo(clip_path: Path) -> Photo:
    return read(clip_path, SIZE)


@pytest.fixture(scope="module")
def avatar(reconstructor: GaussianReconstructor, photo: Photo) -> Avatar:
    return reconstructor(photo)[0]


def in_photo(avatar: Avatar, reconstructor: GaussianReconstructor, photo: Photo) -> Gaussians:
    """The surface Gaussians as the photo shows them, `[B,S,...]`."""
    posed = avatar.pose(reconstructor.body, photo.body.map(lambda value: value[:, None]))
    count = avatar.surface.gaussians.means.shape[1]
    return Gaussians(**{f.name: getattr(posed, f.name)[:, 0, -count:] for f in fields(Gaussians)})


def test_surface_gaussians_move_as_the_barycentric_mean_of_their_corners(
    reconstructor: GaussianReconstructor, photo: Photo, avatar: Avatar
) -> None:
    """Against the body's own vertices in float64, with lids shut, the mouth open, the head turned and a hand raised."""
    surface, body = avatar.surface, BodyModel.from_file(ROOT / BODY).double()
    corners = avatar.vertex_ids[surface.corners[0]]  # [S,3] vertices
    weights = surface.corner_weights[0].double()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[:, 0]), atol=1e-5, rtol=0)
    moved = photo.body.map(torch.clone)
    moved.body_pose[:, 14] += torch.tensor([0.1, 0.5, 0.0])
    moved.body_pose[:, 17] += torch.tensor([0.0, 0.0, 0.5])
    moved.jaw_pose[:, 0] += 0.2
    moved.expression[:, :20] += 0.5
    for params in (photo.body, moved):
        vertices, _ = body(params.map(Tensor.double))
        expected = (vertices[0, corners] * weights[..., None]).sum(dim=1)
        found = avatar.pose(reconstructor.body, params.map(lambda value: value[:, None])).means[0, 0, -len(corners) :]
        away = (found - expected).norm(dim=-1)
        # Blending transforms and blending what they give differ, within a triangle, by tenths of a millimetre.
        assert away.median() < 2e-5
        assert away.max() < 1e-3
    assert (expected - (body(photo.body.map(Tensor.double))[0][0, corners] * weights[..., None]).sum(1)).norm(
        dim=-1
    ).max() > 0.02


def test_points_on_a_corner_move_exactly_as_the_corner(reconstructor: GaussianReconstructor, avatar: Avatar) -> None:
    body, surface = reconstructor.body, avatar.surface
    params = replace(random_params(body), betas=avatar.betas[:, None])
    on_corner = torch.zeros_like(surface.corner_weights)
    on_corner[..., 0] = 1
    rows = surface.corners[0, :, 0]
    means = avatar.gaussians.means[:, rows]
    carried = replace(surface, gaussians=replace(surface.gaussians, means=means), corner_weights=on_corner)
    posed = replace(avatar, surface=carried).pose(body, params)
    template = avatar.gaussians.means.shape[1]
    torch.testing.assert_close(posed.means[0, 0, -len(rows) :], posed.means[0, 0, :template][rows], atol=1e-6, rtol=0)


def random_params(body: BodyModel) -> BodyParams:
    generator = torch.Generator().manual_seed(0)
    zeros = BodyParams.zeros((1, 1), body.num_expressions)
    return zeros.map(lambda value: 0.3 * torch.randn(value.shape, generator=generator))


def test_in_the_photo_each_lies_in_the_middle_of_its_cell_flat_on_the_surface(
    reconstructor: GaussianReconstructor, photo: Photo, avatar: Avatar
) -> None:
    posed = in_photo(avatar, reconstructor, photo)
    places = photo.places(posed.means)[0]
    cells = (places + 1) / 2 * (SIZE / 2) - 0.5
    torch.testing.assert_close(cells, cells.round(), atol=2e-2, rtol=0)
    assert len(torch.unique(cells.round(), dim=0)) == len(cells)  # one each
    torch.testing.assert_close(avatar.texture.places[0, -len(cells) :], places, atol=1e-4, rtol=0)
    column, row = cells.round().long().unbind(-1)
    expected = torch.nn.functional.avg_pool2d(photo.image, 2)[0][:, row, column].T
    torch.testing.assert_close(posed.colors[0], expected, atol=1e-4, rtol=0)
    # Thin along the triangle's normal, and in the picture about as wide as the cell.
    triangle = avatar.vertex_ids[avatar.surface.corners[0]]
    a, b, c = reconstructor.body(photo.body)[0][0, triangle].unbind(1)
    normal = torch.nn.functional.normalize(torch.cross(b - a, c - a, dim=-1), dim=-1)
    w, x, y, z = posed.quats[0].unbind(-1)
    axis = torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=-1)
    assert (axis * normal).sum(-1).median() > 0.9999
    scales = posed.scales[0]
    assert bool((scales[:, 2] < 0.25 * scales[:, 0]).all())
    assert bool((scales[:, 0] <= scales[:, 1] * 1.0001).all())


@pytest.mark.slow
def test_density_follows_the_size_of_the_photo(reconstructor: GaussianReconstructor, clip_path: Path) -> None:
    counts = {}
    for size in (128, SIZE, 256, 384):
        avatar, _ = reconstructor(read(clip_path, size))
        counts[size] = 0 if avatar.surface is None else avatar.surface.gaussians.means.shape[1]
        assert avatar.texture.seen.shape[1] == avatar.canonical().means.shape[1]
    assert 0 < counts[128] < counts[SIZE] / 2  # where the template is not as dense
    assert counts[384] / counts[SIZE] == pytest.approx(4, rel=0.05)
    assert counts[256] / counts[SIZE] == pytest.approx(16 / 9, rel=0.05)
    assert [cell_size(size, None) for size in (64, 128, 129, 512)] == [1.5, 1.5, 2, 2]
    assert cell_size(64, 1.0) == 1
    assert cell_size(512, 0.0) == 0
    with pytest.raises(ValueError, match=r"^pixels_per_gaussian is -1"):
        cell_size(64, -1)


def test_a_small_photo_has_them_where_the_template_is_sparse(
    reconstructor: GaussianReconstructor, clip_path: Path
) -> None:
    photo = read(clip_path, 128)
    avatar, _ = reconstructor(photo)
    triangle = avatar.vertex_ids[avatar.surface.corners[0]]
    pixels = 64 * photo.places(reconstructor.body(photo.body)[0])[0, triangle].double().numpy()  # [S,3,2]
    area = abs(np.linalg.det(pixels[:, 1:] - pixels[:, :1])) / 2
    cell = 128 / round(128 / 1.5)
    assert area.min() >= 0.999 * (1.5 * cell) ** 2 / 2  # right-angled, with legs of one and a half cells


def test_saved_loaded_and_stacked_surfaces_are_the_same(
    reconstructor: GaussianReconstructor, photo: Photo, avatar: Avatar, tmp_path: Path
) -> None:
    body = reconstructor.body
    again = load_avatar(save_avatar(tmp_path / "a.safetensors", avatar, body, "body.npz"), body)
    for name in ("corners", "corner_weights"):
        assert torch.equal(getattr(again.surface, name), getattr(avatar.surface, name))
    back = avatar.with_canonical(avatar.canonical())
    for f in fields(Gaussians):
        assert torch.equal(getattr(again.surface.gaussians, f.name), getattr(avatar.surface.gaussians, f.name))
        assert torch.equal(getattr(back.surface.gaussians, f.name), getattr(avatar.surface.gaussians, f.name))
    broken = replace(avatar, surface=replace(avatar.surface, corners=avatar.surface.corners + 10**6))
    with pytest.raises(ValueError, match=r"surface\.corners does not fit"):
        load_avatar(save_avatar(tmp_path / "b.safetensors", broken, body, "body.npz"), body)
    reconstructor.options.pixels_per_gaussian = 0.0
    coarse, _ = reconstructor(photo)
    reconstructor.options.pixels_per_gaussian = None
    view = photo.view()
    alone = [one.render(body, view).textured for one in (coarse, avatar)]
    cameras = (torch.cat([value, value]) for value in (view.intrinsics, view.world_to_camera))
    two = View(*cameras, SIZE, view.body.map(lambda value: torch.cat([value, value])))
    both = stack_avatars([coarse, avatar]).render(body, two).textured
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_an_exported_file_is_as_sharp_as_its_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The astronaut's files, drawn by the reference renderer, with and without surface Gaussians."""
    monkeypatch.chdir(ROOT)
    photo, reconstructor = read_photo("assets/photos/astronaut.png", BODY, SIZE), shipped()
    fidelity = {}
    for pixels in (0.0, None):
        reconstructor.options.pixels_per_gaussian = pixels
        with torch.no_grad():
            start, _ = reconstructor(photo)
        avatar = fit_avatar(reconstructor, start, photo, FitOptions(steps=40))
        for suffix in ("ply", "spz"):
            path = export(avatar, reconstructor.body, photo, tmp_path / f"a.{suffix}", "photo", "body.npz")
            fidelity[suffix, pixels] = float(psnr(draw_file(path, photo), photo.image))
    for suffix in ("ply", "spz"):
        assert fidelity[suffix, None] > 33  # dB
        assert fidelity[suffix, None] > fidelity[suffix, 0.0] + 3


def test_who_has_fewer_in_a_batch_gets_transparent_ones(reconstructor: GaussianReconstructor, clip_path: Path) -> None:
    """Beside somebody whom the photo shows, somebody whom it does not show at all."""
    photo = read(clip_path, 128)
    nobody = replace(photo, mask=photo.mask * 0)
    both = replace(
        photo,
        body=photo.body.map(lambda value: torch.cat([value, value])),
        **{
            name: torch.cat([getattr(one, name) for one in (photo, nobody)])
            for name in ("image", "mask", "intrinsics", "world_to_camera", "background")
        },
    )
    avatar, _ = reconstructor(both)
    opacities, means = avatar.surface.gaussians.opacities, avatar.surface.gaussians.means
    assert float(opacities[0].max()) > 0.9
    assert float(opacities[1].max()) == 0
    assert bool(means.isfinite().all())
