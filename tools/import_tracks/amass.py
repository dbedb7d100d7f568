"""AMASS-like motion (SMPL-H 156 or SMPL-X 165 numbers a frame, z up) -> a track to drive with.

The sources of every field are in docs/import_tracks.md. There is no camera: a synthetic one stands in front of the
person. The shape belongs to SMPL-H or to a gendered body and is left out; driving takes the photo's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.tools.import_tracks.track import Floats, Imported, read_npz

MEND = "give an AMASS-like npz with poses, trans and mocap_framerate"
RATES = ("mocap_framerate", "mocap_frame_rate")  # the SMPL-H and the SMPL-X release spell it differently
SMPLH, SMPLX = 156, 165
CHEST_JOINT = 9
DISTANCE = 2.0  # m, camera to chest
SIDE = 512  # px
FOCAL = 1.5 * SIDE  # px: 1.3 m of the person are seen


def split_poses(poses: Floats, path: Path) -> dict[str, Floats]:
    """Fields of `poses` [T,156] (SMPL-H: root, body, hands) or [T,165] (SMPL-X: root, body, jaw, eyes, hands)."""
    width = poses.shape[-1] if poses.ndim == 2 else 0
    if width not in (SMPLH, SMPLX):
        raise ValueError(
            f"{path}: poses has the shape {list(poses.shape)}, not [T,156] (SMPL-H) or [T,165] (SMPL-X): {MEND}"
        )
    count = len(poses)
    face = poses[:, 66:75] if width == SMPLX else np.zeros((count, 9))
    hands = poses[:, width - 90 :].reshape(count, 30, 3)
    return {
        "global_orient": poses[:, :3],
        "body_pose": poses[:, 3:66].reshape(count, 21, 3),
        "jaw_pose": face[:, :3],
        "leye_pose": face[:, 3:6],
        "reye_pose": face[:, 6:9],
        "left_hand_pose": hands[:, :15],
        "right_hand_pose": hands[:, 15:],
    }


def frontal_camera(facing: Floats, target: Floats) -> Floats:
    """World-to-camera [4,4] of a level camera `DISTANCE` in front of `target` [3], looking back along `facing` [3]."""
    up = np.array([0.0, 0.0, 1.0])
    ahead = facing - up * (facing @ up)
    ahead /= np.linalg.norm(ahead)
    view = np.eye(4)
    view[:3, :3] = np.stack([np.cross(up, ahead), -up, -ahead])  # right, down, forward
    view[:3, 3] = -view[:3, :3] @ (target + DISTANCE * ahead)
    return view


def _facing(global_orient: Floats) -> Floats:
    """Mean direction [3] that the pelvis faces, level; the first frame's if the turns cancel out.

    A body that lies flat faces nowhere: along x.
    """
    ahead = rotation_matrices(torch.from_numpy(global_orient.astype(np.float64))).numpy()[:, :, 2]
    level = ahead * [1, 1, 0]
    for candidate in (level.mean(axis=0), level[0]):
        if np.linalg.norm(candidate) > 0.1:
            return candidate
    return np.array([1.0, 0.0, 0.0])


def import_amass(path: Path, body: BodyModel, fps: float, travel: bool) -> Imported:
    """Read a motion.

    Args:
        path: the npz.
        body: the model that the camera is placed for.
        fps: of the track; the nearest captured frame is taken at each instant.
        travel: keep the walk; otherwise the pelvis stays above its first place, as an upper-body picture wants.

    Raises:
        ValueError: no such file, or another layout; one line.
    """
    arrays = read_npz(path, ("poses", "trans"), MEND, RATES)
    rate = next((float(arrays[name]) for name in RATES if name in arrays), 0.0)
    if not rate > 0 or not fps > 0:
        raise ValueError(f"{path} has no {RATES[0]}, or it or --fps is not positive: {MEND}")
    if len(arrays["trans"]) != len(arrays["poses"]) or len(arrays["poses"]) == 0:
        raise ValueError(f"{path}: trans has {len(arrays['trans'])} frames and poses {len(arrays['poses'])}: {MEND}")
    count = max(1, int(len(arrays["poses"]) * fps / rate))
    picked = np.minimum(np.round(np.arange(count) * rate / fps).astype(int), len(arrays["poses"]) - 1)
    pose = split_poses(arrays["poses"][picked], path)
    transl = arrays["trans"][picked].astype(np.float64)
    if not travel:
        transl[:, :2] = transl[0, :2]
    params = BodyParams.from_track(
        {**pose, "transl": transl, "betas": np.zeros(10), "expression": np.zeros((count, body.num_expressions))}
    )
    with torch.no_grad():
        # Chunks: the vertices that come with the joints would fill the memory of a long motion.
        chest = torch.cat([body(part, torch.zeros(1, dtype=torch.long))[1][:, CHEST_JOINT] for part in _chunks(params)])
    view = frontal_camera(_facing(pose["global_orient"]), chest.double().mean(dim=0).numpy())
    intrinsics = np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1]])
    return Imported(
        pose=pose,
        transl=transl,
        intrinsics=np.tile(intrinsics, (count, 1, 1)),
        world_to_camera=np.tile(view, (count, 1, 1)),
        frame_valid=np.ones(count, dtype=bool),
        image_size=(SIDE, SIDE),
        fps=fps,
    )


def _chunks(params: BodyParams, size: int = 1024) -> list[BodyParams]:
    return [params[start : start + size] for start in range(0, len(params.transl), size)]
