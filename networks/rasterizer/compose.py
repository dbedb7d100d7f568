"""CPU kernel of pictures larger than the splat: maps are enlarged and photos read, pixel by pixel, in one pass.

The same in tensors (`networks.detail`) makes some thirty pictures on the way, and reads photos where none is shown.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from visa.networks.rasterizer.compiler import inline, kernel
from visa.networks.rasterizer.simd import take_ticket

CUBIC = -0.75  # Keys' parameter, as torch has it
# Channels of a frame's maps: RGB, alpha; the pattern's motion (2), weight and share; then the same of each photo.
PATTERN, PHOTOS, PER_LAYER = 4, 8, 4


@inline
def _cubic(t: float) -> tuple[float, float, float, float]:
    """Weights of four neighbours for a place `t` past the second of them."""
    far, near, back, last = t + 1, t, 1 - t, 2 - t
    return (
        ((CUBIC * far - 5 * CUBIC) * far + 8 * CUBIC) * far - 4 * CUBIC,
        ((CUBIC + 2) * near - (CUBIC + 3)) * near * near + 1,
        ((CUBIC + 2) * back - (CUBIC + 3)) * back * back + 1,
        ((CUBIC * last - 5 * CUBIC) * last + 8 * CUBIC) * last - 4 * CUBIC,
    )


@inline
def _read_cubic(picture: np.ndarray, x: float, y: float, found: np.ndarray) -> None:
    """RGB of `picture [3,H,W]` at pixels x, y (0 is the first one's centre), borders repeated, clamped to [0,1]."""
    height, width = picture.shape[1:]
    left, top = math.floor(x), math.floor(y)
    wx, wy = _cubic(np.float32(x - left)), _cubic(np.float32(y - top))
    left, top = int(min(max(left, -4), width + 4)), int(min(max(top, -4), height + 4))
    for channel in range(3):
        total = np.float32(0)
        for i in range(4):
            row = picture[channel, min(max(top - 1 + i, 0), height - 1)]
            if 1 <= left < width - 2:
                part = row[left - 1] * wx[0] + row[left] * wx[1] + row[left + 1] * wx[2] + row[left + 2] * wx[3]
            else:
                part = np.float32(0)
                for j in range(4):
                    part += row[min(max(left - 1 + j, 0), width - 1)] * wx[j]
            total += wy[i] * part
        found[channel] = min(max(total, np.float32(0)), np.float32(1))


@inline
def _read_linear(picture: np.ndarray, x: Any, y: Any) -> Any:
    """`picture [H,W]` at pixels x, y, borders repeated."""
    height, width = picture.shape
    x, y = min(max(x, np.float32(0)), np.float32(width - 1)), min(max(y, np.float32(0)), np.float32(height - 1))
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    tx, ty = np.float32(x - left), np.float32(y - top)
    above = picture[top, left] * (1 - tx) + picture[top, right] * tx
    below = picture[bottom, left] * (1 - tx) + picture[bottom, right] * tx
    return above * (1 - ty) + below * ty


@inline
def _between(place: int, size: int, output: int) -> tuple[int, int, Any]:
    """The two of `size` pixels around pixel `place` of `output`, and how far it lies towards the second."""
    at = max((place + np.float32(0.5)) * np.float32(size / output) - np.float32(0.5), np.float32(0))
    first = int(at)
    return first, min(first + 1, size - 1), np.float32(at - first)


@inline
def _line(lines: np.ndarray, channel: int, left: int, right: int, t: Any) -> Any:
    """Of a channel between two pixels of a row."""
    return lines[channel, left] * (1 - t) + lines[channel, right] * t


@kernel
def compose_rows(
    ticket: np.ndarray, maps: np.ndarray, photos: np.ndarray, mattes: np.ndarray, pattern: np.ndarray, reach: float,
    textured: np.ndarray, further: np.ndarray,
) -> None:  # fmt: skip
    """Every row of every frame.

    Args:
        ticket: counts the rows that are taken.
        maps: `[B*T,8+4K,S,S]`, channels as above; the pattern's share is 0 where there is none.
        photos, mattes: `[B,K,3,P,P]` and `[B,K,P,P]`.
        pattern: `[B,3,h,w]`, covers places from -`reach` to `reach`.
        reach: of the pattern.
        textured: `[B*T,3,O,O]`, written.
        further: `[B*T,2,O,O]`, written: coverage, the photos' share.
    """
    frames, channels, size = maps.shape[:3]
    people, count, _, photo_size = photos.shape[:4]
    output = textured.shape[2]
    lines = np.empty((channels, size), np.float32)
    read, color = np.empty(3, np.float32), np.empty(3, np.float32)
    half = np.float32(0.5)
    left, right = np.empty(output, np.int64), np.empty(output, np.int64)
    towards = np.empty(output, np.float32)
    for x in range(output):
        left[x], right[x], towards[x] = _between(x, size, output)
    while True:
        row = take_ticket(ticket)
        if row >= frames * output:
            break
        frame, y = row // output, row % output
        person = frame * people // frames
        above, below, ty = _between(y, size, output)
        for c in range(channels):
            for x in range(size):
                lines[c, x] = maps[frame, c, above, x] * (1 - ty) + maps[frame, c, below, x] * ty
        v = np.float32((2 * y + 1) / output - 1)
        for x in range(output):
            a, b, t = left[x], right[x], towards[x]
            u = np.float32((2 * x + 1) / output - 1)
            for c in range(3):
                color[c] = _line(lines, c, a, b, t)
            alpha, share = _line(lines, 3, a, b, t), _line(lines, PATTERN + 3, a, b, t)
            if share > 0:
                weight = max(_line(lines, PATTERN + 2, a, b, t), np.float32(1e-4))
                px, py = _line(lines, PATTERN, a, b, t) / weight, _line(lines, PATTERN + 1, a, b, t) / weight
                px = ((u + px) / np.float32(reach) + 1) * (half * pattern.shape[3]) - half
                py = ((v + py) / np.float32(reach) + 1) * (half * pattern.shape[2]) - half
                _read_cubic(pattern[person], px, py, read)
                for c in range(3):
                    color[c] += share * (read[c] - color[c])
            base0, base1, base2 = color[0], color[1], color[2]
            coverage, total = alpha, np.float32(0)
            for k in range(count):
                first = PHOTOS + PER_LAYER * k
                share = _line(lines, first + 3, a, b, t)
                if share > 0:
                    weight = max(_line(lines, first + 2, a, b, t), np.float32(1e-4))
                    px = (u + _line(lines, first, a, b, t) / weight + 1) * (half * photo_size) - half
                    py = (v + _line(lines, first + 1, a, b, t) / weight + 1) * (half * photo_size) - half
                    _read_cubic(photos[person, k], px, py, read)
                    color[0] += share * (read[0] - base0)
                    color[1] += share * (read[1] - base1)
                    color[2] += share * (read[2] - base2)
                    coverage += share * (_read_linear(mattes[person, k], px, py) - alpha)
                    total += share
            for c in range(3):
                textured[frame, c, y, x] = color[c]
            further[frame, 0, y, x] = coverage
            further[frame, 1, y, x] = total
