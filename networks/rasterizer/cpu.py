"""CPU backend: runs the kernels on threads and ties them to autograd.

Threads are Python threads (the kernels release the GIL), as many as `torch.get_num_threads()`, the caller among them.
Numba's own layers were passed over: `workqueue` aborts on concurrent calls, `omp` aborts in a child forked after its
first use, `tbb` is one more dependency. This pool takes concurrent calls, and a forked child starts a new one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from visa.networks.rasterizer import kernels
from visa.networks.rasterizer.compose import BORDER, compose_rows
from visa.networks.rasterizer.simd import LANES
from visa.networks.rasterizer.skinning import CHUNK, Riders, skin_chunks
from visa.networks.rasterizer.standing import filter_maps, stand_frames

_PAIR_BUFFER_BYTES = 64 << 20  # the backward pass takes as many frames at once as fit in it (one at least)
_pool: ThreadPoolExecutor | None = None
_kernel_threads: ContextVar[int | None] = ContextVar("kernel_threads", default=None)  # None: as many as torch's


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


@contextmanager
def kernels_alone() -> Iterator[None]:
    """Torch's own operations on one thread meanwhile, kernels on as many as torch had.

    For few frames at a time: operations on some ten thousand Gaussians are not faster on two threads, and OpenMP's
    threads wait for the next one by spinning, which takes the core from the kernels' threads.
    """
    count = torch.get_num_threads()
    token = _kernel_threads.set(_kernel_threads.get() or count)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _kernel_threads.reset(token)


def _run(kernel: Callable, num_tasks: int, *args: Any) -> None:
    """Run a ticketed kernel on as many threads as torch may use."""
    helpers = min(_kernel_threads.get() or torch.get_num_threads(), num_tasks) - 1
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


def readable(pictures: Tensor) -> Tensor:
    """Pictures `[...,4,h,w]`, RGB and matte, as `compose` reads them: `[...,h+8,w+8,4]`, borders repeated."""
    return (
        F.pad(pictures.flatten(0, -4), [BORDER] * 4, "replicate")
        .view(*pictures.shape[:-2], *(side + 2 * BORDER for side in pictures.shape[-2:]))
        .movedim(-3, -1)
        .contiguous()
    )


def compose(maps: Sequence[Tensor], photos: Tensor, pattern: Tensor, reach: float, size: int) -> tuple[Tensor, Tensor]:
    """Pictures of the splat's size or larger, without gradients.

    Args:
        maps: `[B,T,.,S,S]`, 8 + 4K channels together, see `networks.rasterizer.compose`.
        photos: of `[B,K,4,P,P]`, by `readable`.
        pattern: of `[B,4,h,w]`, by `readable`; covers places from -`reach` to `reach`.
        reach: of the pattern.
        size: px of the output.

    Returns:
        textured `[B,T,3,size,size]`; coverage and the photos' share `[B,T,2,size,size]`.
    """
    first, channels, begin = maps[0], sum(value.shape[2] for value in maps), 0
    together = first.new_empty(*first.shape[:2], *first.shape[-2:], channels + -channels % LANES)
    for value in maps:
        together[..., begin : begin + value.shape[2]] = value.detach().movedim(2, -1)
        begin += value.shape[2]
    together = together.flatten(0, 1).flatten(2)
    sides = [side - 2 * BORDER for side in (photos.shape[2], *pattern.shape[1:3])]
    textured = first.new_empty(len(together), 3, size, size)
    further = first.new_empty(len(together), 2, size, size)
    _run(
        compose_rows, len(textured) * size, together.numpy(), _flat(photos), (*photos.shape[:2], sides[0]),
        _flat(pattern), (sides[1], sides[2]), reach, textured.numpy(), further.numpy(),
    )  # fmt: skip
    frames = first.shape[:2]
    return textured.unflatten(0, frames), further.unflatten(0, frames)


def filtered(maps: Tensor, reach: int, kind: Literal["mean", "least"]) -> Tensor:
    """`[M,1,H,W]`, without gradients: of squares of 2 `reach` + 1 px; beyond the border are zeros, or nothing."""
    plain = maps.detach().contiguous()
    found = torch.empty_like(plain)
    _run(filter_maps, len(plain), plain[:, 0].numpy(), reach, kind == "mean", found[:, 0].numpy())
    return found


def standing(maps: Tensor, mattes: Tensor, parts: Tensor, reaches: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Where the photos' pixels stand in a picture, without gradients.

    Args:
        maps: `[B,T,3+4K,H,W]`, see `networks.rasterizer.standing`.
        mattes: `[B,K,1,P,P]`.
        parts: `[B,K,1,P,P]` part codes.
        reaches: px, of the means, of what counts as amid the person and of what lies beside the unseen.

    Returns:
        Means around each pixel `[B,T,2+2K,H,W]`: of alpha, of what is shown, of each photo's weight and trust; and how
        far each photo's pixel is right there, `[B,T,K,H,W]`.
    """
    frames, (height, width) = maps.shape[:2], maps.shape[-2:]
    arrays = [value.detach().contiguous().numpy() for value in (maps.flatten(0, 1), mattes[:, :, 0], parts[:, :, 0])]
    count = mattes.shape[1]
    near = maps.new_empty(len(arrays[0]), 2 + 2 * count, height, width)
    fits = maps.new_empty(len(arrays[0]), count, height, width)
    _run(stand_frames, len(arrays[0]), *arrays, reaches, near.numpy(), fits.numpy())
    return near.unflatten(0, frames), fits.unflatten(0, frames)


def riders(weights: Sequence[Tensor], corners: Tensor | None = None, corner_weights: Tensor | None = None) -> Riders:
    """Skinning weights as `skinned` reads them.

    Args:
        weights: of parts of an avatar, `[B,.,55]` each, those of Gaussians on triangles last.
        corners: `[B,S,3]` the Gaussians of the first part at the corners of their triangles; None for no such part.
        corner_weights: `[B,S,3]`.
    """
    values = torch.cat(list(weights), dim=1).detach().flatten(0, 1).numpy()
    followed = values != 0
    followed[:, 0] |= ~followed.any(axis=1)  # each follows one at least
    first = np.zeros(len(values) + 1, np.int64)
    np.cumsum(followed.sum(axis=1), out=first[1:])
    joint = np.nonzero(followed)[1].astype(np.int32)
    index = np.zeros(0, np.int64) if corners is None else _flat(corners)
    shares = np.zeros(0, np.float32) if corner_weights is None else _flat(corner_weights)
    return Riders(first, joint, values[followed], index, shares)


def skinned(carried: Riders, joints: Tensor, added: Tensor, means: Tensor, quats: Tensor) -> tuple[Tensor, Tensor]:
    """Means `[B,T,G,3]` and rotations `[B,T,G,4]` of Gaussians in a pose, without gradients.

    Args:
        carried: what `riders` gave.
        joints: `[B,T,55,16]`, see `networks.rasterizer.skinning`.
        added: `[B,T,N,3]` what expressions add to the template's means in the T-pose.
        means: `[B,G,3]` in the T-pose.
        quats: `[B,G,4]`.
    """
    frames, each = joints.shape[:2], means.shape[1]
    counts = (each, added.shape[2], carried.corners.size // (3 * len(means)))
    moved, turned = means.new_empty(*frames, each, 3), means.new_empty(*frames, each, 4)
    tasks = frames.numel() * -(-each // CHUNK)
    arrays = [_flat(value) for value in (joints, added, means, quats, moved, turned)]
    _run(skin_chunks, tasks, carried, counts, *arrays)
    return moved, turned
