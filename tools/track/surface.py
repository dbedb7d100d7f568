"""How the person's surface moves between frames, seen in the pixels: dense optical flow at points of the body model.

A landmark detector looks at each frame anew, so its points wander over the skin by a percent of the face, and by more
over clothes, where it sees shoulders and little else. Flow between two frames follows cloth, hair and skin to a
fraction of a pixel. It says nothing about where a shoulder is, but how the surface moved since another frame: the
fit takes places from the landmarks and motion from here.

Letters in shapes: N solved frames, K key frames, L pairs of a key frame and a frame, C candidates, S surface points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from visa.networks.body import BodyModel, BodyParams
from visa.networks.farthest import farthest_first, farthest_points
from visa.tools.track.detect import Detections
from visa.tools.track.read import read_frames
from visa.tools.track.render import fill_triangles

Floats = NDArray[np.float32]

MAX_SIDE = 480  # px; flow needs no more, and its time grows with the picture
MAX_KEY_FRAMES = 24
KEY_PERCENT = 4.0  # a key frame within this mean distance (percent of the face's height) of every frame is near enough
LINKS = 2  # key frames that each frame is compared with
NUM_POINTS = 200
CANDIDATE_STRIDE = 4  # every n-th vertex may become a surface point
DEPTH_TOLERANCE = 0.015  # m; a point farther than this behind the nearest triangle of its pixel is hidden
CONSISTENCY_PERCENT = 0.6  # disagreement of flow there and back, in percent of the face's height, that halves trust
LIKENESS_LEVELS = 12.0  # mean difference of the two patches, of 255 grey levels, that halves trust
PATCH = np.stack(np.meshgrid(*[np.arange(-4, 5, 2)] * 2), -1).reshape(-1, 1, 2).astype(np.float32)  # [25, 1, 2] px
NONE = np.empty(0, np.float32)  # no second map, no flow to begin with
# Joints whose surface takes no part: legs and feet, out of a half-body picture, and hands, which flow loses.
_LEFT_OUT = (1, 2, 4, 5, 7, 8, 10, 11, 20, 21, *range(25, 55))


@dataclass
class SurfaceMotion:
    """Measured motion of surface points from key frames to other frames.

    Attributes:
        vertex_ids: `[S]` the body model's vertices.
        key, frame: `[L]` indices among the solved frames.
        shift: `[L,S,2]` px from a point's place in the key frame to its place in the frame.
        weight: `[L,S]` trust in [0,1]; 0 where the point is hidden, or flow there and back disagree.
    """

    vertex_ids: NDArray[np.int64]
    key: NDArray[np.int64]
    frame: NDArray[np.int64]
    shift: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values [L,S]`, weighted by trust."""
        return (self.weight * values).sum() / self.weight.sum().clamp_min(1)


def measure_motion(
    source: Path,
    detections: Detections,
    frames: NDArray[np.int64],
    body: BodyModel,
    params: BodyParams,
    intrinsics: Floats,
    progress: Callable[..., Any],
) -> SurfaceMotion | None:
    """Follow surface points through the video; None where there is nothing to follow (one frame a shot).

    Args:
        source: the video that `detections` were made of.
        detections: for masks, sizes and the faces' heights.
        frames: `[N]` the solved frames' numbers in the video.
        body: the whole body model.
        params: `[N,...]` its fit to the landmarks.
        intrinsics: `[3,3]` px.
        progress: as `tqdm`.
    """
    if len(frames) < 2:
        return None
    scale = min(1.0, MAX_SIDE / max(detections.width, detections.height))
    candidates = _candidates(body)
    places = _project(body.subset(candidates), params, intrinsics)[0] * scale  # [N, C, 2]
    height = float(np.nanmedian(detections.face_height[frames])) * scale
    size = (round(detections.height * scale), round(detections.width * scale))
    keys, distance = _key_frames(_clamped(places, size), detections.shot[frames], height)
    seen = np.stack([_visible(body, params, key, intrinsics, scale, size, candidates) for key in keys])  # [K, C]
    chosen = _spread(body.v_template[candidates].numpy(), seen.any(0))
    if len(chosen) == 0:
        return None
    places, seen = places[:, chosen], seen[:, chosen]
    follower = _Follower(_pictures(source, frames[keys], size), places[keys], seen, CONSISTENCY_PERCENT / 100 * height)
    links = _links(distance, keys, detections.shot[frames])
    rows = _follow(source, detections, frames, size, links, follower, keys, progress)
    if not rows:
        return None
    key, frame, shift, weight = (np.asarray(value) for value in zip(*rows, strict=True))
    return SurfaceMotion(
        vertex_ids=candidates[chosen].numpy(),
        key=key,
        frame=frame,
        shift=torch.from_numpy(shift.astype(np.float32)) / scale,
        weight=torch.from_numpy(weight.astype(np.float32)),
    )


def _candidates(body: BodyModel) -> Tensor:
    """`[C]` vertices of the skin of head, torso and arms."""
    is_skin = body.part == body.part_names.index("skin")
    taken = body.lbs_weights[:, list(_LEFT_OUT)].sum(-1) < 0.5
    return torch.nonzero(is_skin & taken)[::CANDIDATE_STRIDE, 0]


def _project(body: BodyModel, params: BodyParams, intrinsics: Floats) -> tuple[Floats, Floats]:
    """Vertices in px `[N,V,2]` and their depth in m `[N,V]`, a few frames at a time."""
    pixels, depths = [], []
    for start in range(0, len(params.expression), 64):
        part = _rows(params, slice(start, start + 64))
        vertices = body(part)[0].numpy() * np.array([1, -1, -1], np.float32)
        depth = np.maximum(vertices[..., 2], 0.05)
        pixels.append(vertices[..., :2] / depth[..., None] * intrinsics[(0, 1), (0, 1)] + intrinsics[:2, 2])
        depths.append(depth)
    return np.concatenate(pixels), np.concatenate(depths)


def _rows(params: BodyParams, frames: slice) -> BodyParams:
    """Of some frames; there is one shape."""
    return params.map(lambda value: value if value.dim() == 1 else value[frames])


def _clamped(places: Floats, size: tuple[int, int]) -> Floats:
    """Places outside the picture brought to its edge: how they move out there matters to no flow."""
    return np.clip(places, 0, np.array([size[1], size[0]], np.float32))


def _key_frames(places: Floats, shot: NDArray[np.int64], height: float) -> tuple[NDArray[np.int64], Floats]:
    """Indices `[K]` of frames that stand for the others (farthest-point sampling; one at least in each shot), and the
    distance `[K,N]` of each frame from each, percent of the face's height; infinite across a cut.
    """

    def far(key: int) -> Floats:
        away = np.linalg.norm(places - places[key], axis=-1).mean(-1) * (100 / height)
        return np.where(shot == shot[key], away, np.inf)

    middle = int(np.argmin(np.linalg.norm(places - places.mean(0), axis=-1).mean(-1)))
    keys = farthest_first(lambda key: torch.from_numpy(far(key)), MAX_KEY_FRAMES, middle, KEY_PERCENT)
    return np.asarray(keys), np.stack([far(key) for key in keys])


def _links(distance: Floats, keys: NDArray[np.int64], shot: NDArray[np.int64]) -> dict[int, list[int]]:
    """For each frame the rows of `keys` with which it is compared: the nearest of its shot, not itself."""
    links = {}
    for frame in range(distance.shape[1]):
        order = [k for k in distance[:, frame].argsort() if keys[k] != frame and shot[keys[k]] == shot[frame]]
        links[frame] = order[:LINKS]
    return links


def _visible(
    body: BodyModel,
    params: BodyParams,
    key: int,
    intrinsics: Floats,
    scale: float,
    size: tuple[int, int],
    candidates: Tensor,
) -> NDArray[np.bool_]:
    """`[C]` which candidates a frame shows: inside the picture, and no triangle of the body before them."""
    one = _rows(params, slice(key, key + 1))
    pixels, depth = (value[0].astype(np.float64) for value in _project(body, one, intrinsics))
    faces = body.faces.numpy().astype(np.int64)
    nearest = fill_triangles(pixels * scale, depth, faces, *size)
    at = np.floor(pixels[candidates] * scale).astype(int)
    inside = ((at >= 0) & (at < (size[1], size[0]))).all(-1)
    at = np.clip(at, 0, (size[1] - 1, size[0] - 1))
    triangle = nearest[at[:, 1], at[:, 0]]
    front = depth[faces[triangle]].mean(-1)
    return inside & (triangle >= 0) & (depth[candidates] < front + DEPTH_TOLERANCE)


def _spread(points: Floats, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Indices of at most NUM_POINTS of `points [C,3]`, evenly spread over those allowed (farthest-point sampling)."""
    left = np.flatnonzero(allowed)
    if len(left) <= NUM_POINTS:
        return left
    return np.sort(left[farthest_points(torch.from_numpy(points[left]), NUM_POINTS)])


def _grey(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """An RGB frame as grey of `size` (height, width)."""
    return np.asarray(Image.fromarray(frame).convert("L").resize(size[::-1], Image.Resampling.BOX))


def _pictures(source: Path, numbers: NDArray[np.int64], size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Grey frames of these numbers, in their order."""
    wanted = set(numbers.tolist())
    found = {}
    for number, frame in enumerate(read_frames(source)):
        if number in wanted:
            found[number] = _grey(frame, size)
            if len(found) == len(wanted):
                break
    return [found[number] for number in numbers.tolist()]


class _Follower:
    """Flow from key frames to a frame, and back as a check.

    Args:
        pictures: K grey key frames.
        places: `[K,S,2]` px of the points in them.
        seen: `[K,S]` whether they show the points.
        tolerance: px of disagreement at which trust is a half.
    """

    def __init__(
        self, pictures: list[NDArray[np.uint8]], places: Floats, seen: NDArray[np.bool_], tolerance: float
    ) -> None:
        import cv2

        self.cv2 = cv2
        self.optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.pictures, self.places, self.seen, self.tolerance = pictures, places, seen, tolerance

    def read(self, picture: NDArray[Any], places: Floats) -> Floats:
        """Values of `picture [H,W]` or `[H,W,2]` at `places [...,S,2]` px, bilinear; pixel centres at +0.5."""
        at = np.ascontiguousarray(places - 0.5).reshape(-1, *places.shape[-2:])
        found = self.cv2.remap(picture, at, NONE, self.cv2.INTER_LINEAR, borderMode=self.cv2.BORDER_REPLICATE)
        return np.asarray(found, np.float32).reshape(*places.shape[:-1], *picture.shape[2:])

    def _flow(self, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Floats:
        """`[H,W,2]` px."""
        return np.asarray(self.optical_flow.calc(before, after, NONE), np.float32)

    def __call__(self, k: int, picture: NDArray[np.uint8], key_mask: Floats, mask: Floats) -> tuple[Floats, Floats]:
        """Shift `[S,2]` px and trust `[S]` from key frame `k` to the grey `picture`; masks `[H,W]` in [0,1]."""
        start = self.places[k]
        there = self.read(self._flow(self.pictures[k], picture), start)
        end = start + there
        back = self.read(self._flow(picture, self.pictures[k]), end)
        off = np.linalg.norm(there + back, axis=-1) / self.tolerance
        # Flow is smooth, and may lead there and back to a hand that has come before the point: compare what is there.
        unlike = self.read(self.pictures[k], start + PATCH) - self.read(picture, end + PATCH)
        unlike = np.abs(unlike).mean(0) / LIKENESS_LEVELS
        trust = np.where(np.maximum(off, unlike) < 3, 1 / ((1 + off**2) * (1 + unlike**2)), 0)
        inside = ((end > 0) & (end < picture.shape[::-1])).all(-1)
        person = np.clip(4 * np.minimum(self.read(key_mask, start), self.read(mask, end)) - 2.5, 0, 1)
        return there, trust * inside * person * self.seen[k]


def _follow(
    source: Path,
    detections: Detections,
    frames: NDArray[np.int64],
    size: tuple[int, int],
    links: dict[int, list[int]],
    follower: _Follower,
    keys: NDArray[np.int64],
    progress: Callable[..., Any],
) -> list[tuple[int, int, Floats, Floats]]:
    """Rows (key frame, frame, shift, trust), the first two as indices among the solved frames."""

    def mask_of(index: int) -> Floats:
        small = Image.fromarray(detections.mask[frames[index]])
        return np.asarray(small.resize(size[::-1], Image.Resampling.BILINEAR), np.float32) / 255

    key_masks = [mask_of(key) for key in keys]
    at = {int(number): index for index, number in enumerate(frames)}
    rows = []
    for number, picture in enumerate(
        progress(read_frames(source), total=detections.num_frames, desc="follow", unit="frame")
    ):
        if number not in at:
            continue
        index = at[number]
        grey, mask = _grey(picture, size), mask_of(index)
        for k in links[index]:
            rows.append((int(keys[k]), index, *follower(k, grey, key_masks[k], mask)))
    return rows
