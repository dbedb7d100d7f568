"""Warping error: what is left of a frame's change once the truth's own motion is taken out of it."""

from typing import NamedTuple

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


class Motion(NamedTuple):
    """How a truth of T frames moves: flow [T-1, 2, H, W] in px from frame to frame, and where it explains the truth."""

    flow: Tensor
    is_counted: Tensor  # [T-1, H, W]


def motion_of(truth: Tensor, batch_size: int = 8) -> Motion:
    """The motion of consecutive frames [T, 3, H, W] in [0, 1]; pixels of occlusion and new surface are not counted."""
    flows, counted = [truth.new_zeros(0, 2, *truth.shape[-2:])], []
    for before, after in zip(truth[:-1].split(batch_size), truth[1:].split(batch_size), strict=True):
        flow = optical_flow(before, after)
        flows.append(flow)
        counted.append((warp(before, flow) - after).abs().amax(dim=1) < EXPLAINED)
    empty = torch.zeros(0, *truth.shape[-2:], dtype=torch.bool, device=truth.device)
    return Motion(torch.cat(flows), torch.cat([empty, *counted]))


def warping_error(video: Tensor, motion: Motion, batch_size: int = 8) -> Tensor:
    """Warping error [T-1] of frames [T, 3, H, W] under the *truth's* motion, in [0, 1] units.

    Root of Lai et al. 2018 (arXiv:1808.00449, eq. 6-7): sqrt(mean over counted pixels of |V_t - warp(V_(t-1))|^2). The
    motion is the truth's, so that a still or a stiff prediction gains nothing; the truth's own figure is the floor.
    """
    errors = [video.new_zeros(0)]
    for start in range(0, len(video) - 1, batch_size):
        stop = min(start + batch_size, len(video) - 1)
        counted = motion.is_counted[start:stop]
        change = warp(video[start:stop], motion.flow[start:stop]) - video[start + 1 : stop + 1]
        square = (change.square().mean(dim=1) * counted).sum(dim=(1, 2))
        errors.append((square / counted.sum(dim=(1, 2)).clamp_min(1)).sqrt())
    return torch.cat(errors)
