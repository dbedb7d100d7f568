"""Splatting in plain PyTorch: dense (the independent reference of the tests) and tiled (the benchmark's)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from visa.networks.rasterizer.constants import (
    ALPHA_CAP,
    ALPHA_THRESHOLD,
    EPS_2D,
    FIELD_OF_VIEW_MARGIN,
    MIN_ALPHA,
    STOP_TRANSMITTANCE,
)


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices `[..., 3, 3]` of quaternions `[..., 4]` (wxyz, any length)."""
    w, x, y, z = functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project_dense(
    means: Tensor, quats: Tensor, scales: Tensor, intrinsics: Tensor, world_to_camera: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:
    """EWA projection: centres `[B,N,2]` (px), covariances `[B,N,2,2]` (px^2, with `EPS_2D`), depths `[B,N]` (m)."""
    rotation, translation = world_to_camera[:, None, :3, :3], world_to_camera[:, None, :3, 3]
    camera = (rotation @ means[..., None]).squeeze(-1) + translation
    depth = camera[..., 2]
    size = means.new_tensor([width, height])
    focal = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=-1)[:, None]
    centre = intrinsics[:, None, :2, 2]
    slope = camera[..., :2] / depth[..., None]
    margin = FIELD_OF_VIEW_MARGIN * 0.5 * size / focal
    held = slope.clamp(-(centre / focal + margin), (size - centre) / focal + margin)
    diagonal = torch.diag_embed(focal / depth[..., None])
    jacobian = torch.cat([diagonal, -(focal * held / depth[..., None])[..., None]], dim=-1)
    axes = jacobian @ rotation @ rotation_matrices(quats) * scales[..., None, :]
    covariance = axes @ axes.transpose(-1, -2) + EPS_2D * torch.eye(2, dtype=means.dtype, device=means.device)
    return slope * focal + centre, covariance, depth


def rasterize_dense(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
    world_to_camera: Tensor, width: int, height: int, near: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Image `[B,H,W,C]`, alpha `[B,H,W,1]` and expected depth `[B,H,W,1]`; memory grows as B x N x H x W."""
    centre, covariance, depth = project_dense(means, quats, scales, intrinsics, world_to_camera, width, height)
    seen = (depth > near) & (torch.linalg.det(covariance) > 0)
    # unseen Gaussians may project to infinity: they are replaced before, not after, any product
    centre = torch.where(seen[..., None], centre, 0.0)
    covariance = torch.where(seen[..., None, None], covariance, torch.eye(2, dtype=means.dtype, device=means.device))
    order = torch.where(seen, depth, torch.inf).argsort(dim=1, stable=True)

    def sort(values: Tensor) -> Tensor:
        return torch.gather(values, 1, order.view(*order.shape, *[1] * (values.ndim - 2)).expand_as(values))

    seen, centre, conic, opacity = sort(seen), sort(centre), torch.linalg.inv(sort(covariance)), sort(opacities)
    channels = torch.cat([sort(features), sort(depth)[..., None]], dim=-1)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(means) + 0.5
    offset = centre[:, :, None] - pixels  # [B,N,P,2]
    sigma = 0.5 * ((offset @ conic) * offset).sum(-1)
    alpha = (opacity[..., None] * torch.exp(-sigma)).clamp(max=ALPHA_CAP)
    alpha = torch.where(seen[..., None] & (alpha >= ALPHA_THRESHOLD), alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=1)
    contributes = (after > STOP_TRANSMITTANCE).to(alpha)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = before * alpha * contributes
    image = torch.einsum("bnp,bnc->bpc", weights, channels).unflatten(1, (height, width))
    covered = weights.sum(1).view(-1, height, width, 1)
    return image[..., :-1], covered, image[..., -1:] / covered.clamp(min=MIN_ALPHA)


def _tile_lists(
    centre: Tensor, half: Tensor, depth: Tensor, seen: Tensor, tile: int, columns: int, rows: int
) -> tuple[Tensor, Tensor]:
    """Gaussians of each tile of one frame, front to back, padded with -1: `[tiles, K]`, and their numbers `[tiles]`."""
    limit = torch.tensor([columns, rows])
    first = ((centre - half - 0.5) / tile).floor().long().clamp(min=0)
    last = torch.minimum(((centre + half - 0.5) / tile).floor().long(), limit - 1)
    extent = (last - first + 1).clamp(min=0) * seen[:, None]
    sizes = extent.prod(-1)
    gaussian = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    within = torch.arange(len(gaussian)) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    owner = extent[gaussian, 0]
    place = (first[gaussian, 1] + within // owner) * columns + first[gaussian, 0] + within % owner
    rank = torch.empty_like(sizes)
    rank[depth.argsort(stable=True)] = torch.arange(len(sizes))
    order = (place * len(sizes) + rank[gaussian]).argsort()
    place, gaussian = place[order], gaussian[order]
    numbers = torch.bincount(place, minlength=columns * rows)
    slot = torch.arange(len(place)) - torch.repeat_interleave(numbers.cumsum(0) - numbers, numbers)
    lists = torch.full((columns * rows, max(int(numbers.max()), 1)), -1)
    lists[place, slot] = gaussian
    return lists, numbers


def rasterize_tiled(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
    world_to_camera: Tensor, width: int, height: int, near: float, tile: int = 4, chunk: int = 64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Image `[1,H,W,C]` and alpha `[1,H,W,1]` of one frame: `rasterize_dense` without its waste.

    Tiles are sorted by the length of their lists and walked in chunks of `chunk` Gaussians, so that each step is dense
    linear algebra on the tiles that still have Gaussians and light; width and height must be multiples of `tile`. The
    defaults of `tile` and `chunk` are the fastest of those tried.
    """
    centre, covariance, depth = project_dense(means, quats, scales, intrinsics, world_to_camera, width, height)
    conic, opacity, channels = torch.linalg.inv(covariance)[0], opacities[0], features[0]
    columns, rows = width // tile, height // tile
    with torch.no_grad():
        extent = (2 * (opacity / ALPHA_THRESHOLD).clamp(min=1).log()).sqrt()
        half = extent[:, None] * covariance[0].diagonal(dim1=-2, dim2=-1).sqrt()
        seen = (depth[0] > near) & (opacity >= ALPHA_THRESHOLD)
        lists, numbers = _tile_lists(centre[0], half, depth[0], seen, tile, columns, rows)
        numbers, longest = numbers.sort(descending=True, stable=True)
        lists = lists[longest]
    pixel = torch.arange(tile, dtype=means.dtype) + 0.5
    corner = torch.stack([longest % columns, longest // columns], dim=-1) * tile
    image = means.new_zeros(columns * rows, tile * tile, channels.shape[-1] + 1)
    light = means.new_zeros(columns * rows, 1, tile * tile)  # log transmittance
    alive = torch.ones(columns * rows, dtype=torch.bool)
    for start in range(0, lists.shape[1], chunk):
        active = (numbers > start) & alive
        rest = active.nonzero()[:, 0]
        if len(rest) == 0:
            break
        index = lists[rest, start : start + chunk]
        g = index.clamp(min=0)
        offset = centre[0][g] - corner[rest, None]  # [tiles, chunk, 2]
        dx, dy = offset[..., :1] - pixel, offset[..., 1:] - pixel
        form = conic[g]
        sigma = (
            (0.5 * form[..., 1, 1, None] * dy * dy)[..., :, None]
            + (form[..., 0, 1, None] * dy)[..., :, None] * dx[..., None, :]
            + (0.5 * form[..., 0, 0, None] * dx * dx)[..., None, :]
        ).flatten(2)
        alpha = ((opacity[g] * (index >= 0))[..., None] * torch.exp(-sigma)).clamp(max=ALPHA_CAP)
        alpha = alpha * (alpha >= ALPHA_THRESHOLD)
        after = light[rest] + torch.log1p(-alpha).cumsum(1)
        before = torch.cat([light[rest], after[:, :-1]], dim=1)
        weights = alpha * before.exp() * (after > math.log(STOP_TRANSMITTANCE))
        values = torch.cat([channels[g], torch.ones_like(g[..., None], dtype=means.dtype)], dim=-1)
        image = image.index_add(0, rest, weights.transpose(1, 2) @ values)
        light = light.index_copy(0, rest, after[:, -1:])
        alive = (light.detach() > math.log(STOP_TRANSMITTANCE)).any(-1)[:, 0]
    image = torch.empty_like(image).index_copy(0, longest, image)
    image = image.view(rows, columns, tile, tile, -1).transpose(1, 2).reshape(1, height, width, -1)
    return image[..., :-1], image[..., -1:]
