"""CPU backend: runs the kernels on threads and ties them to autograd.

Threads are Python threads (the kernels release the GIL), as many as `torch.get_num_threads()`, the caller among them. Numba's own
layers were passed over: `workqueue` aborts on concurrent calls, `omp` aborts in a child forked after its first use, `tbb` is one more
dependency. This pool takes concurrent calls, and a forked child starts a new one.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from networks.rasterizer import kernels
from networks.rasterizer.simd import LANES

MAX_CHANNELS = 31  # of one pass: with the depth 32, four AVX2 registers for the colours of a Gaussian and four for its gradient
_PAIR_BUFFER_BYTES = 64 << 20  # the backward pass takes as many frames at once as fit in it (one at least)
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None  # its threads did not survive the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _run(kernel: Callable, num_tasks: int, *args: Any) -> None:
    """Run a ticketed kernel on as many threads as torch may use."""
    global _pool
    helpers = min(torch.get_num_threads(), num_tasks) - 1
    if _pool is None and helpers > 0:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="rasterizer")
    ticket = np.zeros(1, np.int64)
    futures: list[Future] = [_pool.submit(kernel, ticket, *args) for _ in range(helpers)]
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
        num_frames, count, channels = features.shape
        dtype = _flat(means[:0]).dtype
        blocks = (0,) * ((channels + LANES) // LANES)
        padded, total = LANES * len(blocks), num_frames * count
        columns, rows = -(-width // kernels.TILE), -(-height // kernels.TILE)
        camera = _pack_camera(intrinsics, world_to_camera)
        shape, box = np.empty(total * kernels.SHAPE_SIZE, dtype), np.empty(total * kernels.BOX_SIZE, np.int32)
        depth_key, table = np.empty(total, dtype), np.empty(total * padded, dtype)
        num_tiles, first_slot = np.empty(total, np.int32), np.empty(total, np.int64)
        _run(
            kernels.project_chunks, num_frames * -(-count // kernels.CHUNK),
            _flat(means), _flat(quats), _flat(scales), _flat(opacities), _flat(features), camera,
            count, channels, padded, width, height, near, shape, box, depth_key, table, num_tiles,
        )  # fmt: skip
        frame_start = np.zeros(num_frames + 1, np.int64)
        np.cumsum(num_tiles.reshape(num_frames, count).sum(1, dtype=np.int64), out=frame_start[1:])
        tile_start = np.full(num_frames * columns * rows + 1, frame_start[-1])
        tile_list = np.empty(frame_start[-1], np.int32)
        key_bits = 8 * dtype.itemsize
        _run(
            kernels.bin_frames, num_frames, depth_key.view(f"u{dtype.itemsize}"), key_bits, box, num_tiles, frame_start, count,
            columns, rows, tile_start, tile_list, first_slot,
        )  # fmt: skip
        image = means.new_empty(num_frames, height, width, channels)
        alpha, depth, remaining = (means.new_empty(num_frames, height, width, 1) for _ in range(3))
        stop_at = np.empty(num_frames * height * width, np.int32)
        _run(
            kernels.splat_tiles, tile_start.size - 1, shape, box, table, blocks, tile_start, tile_list, width, height,
            _flat(image), _flat(alpha), _flat(depth), _flat(remaining), stop_at,
        )  # fmt: skip
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(means, quats, scales, intrinsics, world_to_camera, alpha, depth, remaining)
            ctx.size, ctx.blocks, ctx.feature_shape = (width, height), blocks, features.shape
            ctx.arrays = camera, shape, box, table, num_tiles, first_slot, frame_start, tile_start, tile_list, stop_at
        return image, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_image: Tensor, g_alpha: Tensor, g_depth: Tensor) -> tuple[Tensor | None, ...]:
        means, quats, scales, intrinsics, world_to_camera, alpha, depth, remaining = ctx.saved_tensors
        camera, shape, box, table, num_tiles, first_slot, frame_start, tile_start, tile_list, stop_at = ctx.arrays
        width, height = ctx.size
        num_frames, count, _ = ctx.feature_shape
        chunks = -(-count // kernels.CHUNK)
        row = LANES * len(ctx.blocks) + kernels.SHAPE_SIZE
        g_means, g_quats, g_scales = torch.zeros_like(means), torch.zeros_like(quats), torch.zeros_like(scales)
        g_opacities, g_features = means.new_zeros(num_frames, count), means.new_zeros(ctx.feature_shape)
        g_rows = torch.zeros(num_frames, chunks, kernels.CAMERA_SIZE, dtype=torch.float64)
        results = [_flat(tensor) for tensor in (g_means, g_quats, g_scales, g_opacities, g_features, g_rows)]
        inputs, wanted = [_flat(means), _flat(quats), _flat(scales)], [_flat(g_image), _flat(g_alpha), _flat(g_depth)]
        begin = 0
        while begin < num_frames:
            end, base = begin + 1, int(frame_start[begin])
            limit = base + _PAIR_BUFFER_BYTES // (row * table.itemsize)
            while end < num_frames and frame_start[end + 1] <= limit:
                end += 1
            pairs, frames = np.empty((int(frame_start[end]) - base) * row, table.dtype), (begin, end, base)
            _run(
                kernels.splat_tiles_gradient, (end - begin) * (tile_start.size // num_frames), frames, shape, box, table, ctx.blocks,
                tile_start, tile_list, first_slot, width, height, _flat(alpha), _flat(depth), _flat(remaining), stop_at, *wanted, pairs,
            )  # fmt: skip
            _run(
                kernels.project_chunks_gradient, (end - begin) * chunks, frames, *inputs, camera, count, width, height, ctx.blocks,
                num_tiles, first_slot, pairs, *results,
            )  # fmt: skip
            begin = end
        g_intrinsics, g_camera = _unpack_camera(g_rows.sum(1), intrinsics, world_to_camera)
        return g_means, g_quats, g_scales, g_opacities, g_features, g_intrinsics, g_camera, None, None, None


def rasterize_cpu(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, intrinsics: Tensor,
    world_to_camera: Tensor, width: int, height: int, near: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Image `[B,H,W,C]`, alpha and expected depth `[B,H,W,1]`; float32 or float64, gradients for every tensor."""
    parts = [
        _Splatting.apply(means, quats, scales, opacities, part, intrinsics, world_to_camera, width, height, near)
        for part in features.split(MAX_CHANNELS, dim=-1)
    ]
    image = parts[0][0] if len(parts) == 1 else torch.cat([part[0] for part in parts], dim=-1)
    return image, parts[0][1], parts[0][2]
