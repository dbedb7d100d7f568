"""What the fit is held to: the detections of the frames that it solves, each point with its trust.

Letters in shapes: T frames of the clip, N solved frames, P points.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from visa.tools.track.arms import PALM, ArmPoints
from visa.tools.track.correspond import Landmarks
from visa.tools.track.detect import NUM_FACE_POINTS, Detections
from visa.tools.track.options import FitOptions

Floats = NDArray[np.float32]

ARM_POINTS = ((11, 13, 15), (12, 14, 16))  # the detector's shoulder, elbow, wrist; left, right
STEADY_FRAMES = 9  # in most of which a hand is found
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip


@dataclass
class Targets:
    """Detections of the N solved frames as tensors; absent points have weight 0 and no NaN."""

    frames: NDArray[np.int64]  # [N] index into the clip
    face: Tensor  # [N, 478, 2] px
    face_weight: Tensor  # [N, 478]
    pose: Tensor  # [N, P, 2] px, rows of `Landmarks.pose_index`
    pose_weight: Tensor  # [N, P]
    hands: Tensor  # [N, 2, 21, 2] px, left then right
    hand_weight: Tensor  # [N, 2]
    arm_seen: Tensor  # [N, 6, 1] see `arms_seen`, in the order of ARMS
    face_height: Tensor  # [N] px
    triples: Tensor  # [M, 3] consecutive solved frames of one shot, for second differences


def solved_frames(detections: Detections, options: FitOptions) -> NDArray[np.int64]:
    """Frames with a face, and gaps between them that are short and within one shot."""
    has_face, shot = detections.has_face, detections.shot
    keep = has_face.copy()
    seen = np.flatnonzero(has_face)
    for start, stop in pairwise(seen):
        if 1 < stop - start <= options.max_gap_seconds * detections.fps + 1 and shot[start] == shot[stop]:
            keep[start:stop] = True
    return np.flatnonzero(keep)


def coarse_frames(frames: NDArray[np.int64], detections: Detections, options: FitOptions) -> NDArray[np.int64]:
    """Every n-th solved frame that shows a face, with the first and last of each shot."""
    seen = frames[detections.has_face[frames]]
    stride = max(options.coarse_stride, -(-len(seen) // options.max_coarse_frames))
    if len(seen) <= 2 * stride:
        return seen
    shot = detections.shot[seen]
    ends = np.flatnonzero(np.r_[True, shot[1:] != shot[:-1]] | np.r_[shot[1:] != shot[:-1], True])
    return seen[np.union1d(np.arange(0, len(seen), stride), ends)]


def targets_of(detections: Detections, landmarks: Landmarks, frames: NDArray[np.int64], options: FitOptions) -> Targets:
    """Gather the detections of `frames`, weighted by how far each point can be trusted."""
    known = detections.has_face[frames]
    face = np.nan_to_num(detections.face[frames, :, :2])
    weight = np.ones((len(frames), NUM_FACE_POINTS), np.float32)
    weight[:, list(FACE_OVAL)] = options.oval_weight
    height = interpolate(detections.face_height[frames])
    for iris, (upper, lower) in ((range(468, 473), (159, 145)), (range(473, 478), (386, 374))):
        opening = np.linalg.norm(face[:, upper] - face[:, lower], axis=-1) / height
        # Behind a closing lid the detector guesses the iris.
        weight[:, list(iris)] = options.iris_weight * np.clip((opening - 0.01) / 0.02, 0, 1)[:, None]
    for hand in (detections.left_hand, detections.right_hand):
        # A hand before the face is found in some frames only: distrust what it covers a few frames before and after,
        # too.
        near = [np.clip(frames + shift, 0, detections.num_frames - 1) for shift in (-6, -4, -2, 0, 2, 4, 6)]
        weight *= 1 - 0.9 * np.max([covered(face, hand[index, :, :2]) for index in near], axis=0)
    weight *= known[:, None]

    visibility = np.nan_to_num(detections.pose[:, landmarks.pose_index, 3])
    visibility = median_in_time(np.clip((visibility - 0.5) / 0.4, 0, 1))[frames]
    pose = np.nan_to_num(detections.pose[frames][:, landmarks.pose_index, :2])
    outside = ((pose < 0) | (pose > (detections.width, detections.height))).any(-1)
    hands = np.stack([detections.left_hand[frames, :, :2], detections.right_hand[frames, :, :2]], 1)
    hand_weight = np.isfinite(hands[:, :, 0, 0]) * hands_seen(detections)[frames]
    arm_seen = arms_seen(detections)[frames].transpose(0, 2, 1).reshape(len(frames), 6, 1)
    steps = (np.diff(frames) == 1) & (np.diff(detections.shot[frames]) == 0)
    first = np.flatnonzero(steps[:-1] & steps[1:])
    return Targets(
        frames=frames,
        face=torch.from_numpy(face),
        face_weight=torch.from_numpy(weight.astype(np.float32)),
        pose=torch.from_numpy(pose),
        pose_weight=torch.from_numpy((visibility * np.where(outside, 0.3, 1)).astype(np.float32)),
        hands=torch.from_numpy(np.nan_to_num(hands)),
        hand_weight=torch.from_numpy(hand_weight.astype(np.float32)),
        arm_seen=torch.from_numpy(arm_seen),
        face_height=torch.from_numpy(height.astype(np.float32)),
        triples=torch.from_numpy(np.stack([first, first + 1, first + 2], -1)),
    )


def interpolate(values: Floats) -> Floats:
    """Fill NaN rows of [N, ...] linearly from their neighbours: start values and scales only, never results."""
    flat = values.reshape(len(values), -1).copy()
    known = np.isfinite(flat).all(1)
    for column in range(flat.shape[1]):
        flat[~known, column] = np.interp(np.flatnonzero(~known), np.flatnonzero(known), flat[known, column])
    return flat.reshape(values.shape)


def median_in_time(values: Floats, radius: int = 4) -> Floats:
    """Running median of [N, ...] along the first axis, so that a limb does not flicker in and out."""
    padded = np.pad(values, ((radius, radius), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0), axis=-1)


def covered(points: Floats, hand: Floats) -> NDArray[np.bool_]:
    """Which of `points` [N, P, 2] lie within a finger's width of the bones of `hand` [N, 21, 2] (NaN rows cover
    nothing).
    """
    bones = [(i, i + 1) for i in range(20) if (i + 1) % 4 != 1] + [
        (0, 5),
        (0, 9),
        (0, 13),
        (0, 17),
        (5, 9),
        (9, 13),
        (13, 17),
    ]
    width = 0.35 * np.linalg.norm(hand[:, 5] - hand[:, 17], axis=-1)
    result = np.zeros(points.shape[:2], bool)
    for i, j in bones:
        start, along = hand[:, None, i], (hand[:, j] - hand[:, i])[:, None]
        position = ((points - start) * along).sum(-1) / np.maximum((along * along).sum(-1), 1e-6)
        distance = np.linalg.norm(points - start - np.clip(position, 0, 1)[..., None] * along, axis=-1)
        result |= distance < width[:, None]
    return result


def hands_seen(detections: Detections) -> Floats:
    """[T, 2] in [0, 1]: how surely a hand is where the detector says: it answers where no hand is, but then the wrist
    is not seen, and not in most frames around.
    """
    found = np.isfinite(np.stack([detections.left_hand, detections.right_hand], 1)[:, :, 0, 0])
    wrists = np.nan_to_num(detections.pose[:, (15, 16), 3])
    steady = ndimage.uniform_filter1d(found.astype(np.float32), STEADY_FRAMES, axis=0, mode="nearest")
    return np.clip(np.maximum((wrists - 0.5) / 0.4, (steady - 0.6) / 0.3), 0, 1).astype(np.float32)


def arms_seen(detections: Detections) -> Floats:
    """[T, 2, 3] in [0, 1]: how surely the detector sees what shoulder, elbow and wrist turn, and not for a moment
    only: the elbow, the wrist and the hand; left and right.
    """
    visibility = np.nan_to_num(detections.pose[:, list(ARM_POINTS), 3])[..., 1:]  # [T, 2, 2]
    steady = median_in_time(visibility.reshape(len(visibility), -1)).reshape(visibility.shape)
    elbow, wrist = np.moveaxis(np.clip((steady - 0.3) / 0.4, 0, 1), -1, 0)
    found = np.isfinite(np.stack([detections.left_hand, detections.right_hand], 1)[:, :, 0, 0])
    hand = hands_seen(detections) * (median_in_time(found.astype(np.float32)) > 0.5)
    return np.stack([np.maximum(elbow, hand), np.maximum(wrist, hand), hand], -1).astype(np.float32)


def arm_points(detections: Detections, frames: NDArray[np.int64], scale: Tensor) -> ArmPoints:
    """What the detector says of the arms in `frames [N]`, its jumps taken out; `scale [N]` px a metre."""
    towards = np.array([1, -1, -1], np.float32)
    pose = interpolate(detections.pose[:, list(ARM_POINTS), :3])  # [T, 2, 3, 3]
    hands = np.stack([detections.left_hand, detections.right_hand], 1)
    has_palm = np.isfinite(hands[:, :, list(PALM)]).all((-1, -2))
    pose[:, :, 2, :2] = np.where(has_palm[..., None], hands[:, :, 0, :2], pose[:, :, 2, :2])  # nearer than the body's
    pose = median_in_time(pose.reshape(len(pose), -1), 2).reshape(pose.shape)
    return ArmPoints(
        arms=torch.from_numpy((pose * towards)[frames].astype(np.float32)),
        palm=torch.from_numpy((np.nan_to_num(hands[:, :, list(PALM)]) * towards)[frames]),
        has_palm=torch.from_numpy(has_palm[frames]),
        scale=scale,
    )
