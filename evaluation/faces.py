"""How far the face in the output is from the true one: its points, its pose and its expression, detected anew.

The points are those of MediaPipe's face mesh, found in the picture alone, as the tracker finds them. Who evaluates
hands the detector in (`FacePoints`): it belongs to the tracker, and needs the extra `track`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
# Frames [T, 3, H, W] in [0, 1] -> points [T, 478, 3] in px of those frames (z: relative depth in px); NaN: no face.
FacePoints = Callable[[Tensor], Floats]

NEEDS_DETECTOR = "needs the tracker's detector: pip install '.[track]'"
FOREHEAD, CHIN = 10, 152
# Points that sit on bone: forehead, temples, bridge and back of the nose, before the ears.
RIGID = (
    10,
    151,
    9,
    8,
    168,
    6,
    197,
    195,
    5,
    67,
    109,
    338,
    297,
    103,
    332,
    54,
    284,
    21,
    251,
    162,
    389,
    127,
    356,
    234,
    454,
)
LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415,
)  # fmt: skip
LIDS = (
    33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246,
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
BROWS = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46, 300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
IRISES = (468, 473)
MOVING = (*LIPS, *LIDS, *BROWS, *IRISES, CHIN)
KEYPOINT_SIDE = 256  # px: keypoint distances are told for a picture of this side, as is usual


class Similarity(NamedTuple):
    """`scale * points @ rotation.T + shift`."""

    scale: float
    rotation: Floats  # [3, 3]
    shift: Floats  # [3]

    def __call__(self, points: Floats) -> Floats:
        """Points [N, 3] moved."""
        return self.scale * points @ self.rotation.T + self.shift


def similarity(source: Floats, target: Floats) -> Similarity:
    """The similarity that takes points [N, 3] nearest to others by least squares (Umeyama 1991, eq. 40-42)."""
    a, b = source - source.mean(axis=0), target - target.mean(axis=0)
    left, values, right = np.linalg.svd(b.T @ a)
    signs = np.ones(3)
    signs[2] = np.sign(np.linalg.det(left @ right))
    rotation = (left * signs) @ right
    scale = float((values * signs).sum() / max(np.square(a).sum(), 1e-12))
    return Similarity(scale, rotation, target.mean(axis=0) - scale * source.mean(axis=0) @ rotation.T)


class FaceErrors(NamedTuple):
    """Of each pair of frames in which both faces were found, [N].

    expression: percent of the true face's height. pose: degrees. keypoints: px of a picture of KEYPOINT_SIDE.
    """

    expression: Floats
    pose: Floats
    keypoints: Floats


COLUMNS = dict(zip(FaceErrors._fields, ("aed", "apd", "akd"), strict=True))


def face_errors(points: Floats, truth: Floats, side: int) -> FaceErrors:
    """Distances between the faces of two videos.

    pose: angle of the rotation by which RIGID points lie nearest to the true ones. expression: mean distance of the
    MOVING points from the true ones once that similarity has been applied. keypoints: mean distance of all points in
    the picture's plane, nothing applied.

    Args:
        points, truth: [T, 478, 3] px, NaN where no face was found.
        side: of the frames, px.
    """
    expression, pose, keypoints = [], [], []
    for ours, true in zip(points, truth, strict=True):
        if not (np.isfinite(ours).all() and np.isfinite(true).all()):
            continue
        moved = similarity(ours[list(RIGID)], true[list(RIGID)])
        height = float(np.linalg.norm(true[FOREHEAD] - true[CHIN]))
        off = np.linalg.norm(moved(ours[list(MOVING)]) - true[list(MOVING)], axis=-1)
        expression.append(100 * off.mean() / max(height, 1e-6))
        pose.append(np.degrees(np.arccos(np.clip((np.trace(moved.rotation) - 1) / 2, -1, 1))))
        keypoints.append(np.linalg.norm(ours[:, :2] - true[:, :2], axis=-1).mean() * KEYPOINT_SIDE / side)
    return FaceErrors(*(np.asarray(column, float) for column in (expression, pose, keypoints)))


def face_distances(
    truth: Tensor, rows: Mapping[str, Tensor], face_points: FacePoints | None, every: int = 1
) -> dict[str, tuple[dict[str, float | None], str]]:
    """{column: (mean error of each row, why it is None or lacks one)}, of faces found anew in truth and rows alike.

    Args:
        truth: [T, 3, H, W] in [0, 1].
        rows: of the same frames, of any float type; clamped here.
        face_points: the detector; None measures nothing.
        every: read every n-th frame.
    """
    if face_points is None:
        return {column: ({}, NEEDS_DETECTOR) for column in COLUMNS.values()}
    true = face_points(truth[::every])
    errors = {
        name: face_errors(face_points(video[::every].float().clamp(0, 1)), true, truth.shape[-1])
        for name, video in rows.items()
    }
    missing = f"no face found in both of {len(true)} frame pairs"
    results: dict[str, tuple[dict[str, float | None], str]] = {}
    for measured, column in COLUMNS.items():
        values = {name: getattr(found, measured) for name, found in errors.items()}
        means = {name: float(value.mean()) if len(value) else None for name, value in values.items()}
        results[column] = (means, missing)
    return results
