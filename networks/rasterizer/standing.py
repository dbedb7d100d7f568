"""CPU kernel of where a photo's pixels stand in a picture: what `networks.compositing` does in tensors, in one pass.

In tensors its filters over neighbourhoods make some hundred pictures on the way, half of the time of a live picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from visa.networks.rasterizer.compiler import inline, kernel
from visa.networks.rasterizer.simd import take_ticket

ALPHA, SHOWN, PART, PHOTOS, PER_PHOTO = (
    0,
    1,
    2,
    3,
    4,
)  # channels of a frame's maps; motion (2), weight, trust of a photo
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)  # a kernel's plain numbers would make it float64
LEAST = np.float32(1e-4)  # weight by which a motion is divided
LEAST_ALPHA = np.float32(1e-3)  # by which a part's code is divided

# A photo's pixel is one of the surface asked for where their part codes (`networks.regions.part_code`) differ by less
# than the first, is none from the second on; chosen on validation windows.
SAME_PART, OTHER_PART = 0.1, 0.25
# A photo saw a surface at a slant where its pixels cover many of the picture's: streaks. From the second share of its
# density on it stands as a whole, below the first not at all; chosen on turned heads and frames of validation people.
SLANTED, UPRIGHT = 0.25, 0.6
# So far within its silhouette the splat is whole, and so far beside what the photo does not show its outline may lie
# (shares of the picture's side); so much the photo's matte may lack before its pixel counts less, and so much more
# until it does not count.
AMID, BESIDE, LEAST_FRINGE, FRINGE = 2 / 128, 6 / 128, 0.04, 0.12
LEAST_COVERED, COVERED = 0.2, 0.5  # share of shown Gaussians around a pixel from which on it counts, and as a whole


@inline
def _unit(value: Any) -> Any:
    return min(max(value, ZERO), ONE)


@inline
def _read(picture: np.ndarray, x: Any, y: Any) -> Any:
    """`picture [H,W]` at pixels x, y, bilinear, borders repeated."""
    height, width = picture.shape
    x, y = min(max(x, ZERO), np.float32(width - 1)), min(max(y, ZERO), np.float32(height - 1))
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    tx, ty = x - np.float32(left), y - np.float32(top)
    above = picture[top, left] * (ONE - tx) + picture[top, right] * tx
    below = picture[bottom, left] * (ONE - tx) + picture[bottom, right] * tx
    return above * (ONE - ty) + below * ty


# Rows are cut out before they are looped over: an index that may be negative keeps a loop from becoming vectors.


@inline
def _box(source: np.ndarray, reach: int, target: np.ndarray) -> None:
    """Means over squares of 2 `reach` + 1 px, zeros beyond the border."""
    height, width = source.shape
    line = np.zeros(width + 2 * reach, np.float32)
    inner, each = line[reach : reach + width], np.float32(1 / (2 * reach + 1) ** 2)
    for y in range(height):
        inner[:] = ZERO
        for other in range(max(y - reach, 0), min(y + reach + 1, height)):
            row = source[other]
            for x in range(width):
                inner[x] += row[x]
        row = target[y]
        row[:] = ZERO
        for step in range(2 * reach + 1):
            beside = line[step : step + width]
            for x in range(width):
                row[x] += beside[x]
        for x in range(width):
            row[x] *= each


@inline
def _least(source: np.ndarray, reach: int, target: np.ndarray) -> None:
    """Least value up to `reach` px beside each, of those in the picture."""
    height, width = source.shape
    line = np.full(width + 2 * reach, np.float32(np.inf))
    inner = line[reach : reach + width]
    for y in range(height):
        inner[:] = source[y]
        for other in range(max(y - reach, 0), min(y + reach + 1, height)):
            row = source[other]
            for x in range(width):
                inner[x] = np.minimum(row[x], inner[x])  # becomes a vector's, unlike `min`
        row = target[y]
        row[:] = inner
        for step in range(2 * reach + 1):
            beside = line[step : step + width]
            for x in range(width):
                row[x] = np.minimum(beside[x], row[x])


@inline
def _smooth(source: np.ndarray, target: np.ndarray) -> None:
    """Means over 3 x 3 px, borders repeated."""
    height, width = source.shape
    line, ninth = np.empty(width + 2, np.float32), np.float32(1 / 9)
    left, middle, right = line[:width], line[1 : width + 1], line[2:]
    for y in range(height):
        above, here, below, row = source[max(y - 1, 0)], source[y], source[min(y + 1, height - 1)], target[y]
        for x in range(width):
            middle[x] = above[x] + here[x] + below[x]
        line[0], line[width + 1] = line[1], line[width]
        for x in range(width):
            row[x] = (left[x] + middle[x] + right[x]) * ninth


@inline
def _density(maps: np.ndarray, first: int, place: np.ndarray, spare: np.ndarray, density: np.ndarray) -> None:
    """`networks.compositing._density` of the motion in channel `first`; `place [2,H,W]` is the motion, unsmoothed."""
    height, width = density.shape
    for axis in range(2):
        for y in range(height):
            for x in range(width):
                place[axis, y, x] = maps[first + axis, y, x] / max(maps[first + 2, y, x], LEAST)
        _smooth(place[axis], spare[axis])
    columns, rows = np.float32(width), np.float32(height)
    step_u, step_v = 2 * ONE / columns, 2 * ONE / rows
    raw = np.empty_like(density)
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        down = HALF / np.float32(below - above)
        v = HALF * step_v * np.float32(2 * y + 1) - ONE
        for x in range(width):
            left, right = max(x - 1, 0), min(x + 1, width - 1)
            across = HALF / np.float32(right - left)
            # places are motion and the pixel's own, whose derivative is one pixel a pixel
            u_x = (spare[0, y, right] - spare[0, y, left]) * across * columns + ONE
            u_y = (spare[0, below, x] - spare[0, above, x]) * down * columns
            v_x = (spare[1, y, right] - spare[1, y, left]) * across * rows
            v_y = (spare[1, below, x] - spare[1, above, x]) * down * rows + ONE
            u = spare[0, y, x] + HALF * step_u * np.float32(2 * x + 1) - ONE
            is_within = abs(u) < ONE + step_u and abs(spare[1, y, x] + v) < ONE + step_v
            share = (u_x * v_y - v_x * u_y - np.float32(SLANTED)) * np.float32(1 / (UPRIGHT - SLANTED))
            raw[y, x] = _unit(share) if is_within else ZERO
    _smooth(raw, density)


@kernel
def filter_maps(ticket: np.ndarray, maps: np.ndarray, reach: int, is_mean: bool, found: np.ndarray) -> None:
    """Means over squares, or least values, up to `reach` px beside each pixel of `maps [M,H,W]`."""
    while True:
        index = take_ticket(ticket)
        if index >= len(maps):
            break
        if is_mean:
            _box(maps[index], reach, found[index])
        else:
            _least(maps[index], reach, found[index])


@kernel
def stand_frames(
    ticket: np.ndarray, maps: np.ndarray, mattes: np.ndarray, parts: np.ndarray, reaches: tuple[int, int, int],
    near: np.ndarray, fits: np.ndarray,
) -> None:  # fmt: skip
    """Every frame.

    Args:
        ticket: counts the frames that are taken.
        maps: `[B*T,3+4K,H,W]`, channels as above.
        mattes, parts: `[B,K,P,P]`.
        reaches: px, of the means, of what counts as amid the person and of what lies beside the unseen.
        near: `[B*T,2+2K,H,W]`, written: means around each pixel of alpha, of what is shown, and of each photo's weight
            and trust.
        fits: `[B*T,K,H,W]`, written: how far each photo's pixel is right there; 0 where nothing is.
    """
    frames, _, height, width = maps.shape
    people, count, photo_size, _ = mattes.shape
    scale = HALF * np.float32(photo_size)
    rows, columns = ONE / np.float32(height), ONE / np.float32(width)
    amid, beside = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    density, hidden = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    place, spare = np.empty((2, height, width), np.float32), np.empty((2, height, width), np.float32)
    while True:
        frame = take_ticket(ticket)
        if frame >= frames:
            break
        person = frame * people // frames
        of_frame = maps[frame]
        _box(of_frame[ALPHA], reaches[0], near[frame, 0])
        _box(of_frame[SHOWN], reaches[0], near[frame, 1])
        _least(of_frame[ALPHA], reaches[1], amid)
        for y in range(height):
            for x in range(width):
                share = near[frame, 1, y, x] / max(near[frame, 0, y, x], LEAST)
                covered = _unit((share - np.float32(LEAST_COVERED)) * np.float32(1 / (COVERED - LEAST_COVERED)))
                hidden[y, x] = amid[y, x] * (covered - ONE)
        _least(hidden, reaches[2], beside)
        for k in range(count):
            first = PHOTOS + PER_PHOTO * k
            _box(of_frame[first + 2], reaches[0], near[frame, 2 + 2 * k])
            _box(of_frame[first + 3], reaches[0], near[frame, 3 + 2 * k])
            _density(of_frame, first, place, spare, density)
            matte, code = mattes[person, k], parts[person, k]
            for y in range(height):
                v = np.float32(2 * y + 1) * rows - ONE
                for x in range(width):
                    alpha, fit = of_frame[ALPHA, y, x], density[y, x]
                    if alpha <= ZERO or fit <= ZERO:
                        fits[frame, k, y, x] = ZERO
                        continue
                    u = np.float32(2 * x + 1) * columns - ONE
                    px = (u + place[0, y, x] + ONE) * scale - HALF
                    py = (v + place[1, y, x] + ONE) * scale - HALF
                    between = abs(_read(code, px, py) - of_frame[PART, y, x] / max(alpha, LEAST_ALPHA))
                    agreeing = _unit((np.float32(OTHER_PART) - between) * np.float32(1 / (OTHER_PART - SAME_PART)))
                    lacks = amid[y, x] - _read(matte, px, py) - np.float32(LEAST_FRINGE)
                    of_person = ONE + beside[y, x] * _unit(lacks * np.float32(1 / FRINGE))
                    fits[frame, k, y, x] = fit * agreeing * of_person
