"""The fit to the photo: what it reaches, what it may not do, and where it runs."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.reconstructors import untrained
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.networks.anatomy import Kind
from visa.networks.avatar import Avatar
from visa.networks.body import BodyParams
from visa.networks.codec import BlockCodec
from visa.networks.fit import FitOptions, _Fit, fit_avatar
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.photo_colour import colour_sources, diffused
from visa.networks.projection import project
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.runtime import conditioner
from visa.runtime.conditioner import Conditioner
from visa.runtime.photos import photo_of
from visa.runtime.shipped import build_reconstructor

SIZE = 64
SHORT = FitOptions(steps=6)


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return untrained(True, 4, 64).eval().requires_grad_(False)


def read(clip_path: Path, frame: int) -> Photo:
    return photo_of(window(clip_path, frame))


@pytest.fixture(scope="module")
def photo(clip_path: Path) -> Photo:
    return read(clip_path, 3)


@pytest.fixture(scope="module")
def start(reconstructor: GaussianReconstructor, photo: Photo) -> Avatar:
    return reconstructor(photo)[0]


@pytest.fixture(scope="module")
def fitted(reconstructor: GaussianReconstructor, start: Avatar, photo: Photo) -> Avatar:
    return fit_avatar(reconstructor, start, photo, FitOptions(steps=40))


def both(first: Photo, second: Photo) -> Photo:
    """Two photos as one batch."""
    merged = {
        f.name: torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in fields(Photo) if f.name != "body"
    }
    return Photo(**merged, body=BodyParams.cat([first.body, second.body]))


def seen_by(reconstructor: GaussianReconstructor, start: Avatar, photo: Photo) -> tuple[Tensor, Tensor, Tensor]:
    """`[1,N]` each: which of the template's Gaussians the photo shows, how they face it, whose colours may spread."""
    count, anchors = start.gaussians.means.shape[1], reconstructor.anchors
    seen, places = start.texture.seen[:, :count], start.texture.places[:, :count]
    facing = project(anchors, photo).facing
    return seen, facing, colour_sources(anchors, photo, places, start.gaussians.colors, seen, facing)


def own_pose_error(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> float:
    """Mean squared error of the splat, without the photo as texture."""
    maps = replace(avatar, texture=None).render(reconstructor.body, photo.view())
    return float((maps.rgb[:, 0] - photo.image).square().mean())


def same(first: Gaussians, second: Gaussians) -> bool:
    return all(torch.equal(value, getattr(second, name)) for name, value in vars(first).items())


def test_weights_are_what_the_gaussians_add_to_the_pictures_alpha(
    reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    weights = _Fit(reconstructor, start, photo, FitOptions())._weights()
    alpha = replace(start, texture=None).render(reconstructor.body, photo.view()).alpha
    torch.testing.assert_close(weights.sum(), alpha.sum(), rtol=1e-4, atol=0)
    assert weights.min() >= 0


def test_what_the_photo_barely_shows_keeps_its_colour(
    reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    assert start.texture is not None
    count = start.gaussians.means.shape[1]
    weights = _Fit(reconstructor, start, photo, FitOptions())._weights()[:, :count]
    barely = (start.texture.seen[:, :count] > 0) & (weights < 0.5)
    assert barely.any()
    result = fit_avatar(reconstructor, start, photo, SHORT)
    change = (result.gaussians.colors - start.gaussians.colors)[barely].abs()
    assert change.max() <= 0.1  # what its neighbours spread


def test_what_the_photo_barely_shows_does_not_grow_into_a_haze(
    reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar, photo: Photo
) -> None:
    weights = _Fit(reconstructor, start, photo, FitOptions())._weights()
    growth = (fitted.canonical().scales / start.canonical().scales).amax(dim=-1)
    assert growth[weights < 0.9].max() <= math.exp(0.4) * (1 + 1e-4)
    assert growth[weights > 1.1].max() > math.exp(0.4)


def test_a_larger_photo_pulls_the_template_as_much_as_its_pixels_push(
    reconstructor: GaussianReconstructor, photo: Photo
) -> None:
    for size, pull in ((64, 0.25), (128, 1.0)):
        one = photo.resized(size)
        fit = _Fit(reconstructor, reconstructor(one)[0], one, FitOptions())
        count, total = fit.rest.shape[1], fit.start.means.shape[1]
        assert fit._strain(torch.ones(1, total)).item() == pytest.approx(pull * count + total - count)


def test_the_splat_becomes_the_photo(
    reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar, photo: Photo
) -> None:
    before, after = (own_pose_error(reconstructor, avatar, photo) for avatar in (start, fitted))
    assert after < 0.25 * before


def test_bounds_by_part_hold(reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar) -> None:
    gaussians, first = fitted.gaussians, start.gaussians
    away = (gaussians.means - reconstructor.anchors(fitted.betas)).norm(dim=-1)[0]
    assert (away <= reconstructor.anchors.offset_bound + 1e-6).all()
    assert away[reconstructor.anchors.offset_bound > 0.1].max() > 1e-3  # skin did move
    least = torch.minimum(first.opacities[0], reconstructor.anchors.least_opacity)
    assert (gaussians.opacities[0] >= least - 1e-4).all()
    is_kept = gaussians.scales >= first.scales * (1 - 1e-5)
    assert is_kept[0, reconstructor.anchors.is_lid].all()  # they must cover shut eyes
    assert gaussians.colors.min() >= -1e-6
    assert gaussians.colors.max() <= 1 + 1e-6
    assert (gaussians.opacities[first.opacities < 1e-3] == 0).all()  # what the hull took away stays away


def test_what_the_photo_does_not_show_moves_with_what_it_shows(
    reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar, photo: Photo
) -> None:
    """Hidden colours and a face's outline change as what is seen, by 0.03 at most; inner parts keep theirs."""
    anchors = reconstructor.anchors
    change = fitted.gaussians.colors - start.gaussians.colors
    seen, _, sources = seen_by(reconstructor, start, photo)
    hidden = (seen[0] == 0) & ~anchors.is_inner
    outline = (seen[0] > 0) & (sources[0] == 0) & (anchors.kind == int(Kind.FACE))
    assert outline.sum() > 10
    spread = diffused(anchors, change.clamp(-0.03, 0.03), sources)
    torch.testing.assert_close(change[0, hidden | outline], spread[0, hidden | outline], atol=1e-3, rtol=0)
    assert change[0, hidden].abs().max() > 1e-3
    assert change[0, (seen[0] == 0) & reconstructor.anchors.is_inner].abs().max() < 1e-6


def test_a_face_that_the_photo_does_not_show_keeps_its_shape(
    reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar, photo: Photo
) -> None:
    """Nor does one at its outline move, and no skin of a face shrinks: the mouth's inside would show through."""
    anchors = reconstructor.anchors
    seen, _, sources = seen_by(reconstructor, start, photo)
    face = anchors.kind == int(Kind.FACE)
    held = face & ((seen[0] == 0) | (sources[0] == 0))
    assert 50 < held.sum() < face.sum()
    for name in ("means", "scales"):
        now, before = getattr(fitted.gaussians, name)[0], getattr(start.gaussians, name)[0]
        torch.testing.assert_close(now[held], before[held])
        assert not torch.equal(now[face & ~held], before[face & ~held])
    assert (fitted.gaussians.scales >= start.gaussians.scales * (1 - 1e-5))[0, face].all()


def test_skin_changes_its_colour_where_the_photo_sees_it_upright(
    reconstructor: GaussianReconstructor, start: Avatar, fitted: Avatar, photo: Photo
) -> None:
    """Elsewhere a change would make up for what lies beside it, and be a stain when the head turns."""
    anchors = reconstructor.anchors
    _, facing, sources = seen_by(reconstructor, start, photo)
    change = (fitted.gaussians.colors - start.gaussians.colors).abs().amax(dim=-1)
    skin = (sources > 0) & (anchors.kind == int(Kind.FACE))
    slanted, upright = skin & (facing < 0.6), skin & (facing > 0.95)
    assert min(slanted.sum(), upright.sum()) > 10
    assert change[slanted].max() < 1e-6 < 1e-3 < change[upright].max() <= 0.1 + 1e-6


def test_places_in_the_photo_follow_the_gaussians(
    reconstructor: GaussianReconstructor, fitted: Avatar, photo: Photo
) -> None:
    posed = fitted.pose(reconstructor.body, photo.body.map(lambda value: value[:, None]))
    camera = photo.world_to_camera[0].double().numpy()
    points = posed.means[0, 0].double().numpy() @ camera[:3, :3].T + camera[:3, 3]
    pixels = points @ photo.intrinsics[0].double().numpy().T
    expected = pixels[:, :2] / pixels[:, 2:] / SIZE * 2 - 1
    np.testing.assert_allclose(fitted.texture.places[0].numpy(), expected, atol=1e-4)


def test_the_same_input_gives_the_same_avatar(
    reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    first, second = (fit_avatar(reconstructor, start, photo, SHORT) for _ in range(2))
    assert same(first.canonical(), second.canonical())
    assert torch.equal(first.texture.places, second.texture.places)


def test_no_steps_give_the_avatar_back(reconstructor: GaussianReconstructor, start: Avatar, photo: Photo) -> None:
    assert fit_avatar(reconstructor, start, photo, FitOptions(steps=0)) is start


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_fits_where_gradients_are_off(
    mode: Callable[[], object], reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    expected = fit_avatar(reconstructor, start, photo, SHORT)
    with mode():
        avatar, _ = reconstructor(photo)
        inside = fit_avatar(reconstructor, avatar, photo, SHORT)
    assert same(inside.canonical(), expected.canonical())
    assert not inside.gaussians.means.requires_grad


def test_two_people_of_a_batch_are_fitted_as_each_alone(
    reconstructor: GaussianReconstructor, photo: Photo, clip_path: Path
) -> None:
    other = read(clip_path, 11)
    with torch.no_grad():
        pair, _ = reconstructor(both(photo, other))
    together = fit_avatar(reconstructor, pair, both(photo, other), SHORT)
    for index, one in enumerate((photo, other)):
        alone = fit_avatar(reconstructor, _one(pair, index), one, SHORT)
        mean = own_pose_error(reconstructor, alone, one)
        assert own_pose_error(reconstructor, _one(together, index), one) == pytest.approx(mean, rel=1e-3)
        for name, value in vars(alone.canonical()).items():
            # Adam's first steps make much of rounding where a gradient is nearly zero: few values may differ.
            near = torch.isclose(getattr(together.canonical(), name)[index], value[0], atol=1e-5, rtol=1e-4)
            assert near.float().mean() > 0.99


def _one(avatar: Avatar, index: int) -> Avatar:
    """Of a batch of avatars the one at `index`."""

    def cut(record: object) -> object:
        values = {f.name: getattr(record, f.name) for f in fields(record) if f.init and f.name != "vertex_ids"}
        values = {name: value for name, value in values.items() if value is not None}
        return replace(
            record,
            **{n: v[index : index + 1] if isinstance(v, torch.Tensor) else cut(v) for n, v in values.items()},
        )

    return cut(avatar)


def _twice(record: object) -> object:
    """A record of one person as a batch of two."""
    values = {f.name: getattr(record, f.name) for f in fields(record) if f.init and f.name != "vertex_ids"}
    values = {name: value for name, value in values.items() if value is not None}
    return replace(
        record, **{n: torch.cat([v, v]) if isinstance(v, torch.Tensor) else _twice(v) for n, v in values.items()}
    )


@pytest.mark.parametrize("options", [{"offset_rate": 1e3, "color_rate": 1e3, "scale_rate": 5.0}, {"scale_rate": 1e30}])
def test_a_fit_that_diverges_leaves_the_start(
    options: dict[str, float], reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    with pytest.warns(UserWarning, match="diverged for 1 of 1 avatars.*lower the rates"):
        kept = fit_avatar(reconstructor, start, photo, FitOptions(steps=5, **options))
    assert same(kept.canonical(), start.canonical())
    torch.testing.assert_close(kept.texture.places, start.texture.places, atol=1e-5, rtol=0)


def test_a_photo_that_is_no_number_spoils_its_own_person_only(
    reconstructor: GaussianReconstructor, start: Avatar, photo: Photo
) -> None:
    pair = _twice(start)
    broken = replace(photo, image=torch.full_like(photo.image, float("nan")))
    with pytest.warns(UserWarning, match="diverged for 1 of 2 avatars"):
        result = fit_avatar(reconstructor, pair, both(broken, photo), SHORT)
    assert torch.equal(result.gaussians.colors[0], start.gaussians.colors[0])
    assert not torch.equal(result.gaussians.colors[1], start.gaussians.colors[0])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps of every fit that a conditioner asks for; none is run."""
    steps: list[int] = []

    def fit(_: GaussianReconstructor, avatar: Avatar, __: Photo, options: FitOptions, further: list[Photo]) -> Avatar:
        assert further == []
        steps.append(options.steps)
        return avatar

    monkeypatch.setattr(conditioner, "fit_avatar", fit)
    return steps


def window(clip_path: Path, number: int) -> VideoBatch:
    return WindowReader((0.5, 0.5, 0.5)).read(Clip(clip_path), np.asarray([number]), number, SIZE)


def test_a_conditioner_fits_once_for_one_photo(
    reconstructor: GaussianReconstructor, clip_path: Path, counted: list[int]
) -> None:
    conditioner = Conditioner(reconstructor, BlockCodec(), FitOptions(steps=7)).eval()
    batch = window(clip_path, 3)
    first, semantic = conditioner.reconstruct(batch)
    again, same_semantic = conditioner.reconstruct(window(clip_path, 3))  # the same photo, read anew
    assert again is first
    assert same_semantic is semantic
    assert counted == [7]
    other = replace(batch, reference_body=batch.reference_body.map(torch.clone))
    other.reference_body.jaw_pose[:, 0] += 0.1  # the same pixels, another track
    assert conditioner.reconstruct(other)[0] is not first
    assert counted == [7, 7]


def test_a_conditioner_in_training_does_not_fit(
    reconstructor: GaussianReconstructor, clip_path: Path, start: Avatar, counted: list[int]
) -> None:
    batch = window(clip_path, 3)
    conditioner = Conditioner(reconstructor, BlockCodec(), FitOptions(steps=7)).train()
    assert same(conditioner.reconstruct(batch)[0].canonical(), start.canonical())
    unfitted = Conditioner(reconstructor, BlockCodec(), FitOptions(steps=0)).eval()
    assert same(unfitted.reconstruct(batch)[0].canonical(), start.canonical())
    assert counted == []


def test_an_avatar_first_posed_in_inference_mode_is_fitted(clip_path: Path) -> None:
    """What posing keeps for later must be no tensor of inference mode: the fit needs gradients through it."""
    torch.manual_seed(0)
    fresh = build_reconstructor(
        str(ROOT / "assets/body/smplx_anny.npz"), True, 4, ReconstructorOptions(num_clusters=64)
    )
    with torch.inference_mode():
        photo = read(clip_path, 3)
        avatar, _ = fresh(photo)
        fitted = fit_avatar(fresh, avatar, photo, FitOptions(steps=2))
    assert not torch.equal(fitted.gaussians.colors, avatar.gaussians.colors)
