"""CUDA backend: gsplat. Imported only where a CUDA tensor asks for it."""

from torch import Tensor

from visa.networks.rasterizer.constants import EPS_2D


def rasterize_gsplat(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
    world_to_camera: Tensor, width: int, height: int, near: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Image `[B,H,W,C]`, alpha and expected depth `[B,H,W,1]`; float32; gsplat gives no gradient to `intrinsics`."""
    from gsplat import rasterization

    # every frame has Gaussians of its own and one camera: gsplat's batch dimension, with its camera dimension at 1
    colours, alpha, _ = rasterization(
        means, quats, scales, opacities, features, world_to_camera[:, None], intrinsics[:, None], width, height,
        near_plane=near, eps2d=EPS_2D, packed=False, render_mode="RGB+ED",
    )  # fmt: skip
    colours, alpha = colours[:, 0], alpha[:, 0]
    return colours[..., :-1], alpha, colours[..., -1:]
