"""Warping error: what is left of a frame's change once the truth's own motion is taken out of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)
# A pixel counts where the truth itself is explained by its flow to within this much, in [0, 1] units.
EXPLAINED = 0.05


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [N, C, H, W], edges repeated."""
    radius = max(round(2.5 * sigma), 1)
    line = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    line = torch.exp(-line.square() / (2 * sigma**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), line, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), line.transpose(2, 3), groups=x.shape[1])


def warp(frames: Tensor, flow: Tensor) -> Tensor:
    """Frames [N, C, H, W] read at x + flow(x), bilinear, edges repeated; flow [N, 2, H, W] = (right, down) in px."""
    height, width = frames.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(height, device=frames.device, dtype=frames.dtype),
        torch.arange(width, device=frames.device, dtype=frames.dtype),
        indexing="ij",
    )
    grid = torch.stack([(2 * (x + flow[:, 0]) + 1) / width - 1, (2 * (y + flow[:, 1]) + 1) / height - 1], dim=-1)
    return F.grid_sample(frames, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _refine(source: Tensor, target: Tensor, flow: Tensor, sigma: float, damping: float) -> Tensor:
    """One Lucas-Kanade step: the flow that makes `warp(source, flow)` more like `target`, both [N, 1, H, W]."""
    moved = warp(source, flow)
    padded = F.pad((moved + target) / 2, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    change = target - moved
    xx, xy, yy, xt, yt = _smooth(torch.cat([gx * gx, gx * gy, gy * gy, gx * change, gy * change], dim=1), sigma).unbind(
        dim=1
    )
    xx, yy = xx + damping, yy + damping
    determinant = xx * yy - xy * xy
    step = torch.stack([(yy * xt - xy * yt) / determinant, (xx * yt - xy * xt) / determinant], dim=1)
    return _smooth(flow + step.clamp(-1, 1), 0.7)


def optical_flow(source: Tensor, target: Tensor, sigma: float = 2.0, num_refinements: int = 5) -> Tensor:
    """Dense flow with `warp(source, flow) ~ target`: pyramidal Lucas-Kanade (Bouguet 2001) on the luminance.

    Damping keeps the flow at zero where there is no texture. It follows motions up to about an eighth of the side.

    Args:
        source, target: [N, 3, H, W] in [0, 1].
        sigma: of the Gaussian window, px.
        num_refinements: at each of the levels, whose coarsest side is 16 px or more.

    Returns:
        [N, 2, H, W], (right, down) in px.
    """
    weight = torch.tensor(_LUMA, device=source.device, dtype=source.dtype)
    pyramid = [tuple(torch.einsum("nchw,c->nhw", x, weight)[:, None] for x in (source, target))]
    while min(pyramid[-1][0].shape[-2:]) >= 32:
        pyramid.append(tuple(F.avg_pool2d(_smooth(x, 0.7), 2) for x in pyramid[-1]))
    flow = source.new_zeros(len(source), 2, *pyramid[-1][0].shape[-2:])
    for a, b in reversed(pyramid):
        if flow.shape[-2:] != a.shape[-2:]:
            scale = flow.new_tensor([a.shape[-1] / flow.shape[-1], a.shape[-2] / flow.shape[-2]]).view(1, 2, 1, 1)
            flow = F.interpolate(flow, size=a.shape[-2:], mode="bilinear", align_corners=False) * scale
        for _ in range(num_refinements):
            flow = _refine(a, b, flow, sigma, damping=1e-5)
    return flow


def warping_error(prediction: Tensor, truth: Tensor, batch_size: int = 16) -> tuple[Tensor, Tensor]:
    """Warping error of prediction and of the truth itself, each [T-1], in [0, 1] units.

    Root of Lai et al. 2018 (arXiv:1808.00449, eq. 6-7): sqrt(mean over counted pixels of |V_t - warp(V_(t-1))|^2) under
    the *truth's* flow, so that a still or a stiff prediction gains nothing. Pixels that the flow does not explain in
    the truth (occlusion, new surface) are not counted. The truth's own figure is the floor.
    """
    errors: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, len(truth) - 1, batch_size):
        stop = min(start + batch_size, len(truth) - 1)
        before, after = slice(start, stop), slice(start + 1, stop + 1)
        flow = optical_flow(truth[before], truth[after])
        is_counted = (warp(truth[before], flow) - truth[after]).abs().amax(dim=1) < EXPLAINED
        count = is_counted.sum(dim=(1, 2)).clamp_min(1)
        for video, out in zip((prediction, truth), errors, strict=True):
            square = (warp(video[before], flow) - video[after]).square().mean(dim=1)
            out.append(((square * is_counted).sum(dim=(1, 2)) / count).sqrt())
    empty = truth.new_zeros(0)
    return torch.cat([*errors[0], empty]), torch.cat([*errors[1], empty])
