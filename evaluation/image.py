"""Fidelity of single frames: PSNR, SSIM and colour. Frames are [T, 3, H, W] in [0, 1], clamped by the caller."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from visa.losses.image import ssim_loss


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, [T], dB; infinite where a frame is equal to the truth."""
    return peak_signal_noise_ratio(prediction, truth, data_range=1.0, dim=(1, 2, 3), reduction="none")


def masked_psnr(prediction: Tensor, truth: Tensor, masks: Tensor) -> Tensor:
    """PSNR of each frame over the person alone, [T], dB: errors weighted by `masks` [T, 1, H, W] in [0, 1]."""
    squared = ((prediction - truth).square().mean(dim=1, keepdim=True) * masks).sum(dim=(1, 2, 3))
    return -10 * (squared / masks.sum(dim=(1, 2, 3)).clamp_min(1e-6)).log10()


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, [T], 1 for equal frames (Wang et al. 2004, 11x11 Gaussian window)."""
    # A few frames at a time: the intermediate maps then stay in the processor's cache, which is 7 times faster.
    return torch.cat([1 - ssim_loss(p, q) for p, q in zip(prediction.split(4), truth.split(4), strict=True)])


class ColourError(NamedTuple):
    """Signed, a channel [3] (R, G, B): mean in [0, 1] units; contrast is a ratio minus 1. saturation is one number."""

    mean: Tensor
    contrast: Tensor
    saturation: float


def colour_error(prediction: Tensor, truth: Tensor, masks: Tensor | None = None) -> ColourError:
    """Colour statistics of the person against the truth's, over all frames at once.

    mean: mean(prediction) - mean(truth); contrast: std(prediction) / std(truth) - 1, positive where too contrasted;
    saturation: the same of the mean distance of a pixel's colour from its own grey, positive where over-saturated.

    Args:
        prediction, truth: [T, 3, H, W] in [0, 1].
        masks: [T, 1, H, W] in [0, 1], weight of each pixel; None counts all alike.
    """
    weight = torch.ones_like(truth[:, :1]) if masks is None else masks.to(truth)
    total = weight.sum(dtype=torch.float64)

    def statistics(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = (frames * weight).sum(dim=(0, 2, 3), dtype=torch.float64) / total
        centred = frames - mean.view(1, 3, 1, 1).to(frames)
        variance = (centred.square() * weight).sum(dim=(0, 2, 3), dtype=torch.float64) / total
        chroma = (frames - frames.mean(dim=1, keepdim=True)).square().sum(dim=1, keepdim=True).sqrt()
        return mean, variance.sqrt(), (chroma * weight).sum(dtype=torch.float64) / total

    (mean, spread, chroma), (true_mean, true_spread, true_chroma) = statistics(prediction), statistics(truth)
    tiny = torch.finfo(truth.dtype).eps
    return ColourError(
        mean - true_mean,
        spread / true_spread.clamp_min(tiny) - 1,
        float(chroma / true_chroma.clamp_min(tiny) - 1),
    )
