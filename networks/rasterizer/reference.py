"""Slow dense splatting in plain PyTorch: every Gaussian at every pixel. The independent reference of the kernels' tests."""

import torch
from torch import Tensor
from torch.nn import functional

from networks.rasterizer.constants import (
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
    """EWA projection: centres `[B,N,2]` (px), covariances `[B,N,2,2]` (px^2, blurred by `EPS_2D`), depths `[B,N]` (m)."""
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
