"""Losses on frames, against the packages and numbers that they are written from."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

from visa.losses.image import (
    StructuralSimilarity,
    box_weight,
    detail_loss,
    l1,
    mask_loss,
    ssim_loss,
    weighted_mean,
)
from visa.losses.perceptual import PerceptualDistance, enlarged


def _frames(num_frames: int, size: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures: noise at an eighth of the size, enlarged."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_frames, 3, size // 8, size // 8, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear")


@pytest.fixture(scope="module")
def published_stlpips() -> types.ModuleType:
    """The package itself, with stand-ins for two modules that it imports but does not use to compute."""
    missing = {name: types.ModuleType(name) for name in ("IPython", "torchsummary") if name not in sys.modules}
    for name, module in missing.items():
        if importlib.util.find_spec(name) is None:
            module.embed = module.summary = None  # type: ignore[attr-defined]
            sys.modules[name] = module
    try:
        from stlpips_pytorch import stlpips
    finally:
        for name, module in missing.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    return stlpips


@pytest.mark.slow
@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_distance_equals_the_package(published_stlpips: types.ModuleType, network: str) -> None:
    reference = published_stlpips.LPIPS(net=network, variant="shift_tolerant", verbose=False)
    distance = PerceptualDistance(network)
    a, b = (F.interpolate(_frames(2, 64, seed), size=(72, 57)) for seed in (1, 2))
    with torch.no_grad():
        expected = reference(a, b, normalize=True).flatten()
        torch.testing.assert_close(distance(a, b), expected, rtol=1e-5, atol=1e-7)
    # Gradients in double precision: in single, rounding decides some ties of the max pooling.
    a, b = a.double().requires_grad_(), b.double()
    (gradient,) = torch.autograd.grad(distance.double()(a, b).sum(), a)
    (expected,) = torch.autograd.grad(reference.double()(a, b, normalize=True).sum(), a)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-10)


def test_distance_of_equal_frames_is_zero_with_finite_gradient() -> None:
    distance = PerceptualDistance("alex")
    black = torch.zeros(1, 3, 64, 64, requires_grad=True)
    value = distance(black, torch.zeros(1, 3, 64, 64))
    value.sum().backward()
    assert value.item() == 0
    assert torch.isfinite(black.grad).all()


def test_distance_grows_with_blur_and_is_fixed() -> None:
    distance = PerceptualDistance("alex")
    frames = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = [F.interpolate(F.avg_pool2d(frames, k), size=64, mode="bilinear") for k in (2, 4)]
    near, far = (distance(x, frames).item() for x in blurred)
    assert 0 < near < far
    distance.train()
    assert not distance.training
    assert not any(p.requires_grad for p in distance.parameters())


def test_enlarged_frames_lie_between_their_pixels() -> None:
    line = np.random.default_rng(0).uniform(0.3, 0.7, 40)
    x, a = np.array([1.25, 0.25, 0.75, 1.75]), -0.75  # distances of the four pixels; Keys 1981, IEEE TASSP 29, eq. 4
    taps = np.where(x <= 1, (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4))
    right = np.correlate(line, taps, "valid")  # between pixels i + 1 and i + 2, a quarter behind the first
    left = np.correlate(line, taps[::-1], "valid")
    large = enlarged(torch.from_numpy(line).expand(1, 3, 40, 40))[0, 0, 40]
    np.testing.assert_allclose(large[3:-3:2], right, rtol=1e-12)
    np.testing.assert_allclose(large[4:-2:2], left, rtol=1e-12)
    edge = (torch.arange(32) >= 16).float().expand(1, 3, 32, 32)  # bicubic curves run over at an edge
    assert (enlarged(edge, 4).aminmax().min, enlarged(edge, 4).aminmax().max) == (0, 1)


def test_the_finest_detail_weighs_more_in_enlarged_frames() -> None:
    distance = PerceptualDistance("alex")
    coarse = _frames(2, 64)
    signs = torch.randint(2, coarse.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    grain = 0.05 * (signs - F.avg_pool2d(signs.float(), 3, 1, 1))
    fine = (coarse + grain).clamp(0, 1)
    moved = coarse.roll(2, dims=3)  # an error of the coarse parts, as a measure
    ratio = distance(fine, coarse) / distance(moved, coarse)
    ratio_enlarged = distance(enlarged(fine), enlarged(coarse)) / distance(enlarged(moved), enlarged(coarse))
    assert (ratio_enlarged > 1.5 * ratio).all()


def test_bad_choices_are_named() -> None:
    with pytest.raises(ValueError, match="'resnet' is unknown: choose 'alex' or 'vgg'"):
        PerceptualDistance("resnet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend 'dists' is unknown"):
        PerceptualDistance("alex", "dists")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of one shape"):
        PerceptualDistance("alex")(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 32, 32))


def test_lpips_backend_equals_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = pytest.importorskip("lpips")
    original = lpips.LPIPS
    # A random trunk stands for torchvision's download: what is tested is the way around it.
    monkeypatch.setattr(lpips, "LPIPS", lambda **options: original(pnet_rand=True, **options))
    torch.manual_seed(0)
    distance = PerceptualDistance("alex", backend="lpips")
    torch.manual_seed(0)
    reference = original(net="alex", pnet_rand=True, verbose=False)
    a, b = _frames(2, 64, 1), _frames(2, 64, 2)
    torch.testing.assert_close(distance(a, b), reference(a, b, normalize=True).flatten(), rtol=1e-5, atol=1e-8)


def _ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Mean SSIM of one channel straight from the definition, a window at each pixel, edges reflected."""
    d = np.arange(-5, 6)
    line = np.exp(-0.5 * (d / 1.5) ** 2)
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    a, b = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(values))


def test_ssim_loss_is_the_definition() -> None:
    a, b = _frames(2, 32, 1), _frames(2, 32, 2)
    by_hand = [
        np.mean([_ssim_by_hand(x, y) for x, y in zip(p, q, strict=True)])
        for p, q in zip(a.double().numpy(), b.double().numpy(), strict=True)
    ]
    loss = ssim_loss(a, b)
    assert loss.shape == (2,)
    np.testing.assert_allclose(loss.numpy(), 1 - np.array(by_hand), atol=1e-4)
    assert ssim_loss(a, a).abs().max() < 1e-6


def _contrasts_by_hand(frame: np.ndarray, octaves: int, floor: float) -> list[np.ndarray]:
    """Local contrast of one frame [3, H, W], written with scipy's filters."""
    bands = []
    for octave in range(octaves):
        line = np.zeros(4 * 2**octave + 1)
        line[:: 2**octave] = np.array([1, 4, 6, 4, 1]) / 16
        smooth = frame
        for axis in (1, 2):
            smooth = ndimage.convolve1d(smooth, line, axis=axis, mode="mirror")
        means = ndimage.uniform_filter((frame - smooth) ** 2, size=(1, 8, 8))
        rows, columns = (np.arange(0, size - 7, 4) + 4 for size in frame.shape[1:])
        bands.append(np.sqrt(means[:, rows][:, :, columns] + floor**2))
        frame = smooth
    return bands


def test_detail_loss_is_the_definition() -> None:
    a, b = (torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    by_hand = []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        pairs = zip(_contrasts_by_hand(x, 3, 0.01), _contrasts_by_hand(y, 3, 0.01), strict=True)
        by_hand.append(np.mean([np.abs(np.log(p) - np.log(q)).mean() for p, q in pairs]))
    np.testing.assert_allclose(detail_loss(a, b, octaves=3, floor=0.01).numpy(), by_hand, rtol=1e-9)
    small = (0.5 + 0.01 * (a[:1, :, :16, :16] - 0.5)).requires_grad_()
    target = b[:1, :, :16, :16]
    assert torch.autograd.gradcheck(lambda x: detail_loss(x, target), small, fast_mode=True)


def test_detail_loss_misses_detail_not_its_place() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = 0.5 + 0.1 * torch.randn(1, 3, 64, 64, generator=generator)
    shifted, faint = frames.roll(1, dims=-1), 0.5 + 0.5 * (frames - 0.5)
    assert detail_loss(frames, frames) == 0
    assert detail_loss(faint, frames).item() == pytest.approx(np.log(2), rel=0.02)  # the floor makes it less
    assert detail_loss(shifted, frames) < 0.2 * detail_loss(faint, frames)
    assert l1(shifted, frames).mean() > 2 * l1(faint, frames).mean()
    flat = torch.full_like(frames, 0.5).requires_grad_()
    detail_loss(flat, frames).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_l1_and_mask_loss_are_unreduced() -> None:
    a, b = _frames(2, 16, 1), _frames(2, 16, 2)
    np.testing.assert_array_equal(l1(a, b).numpy(), np.abs(a.numpy() - b.numpy()))
    assert mask_loss(a[:, :1], b[:, :1]).shape == (2, 1, 16, 16)


def test_box_weight_counts_pixel_centres() -> None:
    boxes = torch.tensor([[1.0, 0.0, 3.0, 2.0], [1.5, 1.4, 2.6, 1.6], [2.0, 2.0, 2.0, 2.0]])
    weight = box_weight(boxes, height=3, width=4, inside=5.0)
    assert weight.shape == (3, 1, 3, 4)
    assert weight[0, 0].tolist() == [[1, 5, 5, 1], [1, 5, 5, 1], [1, 1, 1, 1]]
    assert weight[1, 0].tolist() == [[1, 1, 1, 1], [1, 5, 5, 1], [1, 1, 1, 1]]
    assert (weight[2] == 1).all()


def test_weighted_mean_is_numpy_average() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 4, 3, 8, 8, generator=generator)
    weight = torch.rand(2, 4, 1, 8, 8, generator=generator)
    expected = np.average(values.numpy(), weights=weight.expand_as(values).numpy(), axis=(2, 3, 4))
    np.testing.assert_allclose(weighted_mean(values, weight).numpy(), expected, rtol=1e-5)
    assert weighted_mean(values, torch.zeros_like(weight)).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("size", [(24, 31), (64, 64)])
def test_the_fast_similarity_is_ssim_and_so_is_its_gradient(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    target, picture = (torch.rand(2, 3, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    picture.requires_grad_()
    expected, found = 1 - ssim_loss(picture, target), StructuralSimilarity(target)(picture)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value.sum(), picture)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)
