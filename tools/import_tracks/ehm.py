"""Tracks of GUAVA's EHM-Tracker -> a track.

The tracker pickles its results, and a pickle can run code, so it is not opened here: docs/import_tracks.md has the few
lines that turn it into `ehm_tracking.npz` in the tracker's own environment, and the sources of every field.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visa.tools.import_tracks.track import Floats, Imported, read_npz

MEND = "make ehm_tracking.npz with the lines in docs/import_tracks.md, in EHM-Tracker's environment"
CROP_SIDE = 1024  # px: body_hd_size
FOCAL = 24.0  # 1 / tanfov, in half pictures
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # PyTorch3D's camera (x left, y up) to OpenCV's (x right, y down)
SHAPES = {
    "smplx_coeffs.global_pose": (3,), "smplx_coeffs.body_pose": (21, 3), "smplx_coeffs.left_hand_pose": (15, 3),
    "smplx_coeffs.right_hand_pose": (15, 3), "smplx_coeffs.camera_RT_params": (3, 4),
    "flame_coeffs.jaw_params": (3,), "flame_coeffs.eye_pose_params": (6,),
    "body_crop.M_c2o-hd": (3, 3),
}  # fmt: skip


def import_ehm(path: Path, fps: float, video: tuple[tuple[int, int], int] | None = None) -> Imported:
    """Read a tracked video.

    Args:
        path: `ehm_tracking.npz`.
        fps: frames a second.
        video: size and number of frames of the video that was tracked; None makes a track of the tracker's own
            1024 x 1024 crops (`--save_images`).

    Raises:
        ValueError: another layout, or a video of another length; one line.
    """
    if path.suffix == ".pkl" or path.is_dir():
        raise ValueError(f"{path}: a pickle can run code and is not opened: {MEND}")
    arrays = read_npz(path, ("frames", "id.smplx_shape", "flame_coeffs.expression_params", *SHAPES), MEND)
    count = len(arrays["frames"])
    fields: dict[str, Floats] = {}
    for name, shape in SHAPES.items():
        if arrays[name].size != count * np.prod(shape, dtype=int):
            raise ValueError(f"{path}: {name} has the shape {list(arrays[name].shape)}, not {[count, *shape]}: {MEND}")
        fields[name] = arrays[name].reshape(count, *shape).astype(np.float64)
    intrinsics = np.diag([FOCAL * CROP_SIDE / 2, FOCAL * CROP_SIDE / 2, 1.0])
    intrinsics[:2, 2] = CROP_SIDE / 2
    size = (CROP_SIDE, CROP_SIDE)
    intrinsics = np.tile(intrinsics, (count, 1, 1))
    if video is not None:
        size, num_frames = video
        if num_frames != count:
            raise ValueError(
                f"{path} holds {count} frames and the video {num_frames}: the tracker left some out and does not say "
                "which; leave --video away and use its own crops (--save_images)"
            )
        intrinsics = fields["body_crop.M_c2o-hd"] @ intrinsics
    view = np.tile(np.eye(4), (count, 1, 1))
    view[:, :3] = fields["smplx_coeffs.camera_RT_params"]
    eyes = fields["flame_coeffs.eye_pose_params"]
    return Imported(
        pose={
            "global_orient": fields["smplx_coeffs.global_pose"],
            "body_pose": fields["smplx_coeffs.body_pose"],
            "jaw_pose": fields["flame_coeffs.jaw_params"],
            "leye_pose": eyes[:, :3],
            "reye_pose": eyes[:, 3:],
            "left_hand_pose": fields["smplx_coeffs.left_hand_pose"],
            "right_hand_pose": fields["smplx_coeffs.right_hand_pose"],
        },
        transl=np.zeros((count, 3)),
        intrinsics=intrinsics,
        world_to_camera=FLIP @ view,
        frame_valid=np.ones(count, dtype=bool),
        image_size=size,
        fps=fps,
        betas=arrays["id.smplx_shape"].reshape(-1),
        expression=arrays["flame_coeffs.expression_params"].reshape(count, -1),
    )
