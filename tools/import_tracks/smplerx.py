"""SMPLer-X / OSX-like npz, one a frame and person, with their json of the crop's camera -> a track.

The sources of every field are in docs/import_tracks.md. The parameters are in the camera's axes; focal length and
principal point are those of the whole picture and change with the person's box from frame to frame.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from visa.tools.import_tracks.track import Floats, Imported, read_npz

MEND = "give the output folder of SMPLer-X's inference, with smplx/FRAME_PERSON.npz and meta/FRAME_PERSON.json"
NAME = re.compile(r"(\d+)_(\d+)\.npz")
NUM_JOINTS = {
    "global_orient": 1, "body_pose": 21, "jaw_pose": 1, "leye_pose": 1, "reye_pose": 1,
    "left_hand_pose": 15, "right_hand_pose": 15,
}  # fmt: skip


def mean_hands(path: Path | None) -> tuple[Floats, Floats]:
    """Left and right mean hand [15,3] of an SMPL-X file: what the writer's body layer adds to the hands' poses."""
    if path is None:
        raise ValueError(
            "the hands of SMPLer-X and OSX are offsets from SMPL-X's mean hand: give --smplx SMPLX_NEUTRAL.npz"
        )
    mend = "give a licensed SMPLX_NEUTRAL.npz"
    arrays = read_npz(path, ("hands_meanl", "hands_meanr"), mend)
    left, right = (arrays[name].reshape(15, 3) for name in ("hands_meanl", "hands_meanr"))
    if not left.any():
        raise ValueError(f"{path} has a flat mean hand, so it is not SMPL-X's: {mend}")
    return left, right


def _frame(folder: Path, stem: str) -> tuple[dict[str, Floats], Floats]:
    """Parameters and intrinsics [3,3] of one frame."""
    path = folder / "smplx" / f"{stem}.npz"
    arrays = read_npz(path, (*NUM_JOINTS, "betas", "expression", "transl"), MEND)
    meta = folder / "meta" / f"{stem}.json"
    try:
        camera = json.loads(meta.read_text())
        (fx, fy), (cx, cy) = camera["focal"], camera["princpt"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{meta} holds no focal and princpt ({error}): {MEND}") from error
    for name, joints in NUM_JOINTS.items():
        if arrays[name].size != 3 * joints:
            raise ValueError(f"{path}: {name} has the shape {list(arrays[name].shape)}, not [{joints},3]: {MEND}")
    return arrays, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float64)


def import_smplerx(
    folder: Path,
    smplx_file: Path | None,
    image_size: tuple[int, int],
    fps: float,
    person: int = 0,
    first: int = 1,
    num_frames: int | None = None,
) -> Imported:
    """Read the frames of one person.

    Args:
        folder: what inference wrote.
        smplx_file: the SMPL-X npz, for its mean hands.
        image_size: width and height of the pictures, px.
        fps: frames a second.
        person: number of the box in each picture.
        first: number of the first picture's file (1, as video frames are usually dumped).
        num_frames: of the video; None ends at the last frame found.

    Raises:
        ValueError: another layout, no such person, or frames that the video does not have; one line.
    """
    matches = [NAME.fullmatch(path.name) for path in sorted((folder / "smplx").glob("*.npz"))]
    found = {int(m[1]) - first: m[0][:-4] for m in matches if m and int(m[2]) == person}
    if not found:
        raise ValueError(f"{folder}/smplx holds no npz of person {person}: {MEND}")
    count = max(found) + 1 if num_frames is None else num_frames
    if min(found) < 0 or max(found) >= count:
        raise ValueError(
            f"{folder}: frames {min(found) + first} to {max(found) + first} do not lie in a video of {count} frames "
            f"that starts at {first}: set --first, or give the video that was tracked"
        )
    left, right = mean_hands(smplx_file)
    pose = {name: np.zeros((count, joints, 3)) for name, joints in NUM_JOINTS.items()}
    transl, expression, betas = np.zeros((count, 3)), np.zeros((count, 10)), []
    intrinsics = np.full((count, 3, 3), np.nan)
    for index, stem in found.items():
        arrays, intrinsics[index] = _frame(folder, stem)
        for name, joints in NUM_JOINTS.items():
            pose[name][index] = arrays[name].reshape(joints, 3)
        transl[index], expression[index] = arrays["transl"].reshape(3), arrays["expression"].reshape(-1)[:10]
        betas.append(arrays["betas"].reshape(-1)[:10])
    seen = np.array(sorted(found))
    pose["left_hand_pose"][seen] += left
    pose["right_hand_pose"][seen] += right
    intrinsics[np.isnan(intrinsics[:, 0, 0])] = np.median(intrinsics[seen], axis=0)
    single = {name: values[:, 0] if NUM_JOINTS[name] == 1 else values for name, values in pose.items()}
    return Imported(
        pose=single,
        transl=transl,
        intrinsics=intrinsics,
        world_to_camera=np.tile(np.eye(4), (count, 1, 1)),
        frame_valid=np.isin(np.arange(count), seen),
        image_size=image_size,
        fps=fps,
        betas=np.median(betas, axis=0),  # a number a frame for one person: the middle one
        expression=expression,
    )
