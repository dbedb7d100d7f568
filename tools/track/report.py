"""How well a track fits what was detected, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.detect import Detections
from visa.tools.track.fit import Track
from visa.tools.track.matte import steady_masks
from visa.tools.track.render import fill_triangles
from visa.tools.track.terms import BROW_PAIRS

Floats = NDArray[np.float32]
SURE = 0.5  # weight of a hand above which the detector is sure of it
NUM_SILHOUETTES = 24  # frames
MOUTH, RIGHT_EYE, LEFT_EYE = ((13, 14),), ((159, 145),), ((386, 374),)


def report_of(detections: Detections, track: Track) -> dict[str, Any]:
    """Errors over all valid frames in which the face was detected; a figure without data is null with a reason beside
    it.

    Body points count as far as the detector saw them (its visibility above one half) and inside the picture.
    """
    rows = track.frame_valid & detections.has_face
    height = detections.face_height[rows]
    error = np.linalg.norm(track.face[rows] - detections.face[rows, :, :2], axis=-1)
    report: dict[str, Any] = {
        "num_frames": detections.num_frames,
        "num_valid_frames": int(track.frame_valid.sum()),
        "valid_share": float(track.frame_valid.mean()),
        "num_shots": int(detections.shot.max()) + 1,
        "num_shots_dropped": detections.num_shots_dropped,  # with a face, but not of the longest shot
        "mean_face_height_px": float(height.mean()),
        "face_error_px": float(error.mean()),
        "face_error_percent": float((error.mean(-1) / height).mean() * 100),
        "face_error_percent_worst_frame": float((error.mean(-1) / height).max() * 100),
    }
    pose = detections.pose[rows]
    inside = ((pose[..., :2] > 0) & (pose[..., :2] < (detections.width, detections.height))).all(-1)
    seen = (np.nan_to_num(pose[..., 3]) > 0.5) & inside & np.isfinite(track.pose[rows, :, 0])
    report["body_points_per_frame"] = float(seen.sum(-1).mean())  # how many points the next two figures rest on
    if seen.any():
        off = np.linalg.norm(track.pose[rows] - pose[..., :2], axis=-1)
        report["body_error_px"] = float(off[seen].mean())
        report["body_error_percent"] = float((off / height[:, None])[seen].mean() * 100)
    else:
        report["body_error_px"] = report["body_error_percent"] = None
        report["body_error_reason"] = "no body point was seen inside the picture"
    report |= hand_error(detections, track)
    for name, pairs in (
        ("mouth", MOUTH),
        ("right_eye", RIGHT_EYE),
        ("left_eye", LEFT_EYE),
        ("eyes", RIGHT_EYE + LEFT_EYE),
    ):
        found, fitted = opening(detections.face[rows], pairs) / height, opening(track.face[rows], pairs) / height
        report |= compare(name + "_opening", found, fitted)
    found, fitted = (opening(face[rows], BROW_PAIRS) / height for face in (detections.face, track.face))
    report |= compare("brow_height", found, fitted)
    report |= accelerations(detections, track, rows)
    report["motion_error_percent"] = track.motion_error_percent
    if track.motion_error_percent is None:
        report["motion_error_reason"] = "one frame, or no video to follow"
    return report


def hand_error(detections: Detections, track: Track) -> dict[str, Any]:
    """Mean distance of hand points in percent of the face's height, where the detector is sure of the hand."""
    found = np.stack([detections.left_hand, detections.right_hand], 1)[..., :2]
    sure = (track.hand_weight > SURE) & detections.has_face[:, None]
    if not sure.any():
        return {"hand_error_percent": None, "hand_error_reason": "no hand was surely seen"}
    off = np.linalg.norm(track.hands - found, axis=-1).mean(-1) / detections.face_height[:, None] * 100
    return {
        "hands_per_frame": float(sure.sum(-1)[track.frame_valid].mean()),
        "hand_error_percent": float(off[sure].mean()),
    }


def silhouette_iou(detections: Detections, track: Track, body: BodyModel) -> float:
    """Mean intersection over union of the posed body and the matte, over frames spread through the clip.

    Hair and cloth are not the body's: it is below 1 for the best of tracks.
    """
    frames = np.flatnonzero(track.frame_valid)
    masks = steady_masks(detections, track.frame_valid)
    scale, faces = masks.shape[2] / detections.width, body.faces.numpy()
    shares = []
    for frame in frames[np.linspace(0, len(frames) - 1, min(len(frames), NUM_SILHOUETTES)).astype(int)]:
        with torch.no_grad():
            points = body(_frame(track.params, frame))[0][0].numpy() * np.array([1, -1, -1], np.float32)
        pixels = (points[:, :2] / points[:, 2:] * track.intrinsics[0, 0] + track.intrinsics[:2, 2]) * scale
        screen = pixels.astype(np.float64), points[:, 2].astype(np.float64)
        drawn = fill_triangles(*screen, faces, *masks.shape[1:]) >= 0
        person = masks[frame] > 127
        shares.append((drawn & person).sum() / max((drawn | person).sum(), 1))
    return float(np.mean(shares))


def _frame(params: BodyParams, number: int) -> BodyParams:
    return params.map(lambda value: value[None] if value.dim() == 1 else value[number : number + 1])


def opening(face: Floats, pairs: tuple[tuple[int, int], ...]) -> Floats:
    """Mean distance [T] in px of pairs of points of `face` [T, 478, 2 or 3]."""
    return np.mean([np.linalg.norm(face[:, i, :2] - face[:, j, :2], axis=-1) for i, j in pairs], axis=0)


def compare(name: str, detected: Floats, fitted: Floats) -> dict[str, Any]:
    """Correlation and ratio of ranges (5th to 95th percentile) of two series [T]."""
    if len(detected) < 3 or min(np.ptp(detected), np.ptp(fitted)) < 1e-6:
        reason = "too few frames or no movement"
        return {f"{name}_correlation": None, f"{name}_range_ratio": None, f"{name}_reason": reason}
    low, high = np.percentile(np.stack([detected, fitted]), (5, 95), axis=-1)
    ratio = float((high - low)[1] / max((high - low)[0], 1e-9))
    return {f"{name}_correlation": float(np.corrcoef(detected, fitted)[0, 1]), f"{name}_range_ratio": ratio}


def accelerations(detections: Detections, track: Track, rows: NDArray[np.bool_]) -> dict[str, Any]:
    """Mean second difference of face and body points, px a frame squared: what is left of the detector's jitter.

    Body points count where the detector saw them (its visibility above one half) in all three frames.
    """
    steps = rows[1:] & rows[:-1] & (np.diff(detections.shot) == 0)
    triples = np.flatnonzero(steps[:-1] & steps[1:])
    visible = (np.nan_to_num(detections.pose[..., 3]) > 0.5) & np.isfinite(track.pose[..., 0])
    figures: dict[str, Any] = {}
    for part, detected, fitted, seen in (
        ("", detections.face[..., :2], track.face, np.ones(track.face.shape[:2], bool)),
        ("body_", detections.pose[..., :2], track.pose, visible),
    ):
        together = seen[triples] & seen[triples + 1] & seen[triples + 2]
        names = [f"{kind}_{part}acceleration_px" for kind in ("detected", "fitted")]
        if not together.any():
            figures |= dict.fromkeys(names)
            figures[f"{part}acceleration_reason"] = "no point was seen in three frames in a row"
            continue
        for name, points in zip(names, (detected, fitted), strict=True):
            second = points[triples] - 2 * points[triples + 1] + points[triples + 2]
            figures[name] = float(np.linalg.norm(second, axis=-1)[together].mean())
    return figures
