"""Fidelity of single frames: PSNR, SSIM and colour. Frames are [T, 3, H, W] in [0, 1], clamped by the caller."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from losses.image import ssim_loss


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, [T], dB; infinite where a frame is equal to the truth."""
    return peak_signal_noise_ratio(prediction, truth, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, [T], 1 for equal frames (Wang et al. 2004, 11x11 Gaussian window)."""
    # A few frames at a time: the intermediate maps then stay in the processor's cache, which is 7 times faster.
    return torch.cat([1 - ssim_loss(p, q) for p, q in zip(prediction.split(4), truth.split(4), strict=True)])


def colour_error(prediction: Tensor, truth: Tensor) -> tuple[float, float]:
    """(error of mean, excess of contrast), each over all frames at once and averaged over RGB.

    The first is |mean(prediction) - mean(truth)|, in [0, 1] units; the second is std(prediction) / std(truth) - 1,
    positive for over-saturated or over-contrasted output.
    """
    axes = (0, 2, 3)
    mean_error = (prediction.mean(dim=axes) - truth.mean(dim=axes)).abs().mean()
    spread = prediction.std(dim=axes) / truth.std(dim=axes).clamp_min(torch.finfo(truth.dtype).eps)
    return float(mean_error), float((spread - 1).mean())
