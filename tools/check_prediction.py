"""Does a predicted video follow its driving, and whose face does it show?

`python -m visa.tools.check_prediction OUT.mp4 --driving MOTION.track.npz --photo PHOTO [--other PHOTO_OR_VIDEO]`
(extras `track` and `identity`) finds the face points of the video anew and correlates mouth opening and head yaw with
the motion's; and measures the identity distance of its frames to the photo and to another person.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visa.artifacts.media import read_video, write_video
from visa.artifacts.photos import is_image, read_photo
from visa.datamodules.clip import load_track
from visa.evaluation.identity import FaceIdentity, mean_distance
from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.correspond import DEFAULT_BODY, DEFAULT_LANDMARKS, Landmarks
from visa.tools.track.detect import detect
from visa.tools.track.face_points import enlarge
from visa.tools.track.report import MOUTH, opening

# Left cheek, right cheek and nose tip of MediaPipe's face mesh.
CHEEK_RIGHT, CHEEK_LEFT, NOSE_TIP = 234, 454, 1


def yaw_of(face: np.ndarray) -> np.ndarray:
    """`[T]` place of the nose between the cheeks, in half widths of the face: 0 from the front; `face [T,478,2]`."""
    right, left, nose = face[:, CHEEK_RIGHT, 0], face[:, CHEEK_LEFT, 0], face[:, NOSE_TIP, 0]
    return (nose - (left + right) / 2) / np.maximum(np.abs(left - right) / 2, 1e-6)


def mouth_of(face: np.ndarray) -> np.ndarray:
    """`[T]` mouth opening as a share of the face's width."""
    width = np.linalg.norm(face[:, CHEEK_RIGHT, :2] - face[:, CHEEK_LEFT, :2], axis=-1)
    return opening(face, MOUTH) / np.maximum(width, 1e-6)


def driving_points(track_path: str, num_frames: int) -> np.ndarray:
    """`[T,478,2]` face points of the motion as its own camera saw them."""
    track = load_track(track_path)
    numbers = np.flatnonzero(track["frame_valid"])[:num_frames]
    body, landmarks = BodyModel.from_file(DEFAULT_BODY), Landmarks.load(DEFAULT_LANDMARKS)
    corners = body.faces[torch.as_tensor(landmarks.face_index)]
    vertices, _ = body(BodyParams.from_track(track, numbers), corners.flatten())
    weights = torch.as_tensor(landmarks.face_barycentric, dtype=torch.float32)
    points = (vertices.view(len(numbers), -1, 3, 3) * weights[None, :, :, None]).sum(dim=2)
    camera = torch.from_numpy(track["world_to_camera"][numbers])
    inside = torch.einsum("tij,tnj->tni", camera[:, :3, :3], points) + camera[:, None, :3, 3]
    pixels = torch.einsum("tij,tnj->tni", torch.from_numpy(track["intrinsics"][numbers]), inside)
    return (pixels[..., :2] / pixels[..., 2:]).numpy()


def detected_points(frames: Tensor, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """`[T,478,2]` face points found in frames `[T,3,H,W]`, and `[T]` whether a face was found."""
    with tempfile.TemporaryDirectory() as folder:
        found = detect(write_video(Path(folder) / "enlarged.mp4", enlarge(frames), fps))
    return found.face[..., :2], found.has_face


def pictures(path: str) -> Tensor:
    """A photo, or every 25th frame of a video, `[N,3,H,W]`."""
    if is_image(path):
        return torch.tensor(read_photo(path)).permute(2, 0, 1)[None].float() / 255
    return read_video(path)[0][::25]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--driving", required=True)
    parser.add_argument("--photo", required=True)
    parser.add_argument("--other", default=None, help="another person, to compare identity with")
    options = parser.parse_args()
    frames, fps = read_video(options.video)
    driven = driving_points(options.driving, len(frames))
    found, seen = detected_points(frames, fps)
    result: dict[str, float | None] = {"frames": len(frames), "face_found": float(seen.mean())}
    for name, measure in (("mouth", mouth_of), ("yaw", yaw_of)):
        result[f"{name}_correlation"] = float(np.corrcoef(measure(found[seen]), measure(driven[seen]))[0, 1])
    identity = FaceIdentity()
    embedded = identity.embed_all(enlarge(frames[:: max(len(frames) // 24, 1)]))
    for name, path in (("photo", options.photo), ("other", options.other)):
        if path is not None:
            distances = [
                mean_distance(embedded, [known] * len(embedded)) for known in identity.embed_all(pictures(path))
            ]
            known = [distance for distance in distances if distance is not None]
            result[f"identity_to_{name}"] = float(np.mean(known)) if known else None
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
