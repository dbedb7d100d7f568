"""CPU kernel of pictures of the splat's size or a larger one: maps are enlarged and photos read, in one pass.

The same in tensors (`networks.composition`) makes some thirty pictures on the way, and reads photos where none is
shown. Maps and photos have their channels together: a pixel's are one vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from visa.networks.rasterizer.compiler import inline, kernel
from visa.networks.rasterizer.simd import LANES, load, store, take_ticket

CUBIC = -0.75  # Keys' parameter, as torch has it
# Channels of a frame's maps: RGB, alpha; the pattern's motion (2), weight and share; then the same of each photo.
PATTERN, PHOTOS, PER_LAYER = 4, 8, 4
ZERO, HALF, ONE, TWO, THREE = (
    np.float32(value) for value in (0, 0.5, 1, 2, 3)
)  # a kernel's plain numbers would make it float64
LEAST = np.float32(1e-4)  # weight by which a motion is divided
BORDER = 4  # px by which a picture's border is repeated: further out nothing changes
BEYOND = np.float32(BORDER)
EIGHT, SIXTEEN = (0,), (0, 0)  # ask `load` for so many lanes
# Weights of four neighbours for a place t past the second of them: factors of t^3, t^2, t and 1.
WEIGHTS = (
    (CUBIC, -2 * CUBIC, CUBIC, 0.0),
    (CUBIC + 2, -CUBIC - 3, 0.0, 1.0),
    (-CUBIC - 2, 2 * CUBIC + 3, -CUBIC, 0.0),
    (-CUBIC, CUBIC, 0.0, 0.0),
)
PIXEL = 4  # values of a picture's pixel: RGB and matte
FACTORS = np.repeat(np.asarray(WEIGHTS, np.float32).T, PIXEL, axis=1)  # of a vector of four neighbours' pixels


@inline
def _cubic(t: Any) -> tuple[Any, Any, Any, Any]:
    """Weights of four neighbours for a place `t` past the second of them."""
    c = np.float32(CUBIC)
    return (
        ((c * t - TWO * c) * t + c) * t,
        ((c + TWO) * t - (c + THREE)) * t * t + ONE,
        (((TWO * c + THREE) - (c + TWO) * t) * t - c) * t,
        (c - c * t) * t * t,
    )


@inline
def _unit(value: Any) -> Any:
    return min(max(value, ZERO), ONE)


@inline
def _read(
    flat: np.ndarray, first: int, height: int, width: int, x: Any, y: Any, factors: np.ndarray, sums: np.ndarray
) -> tuple[Any, Any, Any, Any]:
    """RGB and matte of a picture at pixels x, y (0 is the first one's centre), borders repeated, clamped to [0,1].

    Args:
        flat: pictures `[...,height + 2 BORDER,width + 2 BORDER,PIXEL]`.
        first: where the picture begins in them.
        height, width: its size, without the border.
        x, y: the place.
        factors: FACTORS, flat.
        sums: 16 places to work in.
    """
    x = min(max(x + BEYOND, ONE), np.float32(width) + BEYOND + BEYOND - THREE)
    y = min(max(y + BEYOND, ONE), np.float32(height) + BEYOND + BEYOND - THREE)
    left, top = int(x), int(y)  # rounded towards zero, which for what is positive is a floor of one instruction
    tx, wy = x - np.float32(left), _cubic(y - np.float32(top))
    line = PIXEL * (width + 2 * BORDER)
    start = first + (top - 1) * line + (left - 1) * PIXEL
    rows = load(flat, start, SIXTEEN) * wy[0] + load(flat, start + line, SIXTEEN) * wy[1]
    rows = rows + load(flat, start + 2 * line, SIXTEEN) * wy[2] + load(flat, start + 3 * line, SIXTEEN) * wy[3]
    columns = load(factors, 0, SIXTEEN) * tx + load(factors, 16, SIXTEEN)
    columns = (columns * tx + load(factors, 32, SIXTEEN)) * tx + load(factors, 48, SIXTEEN)
    store(sums, 0, rows * columns)
    return (
        _unit(sums[0] + sums[4] + sums[8] + sums[12]),
        _unit(sums[1] + sums[5] + sums[9] + sums[13]),
        _unit(sums[2] + sums[6] + sums[10] + sums[14]),
        _unit(sums[3] + sums[7] + sums[11] + sums[15]),
    )


@inline
def _between(place: int, size: int, ratio: Any) -> tuple[int, int, Any]:
    """The two of `size` pixels around pixel `place` of `size / ratio`, and how far it lies towards the second."""
    at = max((np.float32(place) + HALF) * ratio - HALF, ZERO)
    first = int(at)
    return first, min(first + 1, size - 1), at - np.float32(first)


@inline
def _enlarge_row(above: np.ndarray, below: np.ndarray, ty: Any, line: np.ndarray) -> None:
    """Values between two rows."""
    for i in range(line.size):
        line[i] = above[i] * (ONE - ty) + below[i] * ty


@kernel
def compose_rows(
    ticket: np.ndarray, maps: np.ndarray, photos: np.ndarray, sizes: tuple, pattern: np.ndarray, cloth: tuple,
    reach: float, textured: np.ndarray, further: np.ndarray,
) -> None:  # fmt: skip
    """Every row of every frame.

    Args:
        ticket: counts the rows that are taken.
        maps: `[B*T,S,S*C]`, the C channels of a pixel together, as above, and more up to a multiple of LANES; the
            pattern's share is 0 where there is none.
        photos: of `[B,K,P + 2 BORDER,P + 2 BORDER,PIXEL]`, flat.
        sizes: B, K and P.
        pattern: of `[B,h + 2 BORDER,w + 2 BORDER,PIXEL]`, flat; covers places from -`reach` to `reach`.
        cloth: its h and w.
        reach: of the pattern.
        textured: `[B*T,3,O,O]`, written.
        further: `[B*T,2,O,O]`, written: coverage, the photos' share.
    """
    frames, size = maps.shape[:2]
    people, count, side = sizes
    channels, output = maps.shape[2] // size, textured.shape[2]
    factors, sums = FACTORS.copy().reshape(-1), np.zeros(16, np.float32)
    line, values = np.empty(size * channels, np.float32), np.empty(channels, np.float32)
    photo_size = (side + 2 * BORDER) ** 2 * PIXEL
    cloth_size = (cloth[0] + 2 * BORDER) * (cloth[1] + 2 * BORDER) * PIXEL
    scale, wide, high = HALF * np.float32(side), HALF * np.float32(cloth[1]), HALF * np.float32(cloth[0])
    far, step, ratio = ONE / np.float32(reach), ONE / np.float32(output), np.float32(size) / np.float32(output)
    while True:
        row = take_ticket(ticket)
        if row >= frames * output:
            break
        frame, y = row // output, row % output
        person = frame * people // frames
        above, below, ty = _between(y, size, ratio)
        _enlarge_row(maps[frame, above], maps[frame, below], ty, line)
        v = np.float32(2 * y + 1) * step - ONE
        for x in range(output):
            left, right, tx = _between(x, size, ratio)
            for c in range(0, channels, LANES):
                before, after = load(line, left * channels + c, EIGHT), load(line, right * channels + c, EIGHT)
                store(values, c, before * (ONE - tx) + after * tx)
            u = np.float32(2 * x + 1) * step - ONE
            share = values[PATTERN + 3]
            red, green, blue, alpha = values[0], values[1], values[2], values[3]
            if share > ZERO:
                weight = ONE / max(values[PATTERN + 2], LEAST)
                px = ((u + values[PATTERN] * weight) * far + ONE) * wide - HALF
                py = ((v + values[PATTERN + 1] * weight) * far + ONE) * high - HALF
                r, g, b, _ = _read(pattern, person * cloth_size, cloth[0], cloth[1], px, py, factors, sums)
                red, green, blue = red + share * (r - red), green + share * (g - green), blue + share * (b - blue)
            below_red, below_green, below_blue, coverage, total = red, green, blue, alpha, ZERO
            for k in range(count):
                first = PHOTOS + PER_LAYER * k
                share = values[first + 3]
                if share > ZERO:
                    weight = ONE / max(values[first + 2], LEAST)
                    px = (u + values[first] * weight + ONE) * scale - HALF
                    py = (v + values[first + 1] * weight + ONE) * scale - HALF
                    r, g, b, matte = _read(photos, (person * count + k) * photo_size, side, side, px, py, factors, sums)
                    red, green = red + share * (r - below_red), green + share * (g - below_green)
                    blue = blue + share * (b - below_blue)
                    coverage += share * (matte - alpha)
                    total += share
            textured[frame, 0, y, x], textured[frame, 1, y, x], textured[frame, 2, y, x] = red, green, blue
            further[frame, 0, y, x] = coverage
            further[frame, 1, y, x] = total
