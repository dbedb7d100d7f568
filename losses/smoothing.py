"""The B3 spline smoothing that splits frames into octaves."""

import torch.nn.functional as F
from torch import Tensor


def b3_smooth(frames: Tensor, step: int = 1) -> Tensor:
    """Frames `[N,C,H,W]` without their finest octave; edges reflected.

    Smoothing of the undecimated wavelet transform with the B3 spline (Starck et al. 2007, "The undecimated wavelet
    decomposition and its reconstruction", IEEE TIP 16).

    Args:
        frames: more than `2 * step` px a side.
        step: 1, or 2^k for frames that were smoothed by the steps below it: without the next octave.
    """
    line = frames.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    channels, smooth = frames.shape[1], F.pad(frames, (2 * step,) * 4, mode="reflect")
    for shape in ((1, 1, 1, 5), (1, 1, 5, 1)):
        kernel = line.view(shape).expand(channels, -1, -1, -1)
        smooth = F.conv2d(smooth, kernel, dilation=step, groups=channels)
    return smooth
