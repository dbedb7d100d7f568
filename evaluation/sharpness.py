"""Sharpness by band: power against the truth, and phase coherence with it, so that mere grain does not count."""

from typing import NamedTuple

import torch
from torch import Tensor

# Edges in cycles over the shorter side of a frame; bands above half the shorter side (Nyquist) are left out.
BANDS: tuple[tuple[int, int], ...] = (
    (4, 8), (8, 12), (12, 16), (16, 24), (24, 32), (32, 48), (48, 64), (64, 96), (96, 128), (128, 192), (192, 256),
)  # fmt: skip
_LUMA = (0.299, 0.587, 0.114)


class Sharpness(NamedTuple):
    """Per band [K]: power error in dB, negative where too smooth; coherence, 1 in phase, 0 unrelated; band edges."""

    power_error: Tensor
    coherence: Tensor
    bands: tuple[tuple[int, int], ...]


def bands_of(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """The bands that a frame of this size can hold."""
    return tuple(band for band in BANDS if band[1] <= min(height, width) / 2)


def spectrum(frames: Tensor) -> Tensor:
    """Spectrum of the luminance, [T, 3, H, W] -> complex [T, H, W/2 + 1]; mean removed, Hann window on the edges."""
    height, width = frames.shape[-2:]
    luminance = torch.einsum("tchw,c->thw", frames.float(), torch.tensor(_LUMA, device=frames.device))
    luminance = luminance - luminance.mean(dim=(1, 2), keepdim=True)
    window = [torch.hann_window(n, periodic=True, device=frames.device) for n in (height, width)]
    return torch.fft.rfft2(luminance * window[0][:, None] * window[1][None, :])


def _radius(height: int, width: int, device: torch.device) -> Tensor:
    """Frequency of each bin of a half-plane spectrum, [H, W/2 + 1], in cycles over the shorter side."""
    side = min(height, width)
    fy = torch.fft.fftfreq(height, device=device)[:, None] * side
    fx = torch.fft.rfftfreq(width, device=device)[None, :] * side
    return (fx.square() + fy.square()).sqrt()


def _band_sums(values: Tensor, height: int, width: int, bands: tuple[tuple[int, int], ...]) -> Tensor:
    """Sum of [T, H, W/2 + 1] over each ring, [T, K]."""
    radius = _radius(height, width, values.device)
    # Columns strictly inside the half plane stand for their mirror image too.
    twice = torch.full((values.shape[-1],), 2.0, device=values.device)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    rings = torch.stack([((radius >= low) & (radius < high)) * twice for low, high in bands])
    return torch.einsum("thw,khw->tk", values.double(), rings.double())


def sharpness(prediction: Tensor, truth: Tensor) -> Sharpness:
    """Power error and phase coherence of each band; [T, 3, H, W] both.

    power_error = 10 log10(sum |P|^2 / sum |Q|^2), summed over the ring and all frames. coherence = mean over frames of
    Re sum P conj(Q) / sqrt(sum |P|^2 sum |Q|^2): independent grain adds power and lowers it.
    """
    height, width = truth.shape[-2:]
    bands = bands_of(height, width)
    if not bands:
        raise ValueError(f"sharpness needs frames of at least 16 px a side, got {height}x{width}")
    p, q = spectrum(prediction), spectrum(truth)
    power = _band_sums(p.abs().square(), height, width, bands)
    truth_power = _band_sums(q.abs().square(), height, width, bands)
    cross = _band_sums((p * q.conj()).real, height, width, bands)
    tiny = torch.finfo(torch.float64).tiny
    power_error = 10 * torch.log10(power.sum(dim=0).clamp_min(tiny) / truth_power.sum(dim=0).clamp_min(tiny))
    coherence = (cross / (power * truth_power).sqrt().clamp_min(tiny)).mean(dim=0)
    return Sharpness(power_error, coherence, bands)


def with_grain(frames: Tensor, target: Tensor, generator: torch.Generator, masks: Tensor | None = None) -> Tensor:
    """Frames plus grey grain that lifts each band to the target's power where it lacks some; not clamped.

    What a sharpness figure must not reward: the power error is mended, the coherence falls.

    Args:
        frames, target: [T, 3, H, W] in [0, 1].
        generator: of the grain.
        masks: [T, 1, H, W] in [0, 1], where grain may lie; None is everywhere.
    """
    height, width = frames.shape[-2:]
    bands = bands_of(height, width)
    noise = torch.randn(len(frames), height, width, generator=generator).to(frames.device)
    rings = torch.fft.rfft2(noise)
    radius = _radius(height, width, frames.device)
    own, wanted = (_band_sums(spectrum(x).abs().square(), height, width, bands).sum(dim=0) for x in (frames, target))
    result = frames.clone()
    for k, (low, high) in enumerate(bands):
        ring = torch.fft.irfft2(rings * ((radius >= low) & (radius < high)), s=(height, width))[:, None]
        ring = ring if masks is None else ring * masks.to(ring)
        power = _band_sums(spectrum(ring.expand(-1, 3, -1, -1)).abs().square(), height, width, bands).sum(dim=0)[k]
        lacking = (wanted[k] - own[k]).clamp_min(0)
        result += ring * float((lacking / power.clamp_min(torch.finfo(power.dtype).tiny)).sqrt())
    return result
