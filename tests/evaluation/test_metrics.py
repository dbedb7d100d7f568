"""Measures against closed forms, other implementations and signals whose answer is known."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from tests.conftest import ROOT, SHARED
from visa.evaluation import identity, inception
from visa.evaluation.evaluation import DIVERSITY_FRAMES, MEASURES, Prediction, evaluate_rows
from visa.evaluation.frechet import (
    FRECHET_DIMENSIONS,
    FRECHET_STAGE,
    change_features,
    frechet_distance,
    frechet_features,
    frechet_of_samples,
    frechet_of_videos,
    kernel_distance,
    video_features,
)
from visa.evaluation.image import colour_error, masked_psnr, psnr, ssim
from visa.evaluation.inception import fid_distances, inception_distances
from visa.evaluation.perceptual import metric_network, perceptual_measures
from visa.evaluation.plain_lpips import TRUNKS, lpips_distances
from visa.evaluation.report import folder_means
from visa.evaluation.sharpness import bands_of, sharpness, spectrum, with_grain
from visa.evaluation.silhouette import largest_fragment
from visa.evaluation.table import (
    AVATAR,
    COLUMNS,
    DETAILS,
    OPTIONAL,
    format_bands,
    format_people,
    format_table,
    report_metrics,
    write_metrics,
)
from visa.evaluation.temporal import drift, motion_energy, temporal_error, tlp, unrest
from visa.evaluation.warping import motion_of, optical_flow, warp, warping_error
from visa.losses.perceptual import PerceptualDistance

PHOTO = SHARED / "astronaut.png"


def _clip(num_frames: int = 6, size: int = 64, seed: int = 0) -> torch.Tensor:
    """A textured picture that slides by one px a frame, [T, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, size // 4, size // 4 + num_frames, generator=generator)
    wide = F.interpolate(coarse, size=(size, size + 4 * num_frames), mode="bicubic").clamp(0, 1)
    return torch.stack([wide[0, :, :, t : t + size] for t in range(num_frames)])


def _blur(frames: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(F.avg_pool2d(frames, factor), size=frames.shape[-2:], mode="bilinear")


def test_psnr_of_a_constant_error() -> None:
    truth = torch.full((2, 3, 16, 16), 0.5)
    prediction = truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    np.testing.assert_allclose(psnr(prediction, truth).numpy(), [20.0, 40.0], atol=1e-3)
    assert torch.isinf(psnr(truth, truth)).all()


def test_psnr_of_the_person_alone_is_that_of_the_cut_out_region() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, prediction = (torch.rand(2, 3, 20, 24, generator=generator) for _ in range(2))
    masks = torch.zeros(2, 1, 20, 24)
    masks[0, :, 3:11, 5:9], masks[1, :, :, 12:] = 1, 1
    cut = [(0, slice(3, 11), slice(5, 9)), (1, slice(None), slice(12, None))]
    expected = [
        PeakSignalNoiseRatio(data_range=1.0)(prediction[k : k + 1, :, r, c], truth[k : k + 1, :, r, c])
        for k, r, c in cut
    ]
    torch.testing.assert_close(masked_psnr(prediction, truth, masks), torch.stack(expected))
    # A soft matte weighs errors: 0.2 under a half and 0.1 under a whole count (0.5 0.04 + 0.01) / 1.5.
    error = torch.tensor([0.2, 0.1]).expand(1, 3, 1, 2)
    soft = masked_psnr(error, torch.zeros_like(error), torch.tensor([0.5, 1.0]).view(1, 1, 1, 2))
    assert soft.item() == pytest.approx(-10 * math.log10(0.03 / 1.5), rel=1e-5)


def test_ssim_of_each_frame_apart() -> None:
    clip = _clip(6)
    mixed = torch.cat([clip[:3], _blur(clip[3:], 4)])
    values = ssim(mixed, clip)
    assert values.shape == (6,)
    np.testing.assert_allclose(values[:3].numpy(), 1, atol=1e-6)
    assert (values[3:] < 0.99).all()
    torch.testing.assert_close(values[5:], ssim(mixed[5:], clip[5:]))


def test_colour_error_of_known_changes() -> None:
    clip = _clip()
    shifted = colour_error(clip + torch.tensor([0.1, 0.0, -0.2]).view(1, 3, 1, 1), clip)
    np.testing.assert_allclose(shifted.mean.numpy(), [0.1, 0.0, -0.2], atol=1e-6)
    np.testing.assert_allclose(shifted.contrast.numpy(), 0, atol=1e-5)
    mean = clip.mean(dim=(0, 2, 3), keepdim=True)
    stretched = colour_error(mean + 1.2 * (clip - mean), clip)
    np.testing.assert_allclose(stretched.mean.numpy(), 0, atol=1e-6)
    np.testing.assert_allclose(stretched.contrast.numpy(), 0.2, atol=1e-4)
    grey = clip.mean(dim=1, keepdim=True)
    assert colour_error(grey + 1.5 * (clip - grey), clip).saturation == pytest.approx(0.5, abs=1e-4)
    assert colour_error(grey.expand_as(clip), clip).saturation == pytest.approx(-1, abs=1e-6)


def test_colour_is_that_of_the_person_alone() -> None:
    """Against numpy on the masked pixels; what happens outside the mask does not count."""
    truth, prediction = _clip(seed=0), _clip(seed=1)
    masks = torch.zeros(6, 1, 64, 64)
    masks[:, :, 20:50, 10:40] = 1
    measured = colour_error(prediction, truth, masks)
    inside = masks.bool().expand_as(truth)
    pixels = [np.stack([x[:, c][inside[:, c]].numpy() for c in range(3)]) for x in (prediction, truth)]
    np.testing.assert_allclose(measured.mean.numpy(), pixels[0].mean(1) - pixels[1].mean(1), atol=1e-6)
    np.testing.assert_allclose(measured.contrast.numpy(), pixels[0].std(1) / pixels[1].std(1) - 1, rtol=1e-4)
    changed = torch.where(inside, prediction, torch.zeros(()))
    torch.testing.assert_close(colour_error(changed, truth, masks).mean, measured.mean)


def test_temporal_measures() -> None:
    clip = _clip()
    assert (temporal_error(clip + 0.1, clip) < 1e-6).all()  # a constant offset does not move
    np.testing.assert_allclose(
        temporal_error(torch.zeros_like(clip), clip).numpy(),
        np.abs(np.diff(clip.numpy(), axis=0)).mean(axis=(1, 2, 3)),
        rtol=1e-5,
    )
    ramp = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 8, 8) * 0.1
    assert unrest(ramp).abs().max() < 1e-6  # even motion is at rest
    assert not unrest(clip[:1].expand_as(clip)).any()
    alternating = clip + 0.05 * torch.tensor([1.0, -1.0]).repeat(3).view(6, 1, 1, 1)
    assert unrest(alternating).mean() > 1.5 * unrest(clip).mean()
    assert tlp(torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.3])).tolist() == pytest.approx([0.1, 0.0])


def test_motion_energy_and_drift_of_known_videos() -> None:
    clip = _clip()
    half = clip[:1] + 0.5 * (clip - clip[:1])
    torch.testing.assert_close(motion_energy(half), 0.5 * motion_energy(clip))
    assert drift(torch.tensor([30.0, 32.0, 0.0, 99.0, 7.0, 28.0, 27.0])) == pytest.approx(27.5 - 31.0)
    assert math.isnan(drift(torch.tensor([30.0, 20.0])))
    rows = {"still": Prediction(clip[:1].expand_as(clip)), "stiff": Prediction(half), "worse": Prediction(clip.clone())}
    rows["worse"].frames += 0.01 * torch.tensor([1.0, 1, 2, 2, 10, 10]).view(6, 1, 1, 1)
    rows["worse"].frames.clamp_(0, 1)
    figures = evaluate_rows(clip, rows, measures=["temporal"])
    assert figures["still"]["motion"] == 0
    assert figures["stiff"]["motion"] == pytest.approx(0.5, rel=1e-4)
    assert figures["worse"]["drift"] == pytest.approx(-20, abs=0.5)  # ten times the error
    apart = evaluate_rows(clip, rows, [3, 3], measures=["temporal"])
    expected = [drift(psnr(rows["worse"].frames[k : k + 3], clip[k : k + 3])) for k in (0, 3)]
    assert apart["worse"]["drift"] == pytest.approx(sum(expected) / 2, rel=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (65, 63)])
def test_band_powers_are_the_full_plane(size: tuple[int, int]) -> None:
    """Half-plane sums equal a full complex transform in numpy, ring by ring."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2, 3, *size, generator=generator)
    measured = sharpness(a, b)
    height, width = size
    side = min(size)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]) * side
    window = np.outer(*(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n) for n in size))

    def transform(frames: torch.Tensor) -> np.ndarray:
        luma = np.einsum("tchw,c->thw", frames.double().numpy(), [0.299, 0.587, 0.114])
        return np.fft.fft2((luma - luma.mean(axis=(1, 2), keepdims=True)) * window)

    p, q = transform(a), transform(b)
    assert measured.bands == bands_of(height, width)
    for k, (low, high) in enumerate(measured.bands):
        ring = (radius >= low) & (radius < high)
        power = 10 * np.log10((np.abs(p) ** 2)[:, ring].sum() / (np.abs(q) ** 2)[:, ring].sum())
        cross = (p * q.conj()).real[:, ring].sum(axis=1)
        norm = np.sqrt((np.abs(p) ** 2)[:, ring].sum(axis=1) * (np.abs(q) ** 2)[:, ring].sum(axis=1))
        assert float(measured.power_error[k]) == pytest.approx(power, abs=1e-3)
        assert float(measured.coherence[k]) == pytest.approx((cross / norm).mean(), abs=1e-4)
    assert spectrum(a).shape == (2, height, width // 2 + 1)


def test_sharpness_tells_blur_grain_and_truth_apart() -> None:
    clip = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    same = sharpness(clip, clip)
    assert same.power_error.abs().max() < 1e-4
    assert same.coherence.min() > 0.9999
    assert same.bands == ((4, 8), (8, 12), (12, 16), (16, 24), (24, 32), (32, 48), (48, 64))
    half = sharpness(0.5 * clip, clip)
    np.testing.assert_allclose(half.power_error.numpy(), 20 * math.log10(0.5), atol=1e-3)
    blurred = _blur(clip, 4)
    assert sharpness(blurred, clip).power_error[-2:].max() < -10
    grain = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    replaced = sharpness(blurred + grain - _blur(grain, 4), clip)
    assert replaced.power_error.abs()[-2:].max() < 1  # the power is back
    assert replaced.coherence[-2:].max() < 0.2  # the picture is not
    with pytest.raises(ValueError, match="at least 16 px"):
        sharpness(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))


def test_added_grain_lowers_coherence_as_its_closed_form_says() -> None:
    """Grain of g times the truth's power in a band: power +10 log10(1 + g) dB, coherence 1 / sqrt(1 + g)."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(24, 1, 128, 128, generator=generator).expand(-1, 3, -1, -1)
    noise = torch.randn(24, 1, 128, 128, generator=generator).expand(-1, 3, -1, -1)
    for share in (0.25, 1.0, 4.0):
        measured = sharpness(clip + math.sqrt(share) * noise, clip)
        np.testing.assert_allclose(measured.power_error.numpy(), 10 * math.log10(1 + share), atol=0.3)
        np.testing.assert_allclose(measured.coherence.numpy(), (1 + share) ** -0.5, atol=0.02)
    # A too smooth picture that grain fills up: the power error is mended, the coherence falls in every band.
    smooth = 0.5 * clip
    grained = sharpness(smooth + math.sqrt(0.75) * noise, clip)
    assert grained.power_error.abs().max() < 0.4
    assert (grained.coherence < sharpness(smooth, clip).coherence - 0.4).all()


def test_grain_of_equal_power_fills_the_bands_and_nothing_else() -> None:
    clip = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    blurred = _blur(clip, 4)
    masks = torch.zeros(6, 1, 128, 128)
    masks[..., 20:110, 20:110] = 1
    for mask in (None, masks):
        grained = with_grain(blurred, clip, torch.Generator().manual_seed(1), mask)
        before, after = sharpness(blurred, clip), sharpness(grained, clip)
        assert before.power_error[-2:].max() < -10
        assert after.power_error.abs().max() < 0.6
        related = before.coherence > 0.2  # above, the blur has left nothing of the picture
        assert related.sum() >= 4
        assert (after.coherence[related] < before.coherence[related] - 0.05).all()
        assert after.coherence[~related].abs().max() < 0.1
    torch.testing.assert_close(grained[..., :20, :], blurred[..., :20, :])
    torch.testing.assert_close(with_grain(clip, blurred, torch.Generator()), clip, atol=1e-4, rtol=0)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    """The same features through torchmetrics' own metric, which has its own covariance and root."""

    class Means(torch.nn.Module):
        num_features = 12

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return F.adaptive_avg_pool2d(pictures.float(), 2).flatten(1)

    metric = FrechetInceptionDistance(feature=Means(), normalize=False, input_img_size=(3, 64, 64))
    truth, other = _clip(40, seed=0), _blur(_clip(40, seed=1), 4)
    measured = fid_distances(metric, truth, {"other": other, "same": truth}, batch_size=7)
    for name, video in (("other", other), ("same", truth)):
        expected = frechet_of_samples(Means()(video), Means()(truth))
        assert measured[name] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_kernel_distance_is_unbiased_and_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60, 8, generator=generator, dtype=torch.float64)
    expected = poly_mmd(a, b + 0.5)
    assert kernel_distance(a, b + 0.5) == pytest.approx(float(expected), rel=1e-6)
    # Two sets of one distribution: the mean over draws is 0, while the Frechet distance stays well above it.
    draws = torch.randn(200, 2, 40, 8, generator=generator, dtype=torch.float64)
    values = torch.tensor([kernel_distance(x, y) for x, y in draws])
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert min(frechet_of_samples(x, y) for x, y in draws) > 0.1


def test_no_loss_holds_the_network_of_the_frechet_distance() -> None:
    """Losses are made of `alex` alone: none of the trunk that the figures are read from is trained on."""
    assert PerceptualDistance().model.stages == PerceptualDistance("alex").model.stages
    assert metric_network("stlpips", torch.device("cpu")).model.stages == PerceptualDistance("vgg").model.stages
    files = [p for folder in ("lightning_modules", "losses", "callbacks") for p in (ROOT / folder).glob("*.py")]
    made = {line.strip() for p in files for line in p.read_text().splitlines() if "= PerceptualDistance(" in line}
    assert made == {'self.perceptual = PerceptualDistance("alex")'}
    assert FRECHET_DIMENSIONS * 4 <= 67  # the shortest test block


@pytest.mark.parametrize("motion", [(0.5, 0.25), (2.0, -1.0), (-6.0, 4.0)])
def test_flow_of_a_known_motion(motion: tuple[float, float]) -> None:
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(coarse, size=(144, 144), mode="bicubic").clamp(0, 1)
    true_flow = torch.tensor(motion).view(1, 2, 1, 1)
    target = warp(wide, true_flow.expand(1, 2, 144, 144))[..., 16:-16, 16:-16]
    flow = optical_flow(wide[..., 16:-16, 16:-16], target)
    error = (flow - true_flow).square().sum(dim=1).sqrt()[:, 10:-10, 10:-10]
    assert float(error.mean()) < 0.15
    assert float(optical_flow(target, target).abs().max()) < 1e-4


def test_warping_error_sees_flicker_and_stiffness_but_not_motion() -> None:
    coarse = torch.rand(1, 3, 10, 13, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(coarse, size=(80, 104), mode="bicubic").clamp(0, 1)
    clip = torch.stack([wide[0, :, 8:72, t : t + 64] for t in range(0, 24, 2)])  # two px a frame
    motion = motion_of(clip, batch_size=5)
    assert float(motion.is_counted.float().mean()) > 0.9
    floor = warping_error(clip, motion, batch_size=4)
    assert floor.shape == (11,)
    still = warping_error(clip[:1].expand_as(clip), motion)
    flicker_step = 0.05 * torch.tensor([1.0, -1.0]).repeat(6).view(12, 1, 1, 1)
    flickering = warping_error(clip + flicker_step, motion)
    assert float(floor.mean()) < 0.01
    assert float(still.mean()) > 3 * float(floor.mean())
    np.testing.assert_allclose(flickering.numpy(), 0.1, atol=0.01)
    torch.testing.assert_close(warping_error(clip * 0.5, motion), floor * 0.5, rtol=1e-3, atol=1e-5)
    assert len(warping_error(clip[:1], motion_of(clip[:1]))) == 0


def test_frechet_distance_closed_forms() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_a, mean_b = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    # Commuting covariances: tr(A + B - 2 sqrt(AB)) = sum (sqrt(a) - sqrt(b))^2 over the shared eigenvectors.
    basis = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    a, b = torch.rand(2, 5, generator=generator, dtype=torch.float64)
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    measured = frechet_distance(mean_a, basis @ a.diag() @ basis.T, mean_b, basis @ b.diag() @ basis.T)
    assert measured == pytest.approx(float(expected), rel=1e-9)
    # General covariances, against scipy's matrix square root.
    linalg = pytest.importorskip("scipy.linalg")
    ra, rb = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    ca, cb = ra @ ra.T, rb @ rb.T
    root = np.real(linalg.sqrtm((ca @ cb).numpy()))
    expected = (mean_a - mean_b).square().sum() + ca.trace() + cb.trace() - 2 * np.trace(root)
    assert frechet_distance(mean_a, ca, mean_b, cb) == pytest.approx(float(expected), rel=1e-7)


def test_windows_of_features_hold_what_is_shown_and_how_it_moves() -> None:
    features, changes = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    windows = video_features(features, changes[:8])
    assert windows.shape == (6, 16)
    torch.testing.assert_close(windows[2, :8], features[2:6, :8].mean(0))
    torch.testing.assert_close(windows[2, 8:], changes[2:5, :8].mean(0))
    assert video_features(features[:3], changes[:2]).shape == (0, 16)


def test_the_distance_of_videos_sees_motion_that_frames_hide() -> None:
    """The same frames in another order: the distance of frames is 0, that of videos is not."""
    generator = torch.Generator().manual_seed(0)
    stages = torch.randn(80, 256, 2, 2, generator=generator, dtype=torch.float64).cumsum(dim=0)
    mixed = stages[torch.randperm(80, generator=generator)]

    def features(stage: torch.Tensor) -> torch.Tensor:
        return frechet_features([stage] * (FRECHET_STAGE + 1))

    assert frechet_of_samples(features(mixed), features(stages)) == pytest.approx(0, abs=1e-6)
    windows = [video_features(features(x), change_features(x)) for x in (stages, mixed)]
    assert frechet_of_videos(windows[0], windows[0]) == pytest.approx(0, abs=1e-9)
    assert frechet_of_videos(windows[1], windows[0]) > 10
    spread = windows[0].std(dim=0)  # in units of the truth's spread, so that the scale of a feature does not matter
    assert frechet_of_videos(windows[1] * 3, windows[0] * 3) == pytest.approx(frechet_of_videos(*windows[::-1]))
    expected = frechet_of_samples(windows[1] / spread, windows[0] / spread)
    assert frechet_of_videos(windows[1], windows[0]) == pytest.approx(expected)


@pytest.mark.slow
def test_plain_lpips_is_that_of_its_package_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lpips = pytest.importorskip("lpips")
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    truth = _clip(3)
    rows = {"blurred": _blur(truth, 4)}
    for column, (found, reason) in lpips_distances(truth, rows).items():
        assert found == {}
        assert reason.startswith(f"{column} needs the weights ")
    path = inception.weights_path(TRUNKS["lpips_alex"][1])
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)  # any weights: the sum is what is checked
    found, _ = lpips_distances(truth, rows, every=2)["lpips_alex"]
    with torch.no_grad():
        expected = lpips.LPIPS(net="alex", verbose=False)(rows["blurred"][::2], truth[::2], normalize=True).mean()
    assert found["blurred"] == pytest.approx(float(expected), rel=1e-3)
    path.write_bytes(b"not weights")
    assert "not a file of plain weights" in lpips_distances(truth, rows)["lpips_alex"][1]


def test_frechet_distance_of_singular_covariances() -> None:
    zero, one = torch.zeros(4, 4), torch.ones(4, 4)
    assert frechet_distance(torch.zeros(4), one, torch.zeros(4), one) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(torch.zeros(4), one, torch.zeros(4), zero) == pytest.approx(4)
    samples = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert frechet_of_samples(samples, samples) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="needs 8 frames, got 7"):
        frechet_of_samples(samples[:7], samples)


def test_perceptual_measures_equal_the_plain_distance() -> None:
    network = metric_network("stlpips", torch.device("cpu"))
    clip = _clip(7)
    blurred = _blur(clip, 4)
    measured = perceptual_measures(network, clip, {"blurred": blurred}, batch_size=3)
    with torch.no_grad():
        torch.testing.assert_close(measured["blurred"].distance, network(blurred, clip), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(measured["blurred"].step, network(blurred[1:], blurred[:-1]), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(measured["truth"].step, network(clip[1:], clip[:-1]), rtol=1e-4, atol=1e-7)
        features = frechet_features(network.activations(clip))
        changes = change_features(network.activations(clip)[FRECHET_STAGE])
    assert measured["truth"].distance.abs().max() == 0
    assert features.shape == (7, FRECHET_DIMENSIONS)
    torch.testing.assert_close(measured["truth"].changes, changes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured["truth"].features, features, rtol=1e-4, atol=1e-5)


def test_evaluate_rows_keeps_blocks_apart_and_gives_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity.importlib.util, "find_spec", lambda _: None)
    truth = torch.cat([_clip(4, seed=0), _clip(4, seed=1)])
    rows = {
        "blurred": Prediction(_blur(truth, 4), num_steps=4, fps=30.0),
        "exact": Prediction(truth, reasons={"fps": "not a method"}),
        "wild": Prediction(truth * 3 - 1),
    }
    measures = [m for m in MEASURES if m != "perceptual"]
    results = evaluate_rows(truth, rows, [4, 4], measures=measures)
    error = temporal_error(rows["blurred"].frames, truth)
    assert results["blurred"]["temporal"] == pytest.approx(float(torch.cat([error[:3], error[4:]]).mean()), rel=1e-4)
    assert results["blurred"]["num_steps"] == 4
    assert results["exact"]["psnr"] is None
    assert results["exact"]["psnr_reason"] == "a frame is equal to the truth"
    assert results["exact"]["fps_reason"] == "not a method"
    assert results["exact"]["flicker"] == pytest.approx(1)
    assert results["wild"]["psnr"] == pytest.approx(float(psnr((truth * 3 - 1).clamp(0, 1), truth).mean()), rel=1e-5)
    assert results["blurred"]["latency_ms_reason"] == "not given"
    assert results["blurred"]["warping"] >= 0
    assert results["blurred"]["fid"] is None
    assert "fid needs" in results["blurred"]["fid_reason"]
    assert results["blurred"]["identity"] is None
    assert "pip install '.[identity]'" in results["blurred"]["identity_reason"]
    assert len(results["blurred"]["power_db"]) == len(results["blurred"]["bands"]) == 5


def test_evaluate_rows_perceptual_figures() -> None:
    truth = _clip(5)
    results = evaluate_rows(truth, {"blurred": Prediction(_blur(truth, 4))}, [3, 2], measures=["perceptual"])["blurred"]
    network = metric_network("stlpips", torch.device("cpu"))
    with torch.no_grad():
        expected = network(_blur(truth, 4), truth).mean()
    assert results["perceptual"] == pytest.approx(float(expected), rel=1e-4)
    assert results["tlp"] > 0
    assert results["frechet"] is None
    assert results["frechet_reason"] == "needs 32 frames, got 5"
    rows = {"blurred": Prediction(_blur(truth, 4))}
    half = evaluate_rows(truth, rows, [3, 2], measures=["perceptual"], perceptual_every=2)["blurred"]
    with torch.no_grad():
        expected = network(_blur(truth, 4), truth)[[0, 2, 3]].mean()
    assert half["perceptual"] == pytest.approx(float(expected), rel=1e-4)


def test_diversity_is_the_distance_between_two_seeds() -> None:
    truth, other = _clip(4), _clip(4, seed=2)
    rows = {
        "lively": Prediction(truth.half(), samples=(truth[:2].half(), other[:2].half())),
        "deaf": Prediction(truth, samples=(truth, truth)),
        "once": Prediction(truth),
    }
    results = evaluate_rows(truth, rows, measures=["perceptual"])
    with torch.no_grad():
        expected = metric_network("stlpips", torch.device("cpu"))(truth[:2], other[:2]).mean()
    assert results["lively"]["diversity"] == pytest.approx(float(expected), rel=2e-2)
    assert results["deaf"]["diversity"] == 0
    many = torch.cat([truth, truth, truth, truth])  # 16 frames, of which every third is read
    changed = many.clone()
    changed[3:12:3] = other[:3]
    long = evaluate_rows(many, {"row": Prediction(many, samples=(many, changed))}, measures=["perceptual"])["row"]
    with torch.no_grad():
        network = metric_network("stlpips", torch.device("cpu"))
        apart = network(many[3:12:3], other[:3]).sum() / DIVERSITY_FRAMES
    assert long["diversity"] == pytest.approx(float(apart), rel=1e-4)
    assert results["once"]["diversity"] is None
    assert results["once"]["diversity_reason"] == "painted from one seed only"
    with pytest.raises(ValueError, match="row 'lively' has two samples of different shapes"):
        evaluate_rows(truth, {"lively": Prediction(truth, samples=(truth, other[:2]))})


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(inception.torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception.importlib.util, "find_spec", lambda _: object())
    for measure, (found, reason) in inception_distances(_clip(), {"a": _clip()}, [6]).items():
        assert found == {}
        assert reason.startswith(f"{measure} needs the weights ")
        assert str(tmp_path) in reason
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.FID_WEIGHTS).write_bytes(b"not weights")
    assert "not a file of plain weights" in inception_distances(_clip(), {"a": _clip()}, [6])["fid"][1]


def test_windows_of_a_video_stay_inside_its_blocks() -> None:
    video = torch.arange(60.0).view(60, 1, 1, 1).expand(60, 3, 4, 4) / 255
    cut = inception.windows(video, [25, 10, 25])
    assert cut.shape == (4, 16, 4, 4, 3)
    assert cut[:, 0, 0, 0, 0].tolist() == [0, 8, 35, 43]
    with pytest.raises(ValueError, match="two windows of 16 frames, got 1"):
        inception.windows(video[:20], [20])


def test_single_frames_have_no_temporal_figures() -> None:
    truth = _clip(3)
    results = evaluate_rows(truth, {"a": Prediction(_blur(truth, 4))}, [1, 1, 1], measures=["temporal", "perceptual"])[
        "a"
    ]
    for column in ("temporal", "flicker", "tlp"):
        assert results[column] is None
        assert "consecutive" in results[f"{column}_reason"]


def test_evaluate_rows_names_bad_input() -> None:
    truth = _clip(3)
    with pytest.raises(ValueError, match="row 'a' has frames"):
        evaluate_rows(truth, {"a": Prediction(truth[:2])})
    with pytest.raises(ValueError, match="'truth' is reserved"):
        evaluate_rows(truth, {"truth": Prediction(truth)})
    with pytest.raises(ValueError, match="do not add up to 3 frames"):
        evaluate_rows(truth, {}, [2, 2])
    with pytest.raises(ValueError, match=r"unknown measures \['vmaf'\]"):
        evaluate_rows(truth, {}, measures=["vmaf"])


def test_identity_pairs_and_rates() -> None:
    a, b = np.zeros(128), np.eye(128)[0]
    assert identity.mean_distance([a, None, b], [b, b, b]) == pytest.approx(0.5)
    assert identity.mean_distance([None], [a]) is None
    assert identity.detection_rate([a, None, b, b]) == 0.75


@pytest.mark.skipif(not PHOTO.is_file(), reason="the sample photo is not beside the repository")
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("dlib", "face_recognition_models")),
    reason="the extra 'identity' is not installed",
)
def test_identity_of_a_real_face_at_small_size() -> None:
    photo = torch.from_numpy(np.array(Image.open(PHOTO).convert("RGB"))).permute(2, 0, 1).float() / 255
    crop = photo[:, :400, 50:450]
    small = F.interpolate(crop[None], size=128, mode="area")
    results = evaluate_rows(
        small.expand(2, -1, -1, -1),
        {"self": Prediction(small.expand(2, -1, -1, -1)), "grey": Prediction(torch.full((2, 3, 128, 128), 0.5))},
        photo=crop, measures=["identity"], identity_every=1,
    )  # fmt: skip
    assert results["self"]["identity"] == pytest.approx(0, abs=1e-6)
    assert results["self"]["identity_photo"] < 0.4
    assert results["self"]["detection_rate"] == 1
    assert results["grey"]["identity"] is None
    assert results["grey"]["detection_rate"] == 0
    assert "no face found" in results["grey"]["identity_reason"]


def test_table_shows_dashes_and_reasons() -> None:
    rows = {
        "splat": {"psnr": 27.123, "num_steps": None, "num_steps_reason": "not a diffusion model"},
        "student": {"psnr": 30.0, "num_steps": 4},
    }
    lines = format_table(rows, ["psnr", "num_steps"]).splitlines()
    assert lines[0].split() == ["PSNR", "dB", "^", "steps"]
    assert lines[2].split() == ["splat", "27.12", "-"]
    assert lines[3].split() == ["student", "30.00", "4"]
    assert lines[4] == "- num_steps: not a diffusion model"
    assert len({len(line) for line in lines[:4]}) == 1


def test_people_are_lines_and_rows_are_columns() -> None:
    rows = {
        "freeze (anna)": {"psnr": 20.0, "perceptual": 0.3},
        "ours (anna)": {"psnr": 21.25, "perceptual": 0.2},
        "freeze (bert)": {"psnr": 25.0, "perceptual": 0.1},
        "ours (bert)": {"psnr": 24.0, "perceptual": None, "perceptual_reason": "too small"},
        "ours (carl)": {"psnr": 30.0, "perceptual": 0.05},  # nothing to compare with
        "ours": {"psnr": 1.0},
    }
    lines = [line.split() for line in format_people(rows, ["anna", "bert", "carl"]).splitlines()]
    assert lines[0][-2:] == ["freeze", "ours"]
    assert lines[2:] == [
        ["anna", "20.00/0.300", "21.25/0.200"],
        ["bert", "25.00/0.100", "24.00/-"],
        ["carl", "-/-", "30.00/0.050"],
        ["better", "than", "freeze", "0/0", "1/1"],
    ]


def test_bands_are_a_small_table_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = _clip()
    rows = evaluate_rows(
        clip, {"half": Prediction(clip * 0.5), "stored": Prediction(clip)}, measures=["image", "sharpness"]
    )
    table = format_bands(rows).splitlines()
    assert table[0].split()[4:] == ["4-8", "8-12", "12-16", "16-24", "24-32"]
    assert table[2].split() == ["half", *["-6.0/1.00"] * 5]
    assert table[3].split() == ["stored", *["+0.0/1.00"] * 5]
    report_metrics(tmp_path / "metrics.json", rows, config="", seed=0, protocol="")
    printed = capsys.readouterr().out
    assert printed.index("PSNR") < printed.index("colour v") < printed.index("4-8")
    assert max(len(line) for line in printed.splitlines()[:-1]) <= 120
    assert format_bands({"a": {"psnr": 1.0}}) == ""


def test_what_is_printed_fits_120_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long names, every column, many people, and a long reason."""
    people = [f"stranger_{k:02d}" for k in range(4)]
    columns = [*COLUMNS, *DETAILS, *AVATAR, *OPTIONAL]
    figures: dict[str, dict[str, object]] = {}
    for name in ("freeze", "feed-forward textured", "textured, bicubic to 384 px", "textured, 16 photos"):
        for k, person in enumerate(people):
            values = {c: 4 if c == "num_steps" else 0.25 + k for c in columns}
            figures[f"{name} ({person})"] = {**values, "psnr": -123.25, "fid": None, "fid_reason": "word " * 60}
    figures |= folder_means(figures, [("people/test", person) for person in people])
    figures["textured (stranger_13 moved by stranger_14 and by nobody else)"] = {"psnr": 1.0}
    report_metrics(tmp_path / "metrics.json", figures, config="", seed=0, protocol="")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 120
    heading = lines[0].split()
    assert heading[:3] == ["PSNR", "dB", "^"]
    assert "fps" in heading  # the main table is one
    assert "stranger_02:" in [line.strip() for line in lines]
    assert any("-123.25 [-123.25, -123.25]" in line for line in lines)
    assert any("~" in line for line in lines)
    assert any(line.startswith("not measured: fid: word word") for line in lines)
    assert all(column in "\n".join(lines) for column in ("LPIPS vgg", "AED", "mouth dB"))


def test_metrics_file_is_whole_and_its_path_is_printed_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "metrics.json"
    rows = {"student": {"psnr": 30.5, "identity": None, "identity_reason": "no dlib"}}
    report_metrics(path, rows, config="shader.yaml", seed=3, protocol="block 1", num_frames=67)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    content = json.loads(path.read_text())
    assert content["rows"] == rows
    assert (content["config"], content["seed"], content["protocol"], content["num_frames"]) == (
        "shader.yaml",
        3,
        "block 1",
        67,
    )
    assert content["device"]
    assert content["commit"]
    with pytest.raises(ValueError, match="row 'a' has no psnr"):
        write_metrics(path, {"a": {"psnr": None}}, config="", seed=0, protocol="")
    with pytest.raises(ValueError, match="psnr = inf"):
        write_metrics(path, {"a": {"psnr": math.inf}}, config="", seed=0, protocol="")
    assert json.loads(path.read_text()) == content
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_the_largest_fragment_is_that_of_scipys_labels() -> None:
    """Random blots, of which the largest is the person; part of the others lies on the mask."""
    generator = torch.Generator().manual_seed(0)
    blots = F.avg_pool2d(torch.rand(4, 1, 44, 44, generator=generator), 5, 1) > 0.53
    masks = torch.zeros(4, 1, 40, 40)
    masks[..., :15] = 1.0
    expected = []
    for frame, mask in zip(blots[:, 0].numpy(), masks[:, 0].numpy(), strict=True):
        labels, count = scipy.ndimage.label(frame, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        others = [i for i in range(1, count + 1) if i != 1 + sizes.argmax()]
        expected.append(max(int(((labels == i) & (mask < 0.1)).sum()) for i in others))
    assert min(expected) > 5
    assert largest_fragment(blots.float(), masks).tolist() == expected
    assert largest_fragment(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).tolist() == [0, 0]
