"""The CPU rasterizer's kernels: project, bin, splat, and the backward passes of splat and project.

Each kernel is run by several threads at once; they share its tasks (chunks of Gaussians, frames or tiles) through a
ticket counter. A task writes only to places of its own, and sums over tasks are taken in a fixed order afterwards, so
that the result is the same bit for bit whichever thread did what. Arrays are flat. `g` counts Gaussians over all frames
(frame * N + index), `tile` tiles over all frames.

The unit of work in a tile is a block of 4 x 4 pixels, one vector: small Gaussians, which a body has by the thousand,
touch far fewer blocks than rows. A tile's scratch keeps one such vector for each block and channel, so that a Gaussian
costs one multiply-add a channel and block, without a branch on which of the pixels it hits. The depth is one more
channel, the last.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from visa.networks.rasterizer.compiler import inline, kernel
from visa.networks.rasterizer.constants import ALPHA_CAP, ALPHA_THRESHOLD, MIN_ALPHA, STOP_TRANSMITTANCE
from visa.networks.rasterizer.projection import project, project_gradient
from visa.networks.rasterizer.simd import (
    LANES,
    count_bits,
    exp_negative,
    fill,
    is_any,
    load,
    minimum,
    select,
    store,
    take_ticket,
    totals,
    without,
)

Array = np.ndarray

SIDE = 4  # pixels along a block's side
BLOCK = SIDE * SIDE
PIXELS = (0,) * (BLOCK // LANES)  # asks `load` for a block's vector
TILE_BLOCKS = 4  # blocks along a tile's side: 16 px beats 8 px by a tenth
TILE = SIDE * TILE_BLOCKS
TILE_PIXELS = TILE * TILE
CHUNK = 256  # Gaussians a task
SHAPE_SIZE = 8  # x, y, conic a, b, c, opacity, depth, exponent at which it ends
MOMENTS = 7  # backward, after the channels: sums of -dL/dsigma times dx, dy, dx^2, dx dy, dy^2; dL/dopacity, dL/ddepth
BOX_SIZE = 4  # first and one past the last pixel column, then row
CAMERA_SIZE = 16  # fx, fy, cx, cy, translation (3), rotation (9)
RADIX_BITS = 12
CACHE_LINE = 64  # bytes


class Bins(NamedTuple):
    """Projected Gaussians and the tiles' lists of them."""

    shape: Array  # [B*N*SHAPE_SIZE]
    box: Array  # [B*N*BOX_SIZE]
    num_tiles: Array  # [B*N], 0 for what is not seen
    first_pair: Array  # [B*N], number of the Gaussian's first (Gaussian, tile) pair; its others follow, row by row
    tile_start: Array  # [B*tiles + 1], positions in `tile_list`
    tile_list: Array  # [pairs], Gaussians of each tile from front to back


class Picture(NamedTuple):
    """Flat outputs of the forward pass: what the caller gets, and what the backward pass needs of each pixel."""

    image: Array  # [B*H*W*C]
    alpha: Array  # [B*H*W]
    depth: Array  # [B*H*W], expected depth
    transmittance: Array  # [B*H*W]
    stop: Array  # [B*H*W], position in `tile_list` at which the pixel stopped


class Scratch(NamedTuple):
    """A thread's working set for one tile, block by block."""

    planes: Array  # [blocks, C + 1, BLOCK], the picture or its gradient; depth last
    transmittance: Array  # [blocks, BLOCK]
    behind: Array  # [blocks, BLOCK], backward: what the Gaussians behind contribute to the loss
    stop: Array  # [blocks, BLOCK]
    sums: Array  # [C + MOMENTS up to a multiple of BLOCK, BLOCK], backward: a Gaussian's sums, pixel by pixel
    column: Array  # [BLOCK], pixel centres within a block
    row: Array  # [BLOCK]


class Region(NamedTuple):
    """One tile: frame, tile row and column, first pixel, and its part of `tile_list`."""

    frame: int
    row: int
    column: int
    top: int
    left: int
    first: int
    last: int


@inline
def _triple(values: Array, index: int) -> tuple[float, float, float]:
    return float(values[index]), float(values[index + 1]), float(values[index + 2])


@inline
def _quaternion(quats: Array, g: int) -> tuple[float, float, float, float]:
    return float(quats[4 * g]), float(quats[4 * g + 1]), float(quats[4 * g + 2]), float(quats[4 * g + 3])


@inline
def _camera(camera: Array, b: int) -> tuple[tuple, tuple, tuple]:
    """Pinhole, translation and rotation of frame b."""
    c = camera[b * CAMERA_SIZE : (b + 1) * CAMERA_SIZE]
    return (c[0], c[1], c[2], c[3]), (c[4], c[5], c[6]), (c[7], c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15])


@inline
def _pixel_range(centre: float, half: float, size: int) -> tuple[int, int]:
    """First and one past the last pixel whose centre is within `half` of `centre`; a hair wider, for rounding."""
    half += 1e-3
    first = int(np.ceil(min(max(centre - half - 0.5, 0.0), float(size))))
    return first, int(np.floor(min(max(centre + half - 0.5, -1.0), size - 1.0))) + 1


@inline
def _tiles_end(end: int) -> int:
    """One past the last tile that pixels before `end` touch."""
    return (end - 1) // TILE + 1


@kernel
def project_chunks(
    ticket: Array, means: Array, quats: Array, scales: Array, opacities: Array, camera: Array, count: int,
    width: int, height: int, near: float, shape: Array, box: Array, num_tiles: Array,
) -> None:  # fmt: skip
    """Project the Gaussians and find the pixels and tiles that each may touch."""
    chunks = (count + CHUNK - 1) // CHUNK
    while True:
        task = take_ticket(ticket)
        if task >= chunks * (camera.size // CAMERA_SIZE):
            break
        b, chunk = task // chunks, task % chunks
        pinhole, translation, rotation = _camera(camera, b)
        for g in range(b * count + chunk * CHUNK, b * count + min(count, (chunk + 1) * CHUNK)):
            num_tiles[g] = 0
            seen, x, y, conic_a, conic_b, conic_c, z, half_width, half_height, reach = project(
                _triple(means, 3 * g), _quaternion(quats, g), _triple(scales, 3 * g), float(opacities[g]),
                rotation, translation, pinhole, width, height, near,
            )  # fmt: skip
            if not seen:
                continue
            left, right = _pixel_range(x, half_width, width)
            top, bottom = _pixel_range(y, half_height, height)
            if left >= right or top >= bottom:
                continue
            s, o = g * SHAPE_SIZE, g * BOX_SIZE
            shape[s], shape[s + 1], shape[s + 5], shape[s + 6] = x, y, opacities[g], z
            shape[s + 2], shape[s + 3], shape[s + 4] = conic_a, conic_b, conic_c
            shape[s + 7] = reach + 1e-3  # a hair more, for rounding
            box[o], box[o + 1], box[o + 2], box[o + 3] = left, right, top, bottom
            num_tiles[g] = (_tiles_end(right) - left // TILE) * (_tiles_end(bottom) - top // TILE)


@inline
def _sort_by_depth(keys: Array, order: Array) -> Array:
    """Stable radix sort of Gaussians; `keys` are the bits of their shapes, and positive floats sort like their bits.

    Counted from the nearest, the depths of one person differ in 23 bits or so: two passes instead of three.
    """
    depths, other_depths, other = np.empty(order.size, keys.dtype), np.empty(order.size, keys.dtype), order.copy()
    lowest, highest = np.uint64(2**64 - 1), np.uint64(0)
    for i in range(order.size):
        depth = np.uint64(keys[order[i] * SHAPE_SIZE + 6])
        depths[i], lowest, highest = depth, min(lowest, depth), max(highest, depth)
    buckets = np.empty(1 << RADIX_BITS, np.int32)
    digits, shift = np.uint64((1 << RADIX_BITS) - 1), np.uint64(0)
    while shift < np.uint64(64) and (highest - lowest) >> shift > np.uint64(0) and order.size > 0:
        buckets[:] = 0
        for i in range(order.size):
            buckets[((depths[i] - lowest) >> shift) & digits] += 1
        first = 0
        for digit in range(buckets.size):
            size = buckets[digit]
            buckets[digit] = first
            first += size
        for i in range(order.size):
            digit = ((depths[i] - lowest) >> shift) & digits
            spot = buckets[digit]
            other_depths[spot], other[spot] = depths[i], order[i]
            buckets[digit] = spot + 1
        order, other, depths, other_depths = other, order, other_depths, depths
        shift += np.uint64(RADIX_BITS)
    return order


@inline
def _count_tiles(visible: Array, box: Array, tile_columns: int, tile_rows: int) -> Array:
    """How many of the Gaussians touch each tile: the integral of the corners of their boxes, which needs no branch."""
    stride = tile_columns + 1
    corners = np.zeros((tile_rows + 1) * stride, np.int64)
    for g in visible:
        o = g * BOX_SIZE
        left, right = box[o] // TILE, _tiles_end(box[o + 1])
        top, bottom = box[o + 2] // TILE * stride, _tiles_end(box[o + 3]) * stride
        corners[top + left] += 1
        corners[top + right] -= 1
        corners[bottom + left] -= 1
        corners[bottom + right] += 1
    counts = np.zeros(tile_columns * tile_rows, np.int64)
    for row in range(tile_rows):
        along = 0
        for column in range(tile_columns):
            along += corners[row * stride + column]
            above = counts[(row - 1) * tile_columns + column] if row > 0 else 0
            counts[row * tile_columns + column] = above + along
    return counts


@kernel
def bin_frames(
    ticket: Array, keys: Array, frame_start: Array, count: int, tile_columns: int, tile_rows: int, bins: Bins
) -> None:
    """Fill `bins.tile_list`, `tile_start` and `first_pair`; `frame_start` counts the pairs before each frame."""
    tiles = tile_columns * tile_rows
    while True:
        b = take_ticket(ticket)
        if b >= frame_start.size - 1:
            break
        visible = np.empty(count, np.int32)
        num_visible, pair = 0, frame_start[b]
        for g in range(b * count, (b + 1) * count):
            bins.first_pair[g] = pair
            pair += bins.num_tiles[g]
            if bins.num_tiles[g] > 0:
                visible[num_visible] = g
                num_visible += 1
        cursor = _count_tiles(visible[:num_visible], bins.box, tile_columns, tile_rows)
        first = frame_start[b]
        for tile in range(tiles):
            bins.tile_start[b * tiles + tile] = first
            first += cursor[tile]
            cursor[tile] = bins.tile_start[b * tiles + tile]
        for g in _sort_by_depth(keys, visible[:num_visible]):
            o = g * BOX_SIZE
            left, width = bins.box[o] // TILE, _tiles_end(bins.box[o + 1]) - bins.box[o] // TILE
            tile, column = bins.box[o + 2] // TILE * tile_columns + left, 0
            for _ in range(bins.num_tiles[g]):
                spot = cursor[tile]
                bins.tile_list[spot] = g
                cursor[tile] = spot + 1
                is_end = column == width - 1
                tile += tile_columns - width + 1 if is_end else 1
                column = 0 if is_end else column + 1


@register_jitable
def row_size(channels: int) -> int:
    """Length of a (Gaussian, tile) pair's row in the backward pass: channels and moments, in whole vectors."""
    return (channels + MOMENTS + BLOCK - 1) // BLOCK * BLOCK


@inline
def _lines(size: int, like: Array) -> Array:
    """Array of `size` that starts on a cache line: a block's vector is one (float32), and would else straddle two."""
    line = CACHE_LINE // like.itemsize
    array = np.empty(size + line, like.dtype)
    start = (-array.ctypes.data // like.itemsize) % line
    return array[start : start + size]


@inline
def _make_scratch(like: Array, channels: int) -> Scratch:
    column, row = np.empty(BLOCK, like.dtype), np.empty(BLOCK, like.dtype)
    for lane in range(BLOCK):
        column[lane], row[lane] = lane % SIDE + 0.5, lane // SIDE + 0.5
    scratch = Scratch(
        _lines(TILE_PIXELS * (channels + 1), like), _lines(TILE_PIXELS, like), _lines(TILE_PIXELS, like),
        _lines(TILE_PIXELS, column.view(np.int32)), _lines(row_size(channels) * BLOCK, like), column, row,
    )  # fmt: skip
    scratch.planes[:] = 0.0
    scratch.behind[:] = 0.0
    scratch.sums[:] = 0.0
    return scratch


@inline
def _region(tile: int, bins: Bins, width: int, height: int) -> Region:
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    frame, row, column = tile // (columns * rows), tile // columns % rows, tile % columns
    return Region(frame, row, column, row * TILE, column * TILE, bins.tile_start[tile], bins.tile_start[tile + 1])


@inline
def _place(row: int, column: int) -> int:
    """Where a tile's scratch keeps the tile's pixel (row, column)."""
    return ((row // SIDE) * TILE_BLOCKS + column // SIDE) * BLOCK + (row % SIDE) * SIDE + column % SIDE


@inline
def _plane(place: int, channels: int) -> int:
    """Where `Scratch.planes` keeps the first channel of the pixel at `place`; the next is `BLOCK` further on."""
    return place // BLOCK * BLOCK * (channels + 1) + place % BLOCK


@inline
def _blocks(start: int, end: int, tile_start: int) -> tuple[int, int]:
    """Range of a tile's blocks, along one side, that the pixels [start, end) touch."""
    return max(start - tile_start, 0) // SIDE, (min(end - tile_start, TILE) + SIDE - 1) // SIDE


@inline
def _splat_tile(region: Region, bins: Bins, features: Array, channels: int, live: int, scratch: Scratch) -> None:
    """Composite a tile's Gaussians front to back into `scratch.planes`; `live` counts its pixels in the picture."""
    shape, box, planes = bins.shape, bins.box, scratch.planes
    columns, rows = load(scratch.column, 0, PIXELS), load(scratch.row, 0, PIXELS)
    for position in range(region.first, region.last):
        g = bins.tile_list[position]
        s, o = g * SHAPE_SIZE, g * BOX_SIZE
        x, y = shape[s] - region.left, shape[s + 1] - region.top
        half_a, conic_b, half_c = shape[s + 2] * 0.5, shape[s + 3], shape[s + 4] * 0.5
        opacity, reach = shape[s + 5], shape[s + 7]
        across = _blocks(box[o], box[o + 1], region.left)
        down = _blocks(box[o + 2], box[o + 3], region.top)
        for block_row in range(down[0], down[1]):
            dy = (y - SIDE * block_row) - rows
            fall, shear = dy * dy * half_c, dy * conic_b
            for block_column in range(across[0], across[1]):
                place = (block_row * TILE_BLOCKS + block_column) * BLOCK
                dx = (x - SIDE * block_column) - columns
                sigma = dx * (dx * half_a + shear) + fall
                stop = load(scratch.stop, place, PIXELS)
                hit = (sigma <= reach) & (sigma >= 0.0) & (stop > position)
                if not is_any(hit):  # half of the blocks: asked before the exponential, for which the branch would wait
                    continue
                alpha = minimum(exp_negative(sigma) * opacity, ALPHA_CAP)
                hit = hit & (alpha >= ALPHA_THRESHOLD)
                before = load(scratch.transmittance, place, PIXELS)
                after = before - before * alpha
                done = hit & (after <= STOP_TRANSMITTANCE)
                if is_any(done):
                    store(scratch.stop, place, select(done, position, stop))
                    live -= count_bits(done)
                    hit = without(hit, done)
                store(scratch.transmittance, place, select(hit, after, before))
                weight = select(hit, alpha * before, 0.0)
                plane = place * (channels + 1)
                for c in range(g * channels, (g + 1) * channels):
                    store(planes, plane, load(planes, plane, PIXELS) + weight * features[c])
                    plane += BLOCK
                store(planes, plane, load(planes, plane, PIXELS) + weight * shape[s + 6])
        if live == 0:
            break


@inline
def _write_tile(region: Region, width: int, height: int, channels: int, scratch: Scratch, out: Picture) -> None:
    for i in range(min(TILE, height - region.top)):
        for j in range(min(TILE, width - region.left)):
            place = _place(i, j)
            plane = _plane(place, channels)
            pixel = (region.frame * height + region.top + i) * width + region.left + j
            transmittance = scratch.transmittance[place]
            alpha = 1.0 - transmittance
            for c in range(channels):
                out.image[pixel * channels + c] = scratch.planes[plane + c * BLOCK]
            out.alpha[pixel] = alpha
            out.depth[pixel] = scratch.planes[plane + channels * BLOCK] / max(alpha, MIN_ALPHA)
            out.transmittance[pixel] = transmittance
            out.stop[pixel] = scratch.stop[place]


@kernel
def splat_tiles(ticket: Array, bins: Bins, features: Array, width: int, height: int, out: Picture) -> None:
    """Composite every tile and write its pixels."""
    channels = out.image.size // max(out.alpha.size, 1)
    scratch = _make_scratch(out.image, channels)
    while True:
        tile = take_ticket(ticket)
        if tile >= bins.tile_start.size - 1:
            break
        region = _region(tile, bins, width, height)
        scratch.planes[:] = 0.0
        scratch.transmittance[:] = 1.0
        inside_rows, inside_columns = min(TILE, height - region.top), min(TILE, width - region.left)
        live = inside_rows * inside_columns
        scratch.stop[:] = region.last if live == TILE_PIXELS else 0  # pixels outside of the picture never start
        if live < TILE_PIXELS:
            for i in range(inside_rows):
                for j in range(inside_columns):
                    scratch.stop[_place(i, j)] = region.last
        _splat_tile(region, bins, features, channels, live, scratch)
        _write_tile(region, width, height, channels, scratch, out)


@inline
def _load_tile_gradient(
    region: Region, width: int, height: int, channels: int, out: Picture, g_image: Array, g_alpha: Array,
    g_depth: Array, scratch: Scratch,
) -> int:  # fmt: skip
    """Fill the scratch with the output gradients; returns one past the last position that any pixel used."""
    end = 0
    scratch.stop[:] = 0
    scratch.transmittance[:] = 1.0
    for i in range(min(TILE, height - region.top)):
        for j in range(min(TILE, width - region.left)):
            place = _place(i, j)
            plane = _plane(place, channels)
            pixel = (region.frame * height + region.top + i) * width + region.left + j
            for c in range(channels):
                scratch.planes[plane + c * BLOCK] = g_image[pixel * channels + c]
            # expected depth = accumulated depth / max(alpha, floor)
            divisor = max(out.alpha[pixel], MIN_ALPHA)
            scratch.planes[plane + channels * BLOCK] = g_depth[pixel] / divisor
            g_covered = float(g_alpha[pixel])
            if out.alpha[pixel] > MIN_ALPHA:
                g_covered -= g_depth[pixel] * out.depth[pixel] / divisor
            scratch.transmittance[place] = out.transmittance[pixel]
            scratch.behind[place] = -g_covered * out.transmittance[pixel]  # alpha = 1 - last transmittance
            scratch.stop[place] = out.stop[pixel]
            end = max(end, out.stop[pixel])
    return end


@inline
def _splat_tile_gradient(
    region: Region, end: int, bins: Bins, features: Array, channels: int, base: int, scratch: Scratch, pairs: Array
) -> None:
    """Walk a tile back to front; each (Gaussian, tile) pair's sums go to its row of `pairs`: channels, moments."""
    shape, box, planes, sums = bins.shape, bins.box, scratch.planes, scratch.sums
    columns, rows = load(scratch.column, 0, PIXELS), load(scratch.row, 0, PIXELS)
    zero = fill(0.0, columns)
    stride = row_size(channels)
    for position in range(region.last - 1, region.first - 1, -1):
        g = bins.tile_list[position]
        s, o = g * SHAPE_SIZE, g * BOX_SIZE
        tile_row, tile_column = region.row - box[o + 2] // TILE, region.column - box[o] // TILE
        pair = bins.first_pair[g] - base + tile_row * (_tiles_end(box[o + 1]) - box[o] // TILE) + tile_column
        pair *= stride
        if position >= end:
            for i in range(0, stride, BLOCK):
                store(pairs, pair + i, zero)
            continue
        x, y = shape[s] - region.left, shape[s + 1] - region.top
        half_a, conic_b, half_c = shape[s + 2] * 0.5, shape[s + 3], shape[s + 4] * 0.5
        opacity, reach = shape[s + 5], shape[s + 7]
        across = _blocks(box[o], box[o + 1], region.left)
        down = _blocks(box[o + 2], box[o + 3], region.top)
        is_hit = False
        sum_x = sum_y = sum_xx = sum_xy = sum_yy = sum_opacity = sum_depth = zero
        for block_row in range(down[0], down[1]):
            dy = (y - SIDE * block_row) - rows
            fall, shear = dy * dy * half_c, dy * conic_b
            for block_column in range(across[0], across[1]):
                place = (block_row * TILE_BLOCKS + block_column) * BLOCK
                dx = (x - SIDE * block_column) - columns
                sigma = dx * (dx * half_a + shear) + fall
                hit = (sigma <= reach) & (sigma >= 0.0) & (load(scratch.stop, place, PIXELS) > position)
                if not is_any(hit):
                    continue
                is_hit = True
                falloff = exp_negative(sigma)
                raw = falloff * opacity
                alpha = minimum(raw, ALPHA_CAP)
                hit = hit & (alpha >= ALPHA_THRESHOLD)
                inverse = 1.0 / (1.0 - alpha)
                after = load(scratch.transmittance, place, PIXELS)
                before = select(hit, after * inverse, after)
                store(scratch.transmittance, place, before)
                weight = select(hit, alpha * before, 0.0)
                plane = place * (channels + 1)
                g_pixels = load(planes, plane + channels * BLOCK, PIXELS)
                sum_depth = sum_depth + g_pixels * weight
                dot, other = g_pixels * shape[s + 6], zero  # two sums, as one would wait for itself
                for c in range(0, channels - 1, 2):
                    feature, spot = g * channels + c, c * BLOCK
                    g_pixels, g_next = load(planes, plane + spot, PIXELS), load(planes, plane + spot + BLOCK, PIXELS)
                    dot, other = dot + g_pixels * features[feature], other + g_next * features[feature + 1]
                    store(sums, spot, load(sums, spot, PIXELS) + g_pixels * weight)
                    store(sums, spot + BLOCK, load(sums, spot + BLOCK, PIXELS) + g_next * weight)
                if channels % 2:
                    spot = (channels - 1) * BLOCK
                    g_pixels = load(planes, plane + spot, PIXELS)
                    dot = dot + g_pixels * features[g * channels + channels - 1]
                    store(sums, spot, load(sums, spot, PIXELS) + g_pixels * weight)
                dot = dot + other
                behind = load(scratch.behind, place, PIXELS)
                store(scratch.behind, place, behind + weight * dot)
                # dL/dalpha = T (c . g) - (what lies behind) / (1 - alpha)
                g_alpha = select(hit & (raw <= ALPHA_CAP), before * dot - behind * inverse, 0.0)
                sum_opacity = sum_opacity + falloff * g_alpha
                fading = raw * g_alpha  # -dL/dsigma
                sum_x, sum_y = sum_x + fading * dx, sum_y + fading * dy
                sum_xx, sum_xy, sum_yy = sum_xx + fading * dx * dx, sum_xy + fading * dx * dy, sum_yy + fading * dy * dy
        if not is_hit:
            for i in range(0, stride, BLOCK):
                store(pairs, pair + i, zero)
            continue
        moments = (sum_x, sum_y, sum_xx, sum_xy, sum_yy, sum_opacity, sum_depth)
        for i in range(MOMENTS):
            store(sums, (channels + i) * BLOCK, moments[i])
        for i in range(0, stride, BLOCK):
            store(pairs, pair + i, totals(sums, i * BLOCK, PIXELS))
            for k in range(BLOCK):
                store(sums, (i + k) * BLOCK, zero)


@kernel
def splat_tiles_gradient(
    ticket: Array, frames: tuple, bins: Bins, features: Array, width: int, height: int, out: Picture,
    g_image: Array, g_alpha: Array, g_depth: Array, pairs: Array,
) -> None:  # fmt: skip
    """Backward pass of `splat_tiles`: one row of `pairs` for each (Gaussian, tile) pair.

    `frames` is (first frame, one past the last, number of the first frame's first pair).
    """
    tiles = ((width + TILE - 1) // TILE) * ((height + TILE - 1) // TILE)
    channels = g_image.size // max(g_alpha.size, 1)
    scratch = _make_scratch(g_image, channels)
    while True:
        tile = take_ticket(ticket) + frames[0] * tiles
        if tile >= frames[1] * tiles:
            break
        region = _region(tile, bins, width, height)
        if region.first == region.last:
            continue
        end = _load_tile_gradient(region, width, height, channels, out, g_image, g_alpha, g_depth, scratch)
        _splat_tile_gradient(region, end, bins, features, channels, frames[2], scratch, pairs)


@kernel
def project_chunks_gradient(
    ticket: Array, frames: tuple, means: Array, quats: Array, scales: Array, camera: Array, count: int, width: int,
    height: int, bins: Bins, pairs: Array, g_means: Array, g_quats: Array, g_scales: Array, g_opacities: Array,
    g_features: Array, g_camera: Array,
) -> None:  # fmt: skip
    """Sum each Gaussian's pairs and pull them back through the projection; camera gradients are one row a chunk."""
    channels = g_features.size // max(g_opacities.size, 1)
    stride = row_size(channels)
    chunks = (count + CHUNK - 1) // CHUNK
    sums = np.empty(stride, pairs.dtype)
    while True:
        task = take_ticket(ticket) + frames[0] * chunks
        if task >= frames[1] * chunks:
            break
        b, chunk = task // chunks, task % chunks
        pinhole, translation, rotation = _camera(camera, b)
        camera_sum = g_camera[task * CAMERA_SIZE : (task + 1) * CAMERA_SIZE]
        for g in range(b * count + chunk * CHUNK, b * count + min(count, (chunk + 1) * CHUNK)):
            if bins.num_tiles[g] == 0:
                continue
            start = (bins.first_pair[g] - frames[2]) * stride
            for i in range(0, stride, BLOCK):
                vector = load(pairs, start + i, PIXELS)
                for pair in range(start + stride, start + bins.num_tiles[g] * stride, stride):
                    vector = vector + load(pairs, pair + i, PIXELS)
                store(sums, i, vector)
            g_features[g * channels : (g + 1) * channels] = sums[:channels]
            moment_x, moment_y, moment_xx = _triple(sums, channels)
            moment_xy, moment_yy, g_opacity = _triple(sums, channels + 3)
            g_opacities[g] = g_opacity
            conic_a, conic_b, conic_c = _triple(bins.shape, g * SHAPE_SIZE + 2)
            g_centre = -conic_a * moment_x - conic_b * moment_y, -conic_b * moment_x - conic_c * moment_y
            g_mean, g_quat, g_scale, g_rotation, g_translation, g_pinhole = project_gradient(
                _triple(means, 3 * g), _quaternion(quats, g), _triple(scales, 3 * g), rotation, translation, pinhole,
                width, height, g_centre, (-0.5 * moment_xx, -moment_xy, -0.5 * moment_yy), float(sums[channels + 6]),
            )  # fmt: skip
            for i in range(3):
                g_means[3 * g + i] = g_mean[i]
                g_scales[3 * g + i] = g_scale[i]
                camera_sum[4 + i] += g_translation[i]
            for i in range(4):
                g_quats[4 * g + i] = g_quat[i]
                camera_sum[i] += g_pinhole[i]
            for i in range(9):
                camera_sum[7 + i] += g_rotation[i]
