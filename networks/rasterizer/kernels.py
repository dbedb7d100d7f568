"""The CPU rasterizer's kernels: project, bin, splat, and the backward passes of splat and project.

Each kernel is run by several threads at once; they share its tasks (chunks of Gaussians, frames or tiles) through a ticket counter.
A task writes only to places of its own, and sums over tasks are taken in a fixed order afterwards, so that the result is the same bit
for bit whichever thread did what. Arrays are flat. `g` counts Gaussians over all frames (frame * N + index), `tile` tiles over all frames.

A pixel row of a tile is one vector of `LANES` pixels: alphas and transmittances are computed for the row at once; a pixel that is
hit then takes `weight * channels` as one vector of channels. The last channel but padding is the depth.
"""

import numpy as np

from networks.rasterizer.compiler import inline, kernel
from networks.rasterizer.constants import ALPHA_CAP, ALPHA_THRESHOLD, MIN_ALPHA, STOP_TRANSMITTANCE
from networks.rasterizer.projection import project, project_gradient
from networks.rasterizer.simd import (
    LANES,
    bits,
    exp_negative,
    fill,
    load,
    lowest_bit,
    minimum,
    select,
    store,
    take_ticket,
    total,
    without,
)

Array = np.ndarray

SIDE = 4  # of a pixel block
PIXELS = (0,) * (SIDE * SIDE // LANES)  # a vector of a block's pixels
LANE_COUNT = SIDE * SIDE
TILE_BLOCKS = 2  # blocks along a tile's side
TILE = SIDE * TILE_BLOCKS
TILE_PIXELS = TILE * TILE
CHUNK = 256  # Gaussians a task
SHAPE_SIZE = 8  # x, y, conic a, b, c, opacity, 2 unused
BOX_SIZE = 4  # pixel columns [0, 1), pixel rows [2, 3)
CAMERA_SIZE = 16  # fx, fy, cx, cy, translation (3), rotation (9)
RADIX_BITS = 11


@inline
def _triple(values: Array, index: int) -> tuple[float, float, float]:
    return float(values[index]), float(values[index + 1]), float(values[index + 2])


@inline
def _camera(camera: Array, b: int) -> tuple[tuple, tuple, tuple]:
    """Pinhole, translation and rotation of frame b."""
    c = camera[b * CAMERA_SIZE : (b + 1) * CAMERA_SIZE]
    return (c[0], c[1], c[2], c[3]), (c[4], c[5], c[6]), (c[7], c[8], c[9], c[10], c[11], c[12], c[13], c[14], c[15])


@inline
def _quaternion(quats: Array, g: int) -> tuple[float, float, float, float]:
    return float(quats[4 * g]), float(quats[4 * g + 1]), float(quats[4 * g + 2]), float(quats[4 * g + 3])


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
    ticket: Array, means: Array, quats: Array, scales: Array, opacities: Array, features: Array, camera: Array,
    count: int, channels: int, padded: int, width: int, height: int, near: float,
    shape: Array, box: Array, depth: Array, table: Array, num_tiles: Array,
) -> None:  # fmt: skip
    """Project the Gaussians, find the tiles that each may touch, and copy their channels to padded rows of `table`."""
    chunks = (count + CHUNK - 1) // CHUNK
    while True:
        task = take_ticket(ticket)
        if task >= chunks * (camera.size // CAMERA_SIZE):
            break
        b, chunk = task // chunks, task % chunks
        pinhole, translation, rotation = _camera(camera, b)
        for g in range(b * count + chunk * CHUNK, b * count + min(count, (chunk + 1) * CHUNK)):
            num_tiles[g] = 0
            seen, x, y, conic_a, conic_b, conic_c, z, half_width, half_height = project(
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
            shape[s], shape[s + 1], shape[s + 5] = x, y, opacities[g]
            shape[s + 2], shape[s + 3], shape[s + 4] = conic_a, conic_b, conic_c
            depth[g] = z
            box[o], box[o + 1], box[o + 2], box[o + 3] = left, right, top, bottom
            num_tiles[g] = (_tiles_end(right) - left // TILE) * (_tiles_end(bottom) - top // TILE)
            for c in range(channels):
                table[g * padded + c] = features[g * channels + c]
            table[g * padded + channels] = z
            for c in range(channels + 1, padded):
                table[g * padded + c] = 0.0


@inline
def _sort_by_depth(keys: Array, order: Array, passes: int) -> Array:
    """Stable radix sort of `order` by the unsigned integers `keys[order]`; positive floats sort like their bits."""
    other = np.empty_like(order)
    buckets = np.empty(1 << RADIX_BITS, np.int64)
    for step in range(passes):
        shift = np.uint64(step * RADIX_BITS)
        buckets[:] = 0
        for g in order:
            buckets[(np.uint64(keys[g]) >> shift) & np.uint64((1 << RADIX_BITS) - 1)] += 1
        first = 0
        for digit in range(1 << RADIX_BITS):
            size = buckets[digit]
            buckets[digit] = first
            first += size
        for g in order:
            digit = (np.uint64(keys[g]) >> shift) & np.uint64((1 << RADIX_BITS) - 1)
            other[buckets[digit]] = g
            buckets[digit] += 1
        order, other = other, order
    return order


@kernel
def bin_frames(
    ticket: Array, keys: Array, key_bits: int, box: Array, num_tiles: Array, frame_start: Array, count: int,
    tile_columns: int, tile_rows: int, tile_start: Array, tile_list: Array, first_slot: Array,
) -> None:  # fmt: skip
    """List each tile's Gaussians from front to back, and number each Gaussian's (Gaussian, tile) pairs for the backward pass."""
    tiles = tile_columns * tile_rows
    while True:
        b = take_ticket(ticket)
        if b >= frame_start.size - 1:
            break
        visible = np.empty(count, np.int32)
        num_visible, slot = 0, frame_start[b]
        for g in range(b * count, (b + 1) * count):
            first_slot[g] = slot
            slot += num_tiles[g]
            if num_tiles[g] > 0:
                visible[num_visible] = g
                num_visible += 1
        order = _sort_by_depth(keys, visible[:num_visible], (key_bits + RADIX_BITS - 1) // RADIX_BITS)
        cursor = np.zeros(tiles + 1, np.int64)
        for g in order:
            o = g * BOX_SIZE
            for row in range(box[o + 2] // TILE, _tiles_end(box[o + 3])):
                for column in range(box[o] // TILE, _tiles_end(box[o + 1])):
                    cursor[row * tile_columns + column + 1] += 1
        cursor[0] = frame_start[b]
        for tile in range(tiles):
            cursor[tile + 1] += cursor[tile]
            tile_start[b * tiles + tile] = cursor[tile]
        for g in order:
            o = g * BOX_SIZE
            for row in range(box[o + 2] // TILE, _tiles_end(box[o + 3])):
                for column in range(box[o] // TILE, _tiles_end(box[o + 1])):
                    tile = row * tile_columns + column
                    tile_list[cursor[tile]] = g
                    cursor[tile] += 1


@inline
def _blocks(start: int, end: int, tile_start: int) -> tuple[int, int]:
    """Range of a tile's blocks, along one side, that the pixels [start, end) touch."""
    return max(start - tile_start, 0) // SIDE, (min(end - tile_start, TILE) + SIDE - 1) // SIDE


@inline
def _splat_tile(
    first: int, last: int, left: int, top: int, live: int, tile_list: Array, shape: Array, box: Array, table: Array, blocks: tuple,
    painted: Array, transmittance: Array, stop: Array, weight: Array, column: Array, row: Array,
) -> None:  # fmt: skip
    """Composite a tile's Gaussians front to back into `painted` [block pixel, channel]; `live` counts pixels inside the picture."""
    padded = LANES * len(blocks)
    columns, rows = load(column, 0, PIXELS), load(row, 0, PIXELS)
    for position in range(first, last):
        g = tile_list[position]
        s, o = g * SHAPE_SIZE, g * BOX_SIZE
        x, y = shape[s] - left, shape[s + 1] - top
        half_a, conic_b, half_c, opacity = shape[s + 2] * 0.5, shape[s + 3], shape[s + 4] * 0.5, shape[s + 5]
        channels = load(table, g * padded, blocks)
        across = _blocks(box[o], box[o + 1], left)
        down = _blocks(box[o + 2], box[o + 3], top)
        for block_row in range(down[0], down[1]):
            dy = (y - SIDE * block_row) - rows
            fall_y = dy * dy * half_c
            shear = dy * conic_b
            for block_column in range(across[0], across[1]):
                place = (block_row * TILE_BLOCKS + block_column) * LANE_COUNT
                dx = (x - SIDE * block_column) - columns
                sigma = dx * (dx * half_a + shear) + fall_y
                alpha = minimum(exp_negative(sigma) * opacity, ALPHA_CAP)
                halt = load(stop, place, PIXELS)
                hit = (alpha >= ALPHA_THRESHOLD) & (sigma >= 0.0) & (halt > position)
                if bits(hit) == 0:
                    continue
                before = load(transmittance, place, PIXELS)
                after = before - before * alpha
                done = hit & (after <= STOP_TRANSMITTANCE)
                if bits(done) != 0:
                    store(stop, place, select(done, position, halt))
                    left_over = bits(done)
                    while left_over != 0:
                        live -= 1
                        left_over &= left_over - np.uint64(1)
                    hit = without(hit, done)
                store(transmittance, place, select(hit, after, before))
                store(weight, 0, alpha * before)
                hits = bits(hit)
                while hits != 0:
                    lane = lowest_bit(hits)
                    hits &= hits - np.uint64(1)
                    pixel = (place + lane) * padded
                    store(painted, pixel, load(painted, pixel, blocks) + channels * weight[lane])
        if live == 0:
            break


@inline
def _place(row: int, column: int) -> int:
    """Where a tile's scratch keeps the pixel (row, column) of the tile: block by block."""
    return ((row // SIDE) * TILE_BLOCKS + column // SIDE) * LANE_COUNT + (row % SIDE) * SIDE + column % SIDE


@inline
def _block_offsets(like: Array) -> tuple[Array, Array]:
    """Column and row of the centre of each pixel of a block."""
    column, row = np.empty(LANE_COUNT, like.dtype), np.empty(LANE_COUNT, like.dtype)
    for lane in range(LANE_COUNT):
        column[lane], row[lane] = lane % SIDE + 0.5, lane // SIDE + 0.5
    return column, row


@kernel
def splat_tiles(
    ticket: Array, shape: Array, box: Array, table: Array, blocks: tuple, tile_start: Array, tile_list: Array, width: int, height: int,
    image: Array, alpha: Array, depth: Array, remaining: Array, stop_at: Array,
) -> None:  # fmt: skip
    """Image [B,H,W,C], alpha and expected depth [B,H,W], and for the backward pass each pixel's transmittance and stop position."""
    padded = LANES * len(blocks)
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    channels = image.size // max(alpha.size, 1)
    painted = np.empty(TILE_PIXELS * padded, image.dtype)
    transmittance = np.empty(TILE_PIXELS, image.dtype)
    weight = np.empty(LANE_COUNT, image.dtype)
    stop = np.empty(TILE_PIXELS, np.int32)
    column, row = _block_offsets(image)
    while True:
        tile = take_ticket(ticket)
        if tile >= tile_start.size - 1:
            break
        first, last = tile_start[tile], tile_start[tile + 1]
        b, top, left = tile // (columns * rows), tile // columns % rows * TILE, tile % columns * TILE
        painted[:] = 0.0
        transmittance[:] = 1.0
        stop[:] = last
        live = min(TILE, height - top) * min(TILE, width - left)
        _splat_tile(
            first, last, left, top, live, tile_list, shape, box, table, blocks, painted, transmittance, stop, weight, column, row
        )
        for i in range(min(TILE, height - top)):
            for j in range(min(TILE, width - left)):
                place = _place(i, j)
                pixel = (b * height + top + i) * width + left + j
                covered = 1.0 - transmittance[place]
                for c in range(channels):
                    image[pixel * channels + c] = painted[place * padded + c]
                alpha[pixel] = covered
                depth[pixel] = painted[place * padded + channels] / max(covered, MIN_ALPHA)
                remaining[pixel] = transmittance[place]
                stop_at[pixel] = stop[place]


@inline
def _load_tile_gradient(
    b: int, left: int, top: int, width: int, height: int, padded: int, channels: int, alpha: Array, depth: Array, remaining: Array,
    stop_at: Array, g_image: Array, g_alpha: Array, g_depth: Array, wanted: Array, planes: Array, transmittance: Array, behind: Array,
    stop: Array,
) -> int:  # fmt: skip
    """Fill the tile's scratch with the output gradients, pixel by pixel in `wanted` and again channel by channel in `planes`.

    Returns one past the last position that any pixel used.
    """
    end = 0
    stop[:] = 0
    transmittance[:] = 1.0
    for i in range(min(TILE, height - top)):
        for j in range(min(TILE, width - left)):
            place = _place(i, j)
            pixel = (b * height + top + i) * width + left + j
            for c in range(channels):
                wanted[place * padded + c] = g_image[pixel * channels + c]
            # expected depth = accumulated depth / max(alpha, floor)
            divisor = max(alpha[pixel], MIN_ALPHA)
            wanted[place * padded + channels] = g_depth[pixel] / divisor
            g_covered = float(g_alpha[pixel])
            if alpha[pixel] > MIN_ALPHA:
                g_covered -= g_depth[pixel] * depth[pixel] / divisor
            transmittance[place] = remaining[pixel]
            behind[place] = -g_covered * remaining[pixel]
            stop[place] = stop_at[pixel]
            end = max(end, stop_at[pixel])
            plane = (place // LANE_COUNT) * padded * LANE_COUNT + place % LANE_COUNT
            for c in range(channels + 1):
                planes[plane + c * LANE_COUNT] = wanted[place * padded + c]
    return end


@inline
def _splat_tile_gradient(
    first: int, last: int, end: int, left: int, top: int, tile: tuple, base: int, tile_list: Array, first_slot: Array, shape: Array,
    box: Array, table: Array, blocks: tuple, wanted: Array, planes: Array, transmittance: Array, behind: Array, stop: Array,
    weight: Array, column: Array, row: Array, pairs: Array,
) -> None:  # fmt: skip
    """Walk a tile back to front; each (Gaussian, tile) pair's gradient goes to its row of `pairs`: channels, then shape."""
    padded = LANES * len(blocks)
    stride = padded + SHAPE_SIZE
    columns, rows = load(column, 0, PIXELS), load(row, 0, PIXELS)
    zero = fill(0.0, columns)
    for position in range(last - 1, first - 1, -1):
        g = tile_list[position]
        s, o = g * SHAPE_SIZE, g * BOX_SIZE
        tile_column = box[o] // TILE
        slot = first_slot[g] - base + (tile[0] - box[o + 2] // TILE) * (_tiles_end(box[o + 1]) - tile_column) + tile[1] - tile_column
        slot *= stride
        channels = load(table, g * padded, blocks)
        g_channels = fill(0.0, channels)
        if position >= end:
            store(pairs, slot, g_channels)
            pairs[slot + padded : slot + stride] = 0.0
            continue
        x, y = shape[s] - left, shape[s + 1] - top
        conic_a, conic_b, conic_c, opacity = shape[s + 2], shape[s + 3], shape[s + 4], shape[s + 5]
        half_a, half_c = conic_a * 0.5, conic_c * 0.5
        across = _blocks(box[o], box[o + 1], left)
        down = _blocks(box[o + 2], box[o + 3], top)
        sum_x = sum_y = sum_xx = sum_xy = sum_yy = sum_o = zero
        for block_row in range(down[0], down[1]):
            dy = (y - SIDE * block_row) - rows
            fall_y = dy * dy * half_c
            shear = dy * conic_b
            for block_column in range(across[0], across[1]):
                block = block_row * TILE_BLOCKS + block_column
                place = block * LANE_COUNT
                dx = (x - SIDE * block_column) - columns
                sigma = dx * (dx * half_a + shear) + fall_y
                falloff = exp_negative(sigma)
                raw = falloff * opacity
                alpha = minimum(raw, ALPHA_CAP)
                hit = (alpha >= ALPHA_THRESHOLD) & (sigma >= 0.0) & (load(stop, place, PIXELS) > position)
                hits = bits(hit)
                if hits == 0:
                    continue
                inverse = 1.0 / (1.0 - alpha)
                after = load(transmittance, place, PIXELS)
                before = select(hit, after * inverse, after)
                weights = alpha * before
                store(transmittance, place, before)
                store(weight, 0, weights)
                while hits != 0:
                    lane = lowest_bit(hits)
                    hits &= hits - np.uint64(1)
                    g_channels = g_channels + load(wanted, (place + lane) * padded, blocks) * weight[lane]
                even, odd = zero, zero
                for c in range(0, padded, 2):
                    plane = (block * padded + c) * LANE_COUNT
                    even = even + load(planes, plane, PIXELS) * table[g * padded + c]
                    odd = odd + load(planes, plane + LANE_COUNT, PIXELS) * table[g * padded + c + 1]
                dot = select(hit, even + odd, 0.0)
                rest = load(behind, place, PIXELS)
                # dL/dalpha = T (c . g) - (what lies behind) / (1 - alpha)
                g_alpha = select(hit & (raw <= ALPHA_CAP), before * dot - rest * inverse, 0.0)
                store(behind, place, rest + weights * dot)
                sum_o = sum_o + falloff * g_alpha
                g_sigma = raw * g_alpha
                sum_x = sum_x + g_sigma * dx
                sum_y = sum_y + g_sigma * dy
                sum_xx = sum_xx + g_sigma * dx * dx
                sum_xy = sum_xy + g_sigma * dx * dy
                sum_yy = sum_yy + g_sigma * dy * dy
        store(pairs, slot, g_channels)
        moment_x, moment_y, slot = total(sum_x), total(sum_y), slot + padded
        pairs[slot] = -(conic_a * moment_x + conic_b * moment_y)
        pairs[slot + 1] = -(conic_b * moment_x + conic_c * moment_y)
        pairs[slot + 2] = -0.5 * total(sum_xx)
        pairs[slot + 3] = -total(sum_xy)
        pairs[slot + 4] = -0.5 * total(sum_yy)
        pairs[slot + 5] = total(sum_o)


@kernel
def splat_tiles_gradient(
    ticket: Array, frames: tuple, shape: Array, box: Array, table: Array, blocks: tuple, tile_start: Array, tile_list: Array,
    first_slot: Array, width: int, height: int, alpha: Array, depth: Array, remaining: Array, stop_at: Array,
    g_image: Array, g_alpha: Array, g_depth: Array, pairs: Array,
) -> None:  # fmt: skip
    """Backward pass of `splat_tiles`: one row of `pairs` for each (Gaussian, tile) pair.

    `frames` is (first frame, one past the last, number of the first frame's first pair).
    """
    padded = LANES * len(blocks)
    columns, rows = (width + TILE - 1) // TILE, (height + TILE - 1) // TILE
    channels = g_image.size // max(g_alpha.size, 1)
    wanted, planes = np.zeros(TILE_PIXELS * padded, table.dtype), np.zeros(TILE_PIXELS * padded, table.dtype)
    transmittance, behind = np.ones(TILE_PIXELS, table.dtype), np.zeros(TILE_PIXELS, table.dtype)
    weight = np.empty(LANE_COUNT, table.dtype)
    stop = np.empty(TILE_PIXELS, np.int32)
    column, row = _block_offsets(table)
    while True:
        tile = take_ticket(ticket) + frames[0] * columns * rows
        if tile >= frames[1] * columns * rows:
            break
        first, last = tile_start[tile], tile_start[tile + 1]
        if first == last:
            continue
        b, tile_row, tile_column = tile // (columns * rows), tile // columns % rows, tile % columns
        left, top = tile_column * TILE, tile_row * TILE
        end = _load_tile_gradient(
            b, left, top, width, height, padded, channels, alpha, depth, remaining, stop_at, g_image, g_alpha, g_depth,
            wanted, planes, transmittance, behind, stop,
        )  # fmt: skip
        _splat_tile_gradient(
            first, last, end, left, top, (tile_row, tile_column), frames[2], tile_list, first_slot, shape, box, table, blocks,
            wanted, planes, transmittance, behind, stop, weight, column, row, pairs,
        )  # fmt: skip


@kernel
def project_chunks_gradient(
    ticket: Array, frames: tuple, means: Array, quats: Array, scales: Array, camera: Array, count: int, width: int, height: int,
    blocks: tuple, num_tiles: Array, first_slot: Array, pairs: Array,
    g_means: Array, g_quats: Array, g_scales: Array, g_opacities: Array, g_features: Array, g_camera: Array,
) -> None:  # fmt: skip
    """Sum each Gaussian's pairs in their order and pull them back through the projection; camera gradients are a row a chunk."""
    padded = LANES * len(blocks)
    channels = g_features.size // max(g_opacities.size, 1)
    chunks = (count + CHUNK - 1) // CHUNK
    sums = np.empty(padded + SHAPE_SIZE, pairs.dtype)
    while True:
        task = take_ticket(ticket) + frames[0] * chunks
        if task >= frames[1] * chunks:
            break
        b, chunk = task // chunks, task % chunks
        pinhole, translation, rotation = _camera(camera, b)
        camera_sum = g_camera[task * CAMERA_SIZE : (task + 1) * CAMERA_SIZE]
        for g in range(b * count + chunk * CHUNK, b * count + min(count, (chunk + 1) * CHUNK)):
            if num_tiles[g] == 0:
                continue
            start = (first_slot[g] - frames[2]) * (padded + SHAPE_SIZE)
            channel_sum, shape_sum = load(pairs, start, blocks), load(pairs, start + padded, (0,))
            for _ in range(1, num_tiles[g]):
                start += padded + SHAPE_SIZE
                channel_sum = channel_sum + load(pairs, start, blocks)
                shape_sum = shape_sum + load(pairs, start + padded, (0,))
            store(sums, 0, channel_sum)
            store(sums, padded, shape_sum)
            g_features[g * channels : (g + 1) * channels] = sums[:channels]
            g_opacities[g] = sums[padded + 5]
            g_mean, g_quat, g_scale, g_rotation, g_translation, g_pinhole = project_gradient(
                _triple(means, 3 * g), _quaternion(quats, g), _triple(scales, 3 * g), rotation, translation, pinhole, width, height,
                float(sums[padded]), float(sums[padded + 1]), float(sums[padded + 2]), float(sums[padded + 3]),
                float(sums[padded + 4]), float(sums[channels]),
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
