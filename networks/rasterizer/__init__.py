"""Gaussian splatting with one interface and two backends: our CPU kernel, and gsplat on CUDA."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BACKENDS = ("cpu", "gsplat")


@dataclass
class Splat:
    """A picture: `image [B,H,W,C]` (premultiplied, over the background), `alpha [B,H,W,1]` and `depth [B,H,W,1]`.

    The depth (m) is the expected one ("ED" in gsplat): the mean over what is seen, weighted by its share of alpha;
    0 where alpha is 0.
    """

    image: Tensor
    alpha: Tensor
    depth: Tensor


def _check(tensors: dict[str, tuple[Tensor, tuple[int | None, ...]]], width: int, height: int, near: float) -> None:
    device = tensors["means"][0].device
    for name, (tensor, shape) in tensors.items():
        got = tuple(tensor.shape)
        if len(got) != len(shape) or any(want not in (None, size) for size, want in zip(got, shape, strict=True)):
            wanted = ",".join("C" if size is None else str(size) for size in shape)
            raise ValueError(f"rasterize: {name} must have the shape [{wanted}], not {list(got)}")
        if tensor.device != device:
            raise ValueError(f"rasterize: {name} is on {tensor.device} but means is on {device}; move it there")
        if not tensor.is_floating_point():
            raise ValueError(f"rasterize: {name} must be floating point, not {tensor.dtype}")
    if tensors["features"][0].shape[-1] < 1:
        raise ValueError("rasterize: features needs at least one channel")
    if width < 1 or height < 1:
        raise ValueError(f"rasterize: width and height must be positive, not {width} x {height}")
    if not 0 < near < math.inf:
        raise ValueError(f"rasterize: near must be positive and finite, not {near}")
    # a sum is finite unless a value is not (or it overflows: hence the second look); one transfer for all tensors
    sums = torch.stack([tensor.detach().sum().double() for tensor, _ in tensors.values()])
    if not torch.isfinite(sums.sum()):
        for name, (tensor, _) in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"rasterize: {name} has values that are not finite; find where they come from")


def _backend(name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Imported only where it is asked for."""
    if name == "gsplat":
        from visa.networks.rasterizer.cuda import rasterize_gsplat

        return rasterize_gsplat
    from visa.networks.rasterizer.cpu import rasterize_cpu

    return rasterize_cpu


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    intrinsics: Tensor,
    world_to_camera: Tensor,
    width: int,
    height: int,
    near: float = 0.01,
    background: Tensor | None = None,
    backend: str | None = None,
) -> Splat:
    """Splat 3D Gaussians front to back, with gsplat's conventions (`constants.py`).

    Args:
        means: `[B,N,3]`, m, in the world.
        quats: `[B,N,4]`, wxyz, of any length.
        scales: `[B,N,3]`, standard deviations, m.
        opacities: `[B,N]`, in [0,1].
        features: `[B,N,C]`, any number of channels.
        intrinsics: `[B,3,3]`, px, without skew; pixel centres are at +0.5.
        world_to_camera: `[B,4,4]`, OpenCV (x right, y down, z forward).
        width: px.
        height: px.
        near: m; Gaussians whose centre is not beyond it are dropped.
        background: `[B,C]` or `[C]`, shown where alpha is below 1; black without it.
        backend: "cpu" or "gsplat"; by default the one for the tensors' device.

    Returns:
        Splat in float32, or in float64 where `means` is float64 (CPU alone). Gradients flow to every tensor; on CUDA
        gsplat gives none to `intrinsics`. On the CPU the result does not depend on the number of threads, bit for bit.

    Raises:
        ValueError: a tensor has the wrong shape, device or type or values that are not finite, or the backend does not
            fit.
    """
    count = means.shape[-2] if means.ndim == 3 else -1
    batch = means.shape[0] if means.ndim == 3 else -1
    tensors = {
        "means": (means, (batch, count, 3)),
        "quats": (quats, (batch, count, 4)),
        "scales": (scales, (batch, count, 3)),
        "opacities": (opacities, (batch, count)),
        "features": (features, (batch, count, None)),
        "intrinsics": (intrinsics, (batch, 3, 3)),
        "world_to_camera": (world_to_camera, (batch, 4, 4)),
    }
    if background is not None:
        tensors["background"] = (background, (batch, features.shape[-1])[-background.ndim :])
    _check(tensors, width, height, near)
    backend = backend or ("gsplat" if means.is_cuda else "cpu")
    if backend not in BACKENDS or (backend == "gsplat") != means.is_cuda:
        raise ValueError(
            f"rasterize: backend {backend!r} does not take tensors on {means.device}; leave it out (known: {BACKENDS})"
        )
    dtype = torch.float64 if means.dtype == torch.float64 and backend == "cpu" else torch.float32
    inputs = [tensors[name][0].to(dtype) for name in list(tensors)[:7]]
    image, alpha, depth = _backend(backend)(*inputs, width, height, near)
    if background is not None:
        image = image + (1 - alpha) * background.to(dtype).view(-1, 1, 1, background.shape[-1])
    return Splat(image, alpha, depth)
