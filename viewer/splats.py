"""Posed Gaussians as the browser draws them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from visa.networks.gaussians import Gaussians

# The browser's world has z up: x stays, y goes up, what looks at the camera looks along -y.
UPRIGHT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


class Splats(NamedTuple):
    """N Gaussians: centers `[N,3]` m, covariances `[N,3,3]` m^2, rgbs `[N,3]` and opacities `[N,1]` in [0,1]."""

    centers: NDArray[np.float32]
    covariances: NDArray[np.float32]
    rgbs: NDArray[np.float32]
    opacities: NDArray[np.float32]


def splats_of(gaussians: Gaussians, blur: float = 0.0) -> Splats:
    """Of one pose, `[N,...]`, in the browser's world (UPRIGHT).

    The covariance is R S S' R' (Kerbl et al., 3D Gaussian Splatting, 2023, equation 6), and `blur` m^2 in all
    directions: what the rasterizer adds in the picture that they were fitted in, without which there are gaps nearby.
    """
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats, dim=-1).unbind(-1)
    turn = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))  # fmt: skip
    axes = UPRIGHT @ turn * gaussians.scales[..., None, :]
    arrays = (
        gaussians.means @ UPRIGHT.T,
        axes @ axes.mT + blur * torch.eye(3),
        gaussians.colors.clamp(0, 1),
        gaussians.opacities[:, None].clamp(0, 1),
    )
    return Splats(*(value.detach().float().cpu().numpy() for value in arrays))
