"""Pictures larger than the splat, against maps drawn at that size and against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from tests.reconstructors import shipped
from visa.benchmarks import output_size
from visa.datamodules.clip import Clip
from visa.datamodules.retarget import retarget
from visa.datamodules.video import PredictInput, VideoDataModule
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.networks.composition import composed_by_tensors
from visa.networks.detail import enlarged, geometry_size, painted_at, with_detail
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import Layers, SplatMaps
from visa.networks.texture import Detail
from visa.runtime.photos import at_geometry, fine_photos, photo_of
from visa.runtime.shipped import BACKGROUND, BODY

SMALL, LARGE = 32, 128
CLIP = "assets/clips/webcam_man.mp4"


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def reconstructor() -> GaussianReconstructor:
    return shipped()


def still_maps(share: float, motion: float = 0.0) -> SplatMaps:
    """Maps of one frame that read a photo everywhere, moved by so many photo widths."""
    ones = torch.ones(1, 1, 1, SMALL, SMALL)
    moved = torch.cat([2 * motion * ones, 0 * ones], dim=2)[:, :, None]
    layers = Layers(moved * 0.5, ones[:, :, None] * 0.5, ones[:, :, None] * share)
    grey = ones.expand(-1, -1, 3, -1, -1) * 0.5
    return SplatMaps(grey, ones, grey[:, :, :0], grey, ones * share, ones, layers)


def noise_detail() -> Detail:
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 1, 3, LARGE, LARGE, generator=generator)
    return Detail(photo, torch.ones(1, 1, 1, LARGE, LARGE))


def test_the_photo_is_read_at_its_own_resolution() -> None:
    detail = noise_detail()
    picture = enlarged(still_maps(1.0), detail, LARGE)
    torch.testing.assert_close(picture.textured[0, 0], detail.photo[0, 0], atol=1e-5, rtol=0)
    half = enlarged(still_maps(0.5), detail, LARGE)
    torch.testing.assert_close(half.textured[0, 0], detail.photo[0, 0] / 2 + 0.25, atol=1e-5, rtol=0)
    assert half.photo_share.mean() == pytest.approx(0.5)


def test_motion_of_whole_pixels_moves_the_photo_by_them() -> None:
    detail = noise_detail()
    picture = enlarged(still_maps(1.0, motion=8 / LARGE), detail, LARGE)
    torch.testing.assert_close(picture.textured[0, 0, :, :, :-8], detail.photo[0, 0, :, :, 8:], atol=1e-5, rtol=0)


def test_painting_changes_the_large_picture_by_its_own_change() -> None:
    detail, maps = noise_detail(), still_maps(1.0)
    painted = maps.textured + 0.125
    picture = painted_at(maps, painted - maps.textured, detail, LARGE)
    torch.testing.assert_close(picture[0, 0], detail.photo[0, 0] + 0.125, atol=1e-5, rtol=0)
    untouched = painted_at(maps, torch.zeros_like(painted), detail, LARGE)
    torch.testing.assert_close(untouched, enlarged(maps, detail, LARGE).textured)


def test_geometry_has_half_the_size_of_the_picture() -> None:
    assert [geometry_size(size) for size in (64, 128, 200, 256, 384, 512)] == [64, 128, 128, 128, 192, 256]


def test_a_photo_of_another_size_shows_the_same_places() -> None:
    clip = Clip("assets/photos/astronaut.png").load()
    first, numbers = clip.reference_frame(), np.zeros(1, dtype=np.int64)
    photo, small = (photo_of(WindowReader(BACKGROUND).read(clip, numbers, first, size)) for size in (128, 64))
    resized, points = photo.resized(64), torch.randn(1, 50, 3)
    torch.testing.assert_close(resized.intrinsics, small.intrinsics)
    torch.testing.assert_close(resized.places(points), photo.places(points))
    torch.testing.assert_close(photo.view().resized(64).places(points), photo.view().places(points))
    assert float((resized.image - small.image).abs().mean()) < 2 / 255
    assert photo.resized(128) is photo


def test_photos_are_made_at_the_size_of_geometry() -> None:
    track = str(Path(CLIP).with_suffix(".track.npz"))
    batch = retarget(["assets/photos/astronaut.png"] * 2, track, WindowReader(BACKGROUND), 64, 2, BODY, fine=384)
    made = at_geometry(batch)
    for one, other in zip([made, *made.further], [batch, *batch.further], strict=True):
        assert (one.reference.shape[-1], one.reference_mask.shape[-1]) == (192, 192)
        torch.testing.assert_close(one.reference_intrinsics[:, :2], 3 * other.reference_intrinsics[:, :2])
    assert float((F.avg_pool2d(made.reference, 3) - batch.reference).abs().mean()) < 4 / 255


def test_maps_without_a_texture_are_refused() -> None:
    with pytest.raises(ValueError, match="without a texture"):
        enlarged(replace(still_maps(1.0), layers=None), noise_detail(), LARGE)


@pytest.mark.parametrize("size", [LARGE, 100, SMALL])
@pytest.mark.parametrize("has_pattern", [False, True])
def test_the_kernel_composes_as_tensors_do(size: int, has_pattern: bool) -> None:
    """Two people of two photos each, random motion that leads out of the photos, weights and shares down to zero."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    def layers(count: int) -> Layers:
        weight, share = ((drawn(2, 3, count, 1, SMALL, SMALL) - 0.3).clamp_min(0) for _ in range(2))
        return Layers((2 * drawn(2, 3, count, 2, SMALL, SMALL) - 1) * weight, weight, share / count)

    rgb, alpha = drawn(2, 3, 3, SMALL, SMALL), drawn(2, 3, 1, SMALL, SMALL)
    maps = SplatMaps(rgb, alpha, rgb[:, :, :0], rgb, alpha, alpha, layers(2), layers(1) if has_pattern else None)
    detail = Detail(drawn(2, 2, 3, 90, 90), drawn(2, 2, 1, 90, 90), drawn(2, 3, 180, 178) if has_pattern else None)
    assert maps.layers is not None
    found = enlarged(maps, detail, size)
    expected = composed_by_tensors(maps.rgb, maps.alpha, maps.layers, maps.pattern, detail, size)
    for name in vars(expected):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-3, rtol=0
        )  # a grey level is 4e-3


def test_gradients_flow_through_tensors() -> None:
    maps = still_maps(1.0)
    painted = maps.rgb.clone().requires_grad_()
    enlarged(replace(maps, rgb=painted, layers=still_maps(0.5).layers), noise_detail(), LARGE).textured.sum().backward()
    assert painted.grad is not None
    assert float(painted.grad.abs().sum()) > 0


@pytest.mark.slow
def test_composing_is_sharper_than_enlarging_the_picture(reconstructor: GaussianReconstructor) -> None:
    clip, size, output = Clip(CLIP), 64, 256
    number = clip.reference_frame()
    batch = WindowReader(BACKGROUND).read(clip, np.asarray([number]), number, size, fine=output)
    truth = WindowReader(BACKGROUND).read(clip, np.asarray([number]), number, output).frames[0]
    photo = photo_of(batch)
    with torch.no_grad():
        avatar = with_detail(reconstructor, reconstructor(photo)[0], photo, fine_photos(batch))
        maps = avatar.render(reconstructor.body, batch.view())
        assert avatar.detail is not None
        picture = enlarged(maps, avatar.detail, output).textured[0]
    smooth = F.interpolate(maps.textured[0], (output, output), mode="bicubic")
    gain = psnr(picture.clamp(0, 1), truth).mean() - psnr(smooth.clamp(0, 1), truth).mean()
    assert gain > 3
    other = avatar.over(torch.zeros(1, 3))
    assert other.detail is not None
    again = other.over(avatar.background)
    assert again.detail is not None
    torch.testing.assert_close(again.detail.photo, avatar.detail.photo, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="1 photos and 2 came in detail"):
        with_detail(reconstructor, avatar, photo, fine_photos(batch) * 2)


def test_each_photo_comes_in_detail() -> None:
    reader, photos = WindowReader(BACKGROUND), ["assets/photos/astronaut.png"] * 2
    track = str(Path(CLIP).with_suffix(".track.npz"))
    found = fine_photos(retarget(photos, track, reader, 64, 2, BODY, fine=128))
    assert [(photo.shape[-1], mask.shape[1]) for photo, mask in found] == [(128, 1), (128, 1)]
    assert fine_photos(retarget(photos, track, reader, 64, 2, BODY)) == []


def test_an_output_smaller_than_what_is_painted_is_refused() -> None:
    given = PredictInput(image=CLIP, driving=str(Path(CLIP).with_suffix(".track.npz")), size=64)
    with pytest.raises(ValueError, match="--size is 64: give 128 px or more"):
        VideoDataModule(predict=given).predict_dataloader()


@pytest.mark.slow
def test_the_benchmark_compares_on_one_truth(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output_size, "FIT", replace(output_size.FIT, steps=2))
    output_size.main(["--sizes", "32", "64", "--output", "128", "--stride", "24", "--json"])
    flat = json.loads(capsys.readouterr().out)
    for column in ("perceptual", "face"):
        assert flat[f"64px_{column}"] < flat[f"32px_{column}"] < flat[f"bicubic_{column}"]
    assert flat["gain"] == pytest.approx(1 - flat["64px_perceptual"] / flat["bicubic_perceptual"], abs=1e-2)
    with pytest.raises(SystemExit):
        output_size.main(["--sizes", "128", "--output", "64"])
