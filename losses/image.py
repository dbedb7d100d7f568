"""Photometric losses on frames, unreduced, and the weights that say where they count."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from visa.losses.smoothing import b3_smooth


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Absolute error, same shape as the inputs ([..., 3, H, W])."""
    return (prediction - target).abs()


def ssim_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """1 - SSIM of each frame, [N, 3, H, W] in [0, 1] -> [N] (Wang et al. 2004, 11x11 window, edges reflected)."""
    similarity = structural_similarity_index_measure(prediction, target, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return 1 - similarity


class StructuralSimilarity:
    """SSIM of pictures to one target, as `ssim_loss` measures it, many times.

    The Gaussian window is a product of a column and a row, and what the target alone says is kept: a tenth of the time.

    Args:
        target: `[N,3,H,W]` in [0,1], of at least 6 px a side.
    """

    def __init__(self, target: Tensor) -> None:
        steps = torch.arange(11, device=target.device, dtype=target.dtype) - 5
        window = torch.exp(-0.5 * (steps / 1.5).square())
        self.window, self.target = window / window.sum(), target
        self.mean = self._blurred(target)
        self.variance = self._blurred(target.square()) - self.mean.square()

    def _blurred(self, pictures: Tensor) -> Tensor:
        """`[N,D,H,W]` -> the same, edges reflected."""
        channels, pictures = pictures.shape[1], F.pad(pictures, (5, 5, 5, 5), mode="reflect")
        column = F.conv2d(pictures, self.window.view(1, 1, 11, 1).expand(channels, -1, -1, -1), groups=channels)
        return F.conv2d(column, self.window.view(1, 1, 1, 11).expand(channels, -1, -1, -1), groups=channels)

    def __call__(self, pictures: Tensor) -> Tensor:
        """`[N,3,H,W]` -> `[N]`."""
        together = self._blurred(torch.cat([pictures, pictures.square(), pictures * self.target], dim=1))
        mean, square, product = together.chunk(3, dim=1)
        variance, covariance = square - mean.square(), product - mean * self.mean
        light = (2 * mean * self.mean + 1e-4) / (mean.square() + self.mean.square() + 1e-4)
        return (light * (2 * covariance + 9e-4) / (variance + self.variance + 9e-4)).flatten(1).mean(dim=1)


def detail_loss(prediction: Tensor, target: Tensor, octaves: int = 2, floor: float = 0.5 / 255) -> Tensor:
    """Difference of the logarithms of local contrast in the finest octaves, [N, 3, H, W] in [0, 1] -> [N].

    Detail that cannot be foreseen to the pixel is least wrong, for errors paired pixel by pixel, where there is none at
    all. Here the root mean square of each band over windows of 8x8 px is compared, so that wherever the detail comes
    from, it must be as strong as the truth's: 0.1 is a tenth too much or too little. Bands are those of `b3_smooth`.

    Args:
        prediction: frames of at least 16 px a side.
        target: the true frames.
        octaves: number of bands, the finest first; of frames of N px, band k holds about N/2^(k+2) to N/2^(k+1) cycles.
        floor: contrast below which differences count ever less; half a grey level is lost in rounding to 8 bits.
    """
    ours, true = _local_contrasts(prediction, octaves, floor), _local_contrasts(target, octaves, floor)
    ratios = [(a / b).log().abs().mean(dim=(1, 2, 3)) for a, b in zip(ours, true, strict=True)]
    return torch.stack(ratios).mean(dim=0)


def _local_contrasts(frames: Tensor, octaves: int, floor: float) -> list[Tensor]:
    """Root mean square of each band over windows of 8 px, every 4 px: `octaves` tensors [N, 3, H/4 - 1, W/4 - 1]."""
    contrasts = []
    for octave in range(octaves):
        smooth = b3_smooth(frames, 2**octave)
        energy = F.avg_pool2d((frames - smooth).square(), 8, stride=4)
        contrasts.append((energy + floor**2).sqrt())
        frames = smooth
    return contrasts


def mask_loss(alpha: Tensor, mask: Tensor) -> Tensor:
    """Absolute error of the rendered coverage against the soft foreground mask, both [..., 1, H, W] in [0, 1]."""
    return (alpha - mask).abs()


def box_weight(boxes: Tensor, height: int, width: int, inside: float, outside: float = 1.0) -> Tensor:
    """Weight of each pixel, [N, 1, H, W], from one box a frame.

    Args:
        boxes: [N, 4] left, top, right, bottom in px, pixel centres at +0.5; an empty box weights nothing up.
        height: of the frame, px.
        width: of the frame, px.
        inside: weight of pixels whose centre is in the box.
        outside: weight of the others.
    """
    x = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
    y = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(dim=1))
    is_inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    return torch.where(is_inside, inside, outside)[:, None].to(boxes.dtype)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of each frame under `weight`: [..., C, H, W] with [..., 1, H, W] -> [...].

    Divided by the sum of the weights, so that a small face and a large one count alike; a frame without any weight
    gives 0.
    """
    total = (values * weight).sum(dim=(-3, -2, -1))
    count = weight.sum(dim=(-3, -2, -1)) * (values.shape[-3] // weight.shape[-3])
    return total / count.clamp_min(torch.finfo(values.dtype).eps)
