"""Fidelity of single frames: PSNR, SSIM and colour. Frames are [T, 3, H, W] in [0, 1], predictions clamped by the caller."""

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, [T], dB; infinite where a frame is equal to the truth."""
    return peak_signal_noise_ratio(prediction, truth, data_range=1.0, dim=(1, 2, 3), reduction="none")


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, [T], 1 for equal frames (Wang et al. 2004, 11x11 Gaussian window)."""
    similarity = structural_similarity_index_measure(prediction, truth, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity


def colour_error(prediction: Tensor, truth: Tensor) -> tuple[float, float]:
    """(error of mean, error of contrast): mean over RGB of |mean difference| and of the signed relative excess of spread.

    Both are over all frames at once. The first is in [0, 1] units of a channel; the second is std(prediction) / std(truth) - 1, which
    is positive for over-saturated or over-contrasted output.
    """
    axes = (0, 2, 3)
    mean_error = (prediction.mean(dim=axes) - truth.mean(dim=axes)).abs().mean()
    spread = prediction.std(dim=axes) / truth.std(dim=axes).clamp_min(torch.finfo(truth.dtype).eps)
    return float(mean_error), float((spread - 1).mean())
