"""What the photo shows of the template, and what follows for what it does not show: hull, visibility, diffusion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from tests.networks.test_mesh import hits
from tests.reconstructors import untrained
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.networks.anatomy import Kind, Region
from visa.networks.photo import Photo
from visa.networks.photo_colour import SKIN_CHROMA, diffused
from visa.networks.projection import project
from visa.networks.rasterizer.mesh import view_mesh
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.view import View
from visa.runtime.photos import photo_of

SIZE = 64


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(False, 4, 64)


@pytest.fixture(scope="module")
def photo(clip_path: Path) -> Photo:
    return photo_of(WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([3]), 3, SIZE))


def close_up(reconstructor: GaussianReconstructor, photo: Photo, jaw: float, blink: float) -> Photo:
    """The face alone, 128 px wide, all of it foreground."""
    body = photo.body.map(torch.zeros_like)
    body.jaw_pose[:, 0] = jaw
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        body.expression[:, reconstructor.body.expression_names.index(name)] = blink
    _, joints = reconstructor.body(body)
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None]
    camera[0, :2, 3] = joints[0, 15, :2] * torch.tensor([-1.0, 1.0])
    camera[0, 1, 3] += 0.02
    camera[0, 2, 3] = 0.7
    intrinsics = torch.tensor([[[420.0, 0, 64], [0, 420, 64], [0, 0, 1]]])
    image = torch.full((1, 3, 128, 128), 0.6)
    return Photo(image, torch.ones_like(image[:, :1]), body, intrinsics, camera, photo.background)


def shown(reconstructor: GaussianReconstructor, photo: Photo) -> dict[Kind, int]:
    visible = project(reconstructor.anchors, photo).visible[0] > 0
    return {kind: int((visible & (reconstructor.anchors.kind == int(kind))).sum()) for kind in Kind}


def test_closed_lips_show_no_teeth_and_closed_lids_no_eyeballs(
    reconstructor: GaussianReconstructor, photo: Photo
) -> None:
    closed, opened = (
        shown(reconstructor, close_up(reconstructor, photo, jaw, blink)) for jaw, blink in ((0, 1), (0.3, 0))
    )
    inside = (Kind.TEETH, Kind.TONGUE, Kind.CAVITY)
    assert [closed[kind] for kind in (*inside, Kind.EYEBALL)] == [0, 0, 0, 0]
    assert opened[Kind.EYEBALL] > 20
    assert sum(opened[kind] for kind in inside) > 50
    assert min(closed[Kind.FACE], opened[Kind.FACE]) > 200


@pytest.mark.slow
def test_shown_is_what_a_ray_reaches_first(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    """Against all triangles, by brute force: 3 mm may lie before an anchor; a grazing pixel's slope is left alone."""
    face = close_up(reconstructor, photo, jaw=0.3, blink=0.0)
    projection = project(reconstructor.anchors, face)
    vertices, _ = reconstructor.body(face.body)
    camera = face.world_to_camera[0].double().numpy()
    inside = vertices[0].double().numpy() @ camera[:3, :3].T + camera[:3, 3]
    points = reconstructor.anchors.template.points(vertices)[0].double().numpy() @ camera[:3, :3].T + camera[:3, 3]
    facing = -(projection.normals[0].numpy() * points).sum(-1) / np.linalg.norm(points, axis=-1)
    in_picture = (projection.grid[0].abs() < 0.95).all(-1).numpy()
    chosen = np.random.default_rng(0).permutation(np.flatnonzero((facing > 0.5) & in_picture))[:200]
    pixels = (projection.grid[0, chosen].double().numpy() + 1) / 2 * 128
    depth, _ = hits(inside[reconstructor.body.faces.numpy()], pixels, face.intrinsics[0].double().numpy())
    before = points[chosen, 2] - depth.min(axis=1)
    visible = projection.visible[0, chosen].numpy() > 0
    assert visible[before < 1e-3].mean() > 0.97
    # Beside an outline what lies behind it is seen: hidden is what stays so for 3/8 of a pixel to every side, half of
    # the z-buffer's 3 x 3 pixels.
    triangles, camera = inside[reconstructor.body.faces.numpy()], face.intrinsics[0].double().numpy()
    hidden = np.flatnonzero(before > 0.01)
    around = [np.array([x, y]) * 3 / 8 for x in (-1, 0, 1) for y in (-1, 0, 1)]
    nearest = [hits(triangles, pixels[hidden] + step, camera)[0].min(axis=1) for step in around]
    hidden = hidden[points[chosen[hidden], 2] - np.max(nearest, axis=0) > 0.01]
    assert len(hidden) > 5
    assert not visible[hidden].any()


def test_nothing_outside_of_the_picture_or_the_matte_is_shown(
    reconstructor: GaussianReconstructor, photo: Photo
) -> None:
    projection = project(reconstructor.anchors, photo)
    x, y = ((projection.grid[0] + 1) / 2 * SIZE).unbind(-1)
    visible = projection.visible[0] > 0
    assert visible.sum() > 500
    assert ((x > 0) & (x < SIZE) & (y > 0) & (y < SIZE))[visible].all()
    read = scipy.ndimage.map_coordinates(
        photo.mask[0, 0].numpy(), [y[visible].numpy() - 0.5, x[visible].numpy() - 0.5], order=1, mode="constant"
    )
    assert read.min() > 0.8 - 1e-4
    gone = project(reconstructor.anchors, replace(photo, mask=torch.zeros_like(photo.mask)))
    assert gone.visible.sum() == 0


def test_what_projects_outside_of_the_matte_is_transparent(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    """Opacity is that of the whole matte times the matte, read by scipy; outside of the picture nothing changes."""
    matte = torch.linspace(0, 1, SIZE).expand(1, 1, SIZE, SIZE).clone()
    matte[..., 40:, :] = 0
    with torch.no_grad():
        cut, _ = reconstructor(replace(photo, mask=matte), use_heads=False)
        whole, _ = reconstructor(replace(photo, mask=torch.ones_like(matte)), use_heads=False)
    count = cut.gaussians.means.shape[1]
    x, y = cut.texture.places[0, :count].unbind(-1)
    outside = (x.abs() > 1) | (y.abs() > 1)
    assert outside.any()
    pixels = [((place + 1) / 2 * SIZE - 0.5).numpy() for place in (y, x)]
    share = scipy.ndimage.map_coordinates(matte[0, 0].numpy(), pixels, order=1, mode="nearest")
    expected = whole.gaussians.opacities[0].numpy() * np.where(outside.numpy(), 1.0, share)
    np.testing.assert_allclose(cut.gaussians.opacities[0].numpy(), expected, atol=1e-4)
    assert (cut.gaussians.opacities[0][(y > 0.3) & ~outside] == 0).all()
    assert (cut.gaussians.opacities[0][outside] > 0.8).all()


def test_the_hull_can_be_switched_off(
    reconstructor: GaussianReconstructor, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstructor.options, "use_hull", False)
    with torch.no_grad():
        avatar, _ = reconstructor(replace(photo, mask=torch.zeros_like(photo.mask)), use_heads=False)
    assert avatar.gaussians.opacities.min() > 0.8


def some_seen(reconstructor: GaussianReconstructor, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(1, len(reconstructor.anchors.kind), generator=generator) < share).float()


def test_diffused_values_are_harmonic(reconstructor: GaussianReconstructor) -> None:
    """Seen ones stand; mirrored ones stand in; the rest is the mean of its neighbours, within the seen ones' range."""
    seen = some_seen(reconstructor, 0.2)
    generator = torch.Generator().manual_seed(1)
    values = torch.rand(1, len(reconstructor.anchors.kind), 3, generator=generator) + 1
    spread = diffused(reconstructor.anchors, values, seen)
    is_seen, inner = seen[0] > 0, reconstructor.anchors.is_inner
    assert torch.equal(spread[0, is_seen], values[0, is_seen])
    assert (spread[0, ~is_seen & inner] == 0).all()  # they have colours of their own
    mirrored = ~is_seen & is_seen[reconstructor.anchors.mirror] & ~inner
    assert torch.equal(spread[0, mirrored], values[0, reconstructor.anchors.mirror][mirrored])
    rest = ~is_seen & ~is_seen[reconstructor.anchors.mirror] & ~inner
    assert rest.sum() > 1000
    assert spread[0, rest].min() >= 1
    assert spread[0, rest].max() <= 2
    residual = spread[0, rest] - spread[0, reconstructor.anchors.neighbours[rest]].mean(dim=1)
    assert residual.abs().max() < 1e-3  # Jacobi's iteration has come to rest


def test_a_constant_diffuses_to_itself(reconstructor: GaussianReconstructor) -> None:
    seen = some_seen(reconstructor, 0.01)
    values = torch.full((1, len(reconstructor.anchors.kind), 3), 0.25)
    spread = diffused(reconstructor.anchors, values * seen[..., None] + 7 * (1 - seen[..., None]), seen)
    outer = ~reconstructor.anchors.is_inner
    torch.testing.assert_close(spread[0, outer], values[0, outer])


def test_neighbours_are_the_nearest_of_the_same_part_and_region(reconstructor: GaussianReconstructor) -> None:
    points = reconstructor.anchors.template.points(reconstructor.body.v_template).double().numpy()
    label, region = reconstructor.anchors.label.numpy(), reconstructor.anchors.region.numpy()
    for anchor in np.random.default_rng(0).permutation(len(points))[:50]:
        distance = np.linalg.norm(points - points[anchor], axis=1)
        distance[(label != label[anchor]) | (region != region[anchor])] = np.inf
        distance[anchor] = np.inf
        found = distance[reconstructor.anchors.neighbours[anchor].numpy()]
        np.testing.assert_allclose(np.sort(found), np.sort(distance)[:6], atol=1e-6)


def test_hidden_teeth_take_a_colour_of_their_own(reconstructor: GaussianReconstructor, photo: Photo) -> None:
    """Twice as light a face has teeth twice as light; all of them are lighter than the mouth's inside.

    Of a grey face, as in bluer light than most skin is seen in, they are bluer.
    """
    face = close_up(reconstructor, photo, jaw=0.0, blink=1.0)
    with torch.no_grad():
        plain = face.image * 0 + torch.tensor(SKIN_CHROMA)[:, None, None]
        light, dark, blue = (
            reconstructor(replace(face, image=image), use_heads=False)[0].gaussians.colors[0]
            for image in (0.5 * plain, 0.25 * plain, 0 * plain + 0.5)
        )
    teeth, cavity = (reconstructor.anchors.kind == int(kind) for kind in (Kind.TEETH, Kind.CAVITY))
    torch.testing.assert_close(light[teeth], reconstructor.anchors.prior_color[teeth], atol=1e-3, rtol=0)
    torch.testing.assert_close(dark[teeth], light[teeth] / 2, atol=1e-3, rtol=0)
    assert bool((blue[teeth][:, 2] > 1.05 * light[teeth][:, 2]).all())
    assert light[teeth].mean() > light[cavity].mean() + 0.2  # in the shade of lips: measured on people


@pytest.mark.parametrize(("lift", "bend"), [(-1.2, 0.0), (1.0, 0.0), (0.0, 2.0), (0.6, 1.8)])
def test_arms_have_no_gaps_in_any_pose(
    reconstructor: GaussianReconstructor, photo: Photo, lift: float, bend: float
) -> None:
    """Down, up and with bent elbows (radians): alpha is whole wherever the mesh has an arm or a hand."""
    params = photo.body.map(torch.zeros_like)
    params.body_pose[0, 15, 2], params.body_pose[0, 16, 2] = lift, -lift  # shoulders
    params.body_pose[0, 17, 1], params.body_pose[0, 18, 1] = -bend, bend  # elbows
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None]
    camera[0, 1:3, 3] = torch.tensor([0.25, 2.6])
    intrinsics = torch.tensor([[[460.0, 0, 128], [0, 460, 128], [0, 0, 1]]])
    avatar = reconstructor.bare(replace(photo, body=params))
    with torch.no_grad():
        view = View(intrinsics[:, None], camera[:, None], 256, params.map(lambda value: value[:, None]))
        alpha = avatar.render(reconstructor.body, view).alpha[0, 0, 0]
        vertices, _ = reconstructor.body(params)
    face = view_mesh(vertices, reconstructor.body.faces, intrinsics, camera, 256, 256).face[0]
    is_arm = torch.isin(reconstructor.anchors.face_region[face.clamp_min(0)], torch.tensor([Region.ARMS, Region.HANDS]))
    inner = scipy.ndimage.binary_erosion((face >= 0).numpy(), np.ones((3, 3)))
    assert (inner & is_arm.numpy()).sum() > 500
    assert alpha[torch.from_numpy(inner) & is_arm].min() > 0.97
