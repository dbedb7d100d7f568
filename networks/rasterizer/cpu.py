"""CPU backend: runs the kernels on threads and ties them to autograd.

Threads are Python threads (the kernels release the GIL), as many as `torch.get_num_threads()`, the caller among them.
Numba's own layers were passed over: `workqueue` aborts on concurrent calls, `omp` aborts in a child forked after its
first use, `tbb` is one more dependency. This pool takes concurrent calls, and a forked child starts a new one.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from visa.networks.rasterizer import kernels
from visa.networks.rasterizer.compose import compose_rows

_PAIR_BUFFER_BYTES = 64 << 20  # the backward pass takes as many frames at once as fit in it (one at least)
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads did not survive the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="rasterizer")
    return _pool


def _run(kernel: Callable, num_tasks: int, *args: Any) -> None:
    """Run a ticketed kernel on as many threads as torch may use."""
    helpers = min(torch.get_num_threads(), num_tasks) - 1
    ticket = np.zeros(1, np.int64)
    futures: list[Future] = [_threads().submit(kernel, ticket, *args) for _ in range(helpers)]
    kernel(ticket, *args)
    for future in futures:
        future.result()


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().view(-1).numpy()


def _pack_camera(intrinsics: Tensor, world_to_camera: Tensor) -> np.ndarray:
    """One row a frame: fx, fy, cx, cy, translation, rotation (row-major), in float64."""
    k, w = intrinsics.detach().double(), world_to_camera.detach().double()
    pinhole = torch.stack([k[:, 0, 0], k[:, 1, 1], k[:, 0, 2], k[:, 1, 2]], dim=1)
    return torch.cat([pinhole, w[:, :3, 3], w[:, :3, :3].flatten(1)], dim=1).view(-1).numpy()


def _unpack_camera(rows: Tensor, intrinsics: Tensor, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients `[B,3,3]` and `[B,4,4]` from summed rows `[B, CAMERA_SIZE]` in the order of `_pack_camera`."""
    g_intrinsics, g_camera = torch.zeros_like(intrinsics), torch.zeros_like(world_to_camera)
    rows = rows.to(intrinsics.dtype)
    for column, (i, j) in enumerate([(0, 0), (1, 1), (0, 2), (1, 2)]):
        g_intrinsics[:, i, j] = rows[:, column]
    g_camera[:, :3, 3] = rows[:, 4:7]
    g_camera[:, :3, :3] = rows[:, 7:].unflatten(1, (3, 3))
    return g_intrinsics, g_camera


class _Splatting(torch.autograd.Function):
    """(means, quats, scales, opacities, features, intrinsics, world_to_camera) -> (image, alpha, expected depth)."""

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
        world_to_camera: Tensor, width: int, height: int, near: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        (num_frames, count, channels), dtype = features.shape, _flat(means[:0]).dtype
        columns, rows = -(-width // kernels.TILE), -(-height // kernels.TILE)
        camera = _pack_camera(intrinsics, world_to_camera)
        shape = np.empty(num_frames * count * kernels.SHAPE_SIZE, dtype)
        box = np.empty(num_frames * count * kernels.BOX_SIZE, np.int32)
        num_tiles = np.empty(num_frames * count, np.int32)
        _run(
            kernels.project_chunks, num_frames * -(-count // kernels.CHUNK), _flat(means), _flat(quats), _flat(scales),
            _flat(opacities), camera, count, width, height, near, shape, box, num_tiles,
        )  # fmt: skip
        frame_start = np.zeros(num_frames + 1, np.int64)
        np.cumsum(num_tiles.reshape(num_frames, count).sum(1, dtype=np.int64), out=frame_start[1:])
        first_pair = np.empty(num_frames * count, np.int64)
        tile_start = np.full(num_frames * columns * rows + 1, frame_start[-1])
        bins = kernels.Bins(shape, box, num_tiles, first_pair, tile_start, np.empty(frame_start[-1], np.int32))
        keys = shape.view(f"u{dtype.itemsize}")
        _run(kernels.bin_frames, num_frames, keys, frame_start, count, columns, rows, bins)
        image = means.new_empty(num_frames, height, width, channels)
        alpha, depth, transmittance = (means.new_empty(num_frames, height, width, 1) for _ in range(3))
        stop = np.empty(num_frames * height * width, np.int32)
        out = kernels.Picture(_flat(image), _flat(alpha), _flat(depth), _flat(transmittance), stop)
        _run(kernels.splat_tiles, tile_start.size - 1, bins, _flat(features), width, height, out)
        if any(ctx.needs_input_grad):
            # image stays out of it: the backward pass has no use for it, and it would be held as a cycle
            ctx.save_for_backward(means, quats, scales, features, intrinsics, world_to_camera, alpha, depth)
            ctx.arrays = camera, frame_start, bins, _flat(transmittance), stop
            ctx.size = width, height
        return image, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor, g_alpha: Tensor, g_depth: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, features, intrinsics, world_to_camera, alpha, depth = ctx.saved_tensors
        camera, frame_start, bins, transmittance, stop = ctx.arrays
        width, height = ctx.size
        num_frames, count, channels = features.shape
        chunks, tiles = -(-count // kernels.CHUNK), (bins.tile_start.size - 1) // max(num_frames, 1)
        out = kernels.Picture(_flat(g_image[:0]), _flat(alpha), _flat(depth), transmittance, stop)
        wanted = [_flat(g_image), _flat(g_alpha), _flat(g_depth)]
        gradients = [torch.zeros_like(tensor) for tensor in (means, quats, scales, features[..., 0], features)]
        camera_rows = torch.zeros(num_frames, chunks, kernels.CAMERA_SIZE, dtype=torch.float64)
        results = [_flat(tensor) for tensor in (*gradients, camera_rows)]
        row, dtype, begin = kernels.row_size(channels), bins.shape.dtype, 0
        while begin < num_frames:
            end, base = begin + 1, int(frame_start[begin])
            while end < num_frames and (frame_start[end + 1] - base) * row * dtype.itemsize <= _PAIR_BUFFER_BYTES:
                end += 1
            pairs, frames = _flat(means.new_empty((int(frame_start[end]) - base) * row)), (begin, end, base)
            _run(
                kernels.splat_tiles_gradient, (end - begin) * tiles, frames, bins, _flat(features), width, height, out,
                *wanted, pairs,
            )  # fmt: skip
            _run(
                kernels.project_chunks_gradient, (end - begin) * chunks, frames, _flat(means), _flat(quats),
                _flat(scales), camera, count, width, height, bins, pairs, *results,
            )  # fmt: skip
            begin = end
        cameras = _unpack_camera(camera_rows.sum(1), intrinsics, world_to_camera)
        return *gradients, *cameras, None, None, None


def rasterize_cpu(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
    world_to_camera: Tensor, width: int, height: int, near: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Image `[B,H,W,C]`, alpha and expected depth `[B,H,W,1]`; float32 or float64, gradients for every tensor."""
    return _Splatting.apply(means, quats, scales, opacities, features, intrinsics, world_to_camera, width, height, near)


def compose(
    maps: Tensor, photos: Tensor, mattes: Tensor, pattern: Tensor, reach: float, size: int
) -> tuple[Tensor, Tensor]:
    """Pictures larger than the splat, without gradients.

    Args:
        maps: `[B,T,8+4K,S,S]`, see `networks.rasterizer.compose`.
        photos: `[B,K,3,P,P]`.
        mattes: `[B,K,1,P,P]`.
        pattern: `[B,3,h,w]`, covers places from -`reach` to `reach`.
        reach: of the pattern.
        size: px of the output.

    Returns:
        textured `[B,T,3,size,size]`; coverage and the photos' share `[B,T,2,size,size]`.
    """
    frames = maps.shape[:2]
    arrays = [value.detach().contiguous().numpy() for value in (maps.flatten(0, 1), photos, mattes[:, :, 0], pattern)]
    textured = maps.new_empty(len(arrays[0]), 3, size, size)
    further = maps.new_empty(len(arrays[0]), 2, size, size)
    _run(compose_rows, len(textured) * size, *arrays, reach, textured.numpy(), further.numpy())
    return textured.unflatten(0, frames), further.unflatten(0, frames)
