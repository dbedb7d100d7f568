"""What is seen in each frame: face, body and hand points, a soft foreground mask, and where the shots are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from visa.artifacts.photos import is_image
from visa.tools.track.people import People
from visa.tools.track.read import read_frames, timing

NUM_FACE_POINTS = 478  # 468 of the face mesh, then 5 of each iris (the subject's right iris first)
NUM_POSE_POINTS = 33
NUM_HAND_POINTS = 21
MASK_SIDE = 256  # the segmentation network's own resolution; more pixels would only be interpolation

Floats = NDArray[np.float32]


@dataclass
class Detections:
    """Detector output of a clip of T frames of size `width` x `height` px. Points are in px, pixel centres at +0.5;
    undetected ones are NaN.
    """

    face: Floats  # [T, 478, 3] x, y px; z relative depth in px
    pose: Floats  # [T, 33, 4] x, y px; z relative depth in px; visibility in [0, 1]
    left_hand: Floats  # [T, 21, 3]
    right_hand: Floats  # [T, 21, 3]
    mask: NDArray[np.uint8]  # [T, h, w] raw foreground probability * 255
    shot: NDArray[np.int64]  # [T] index of the shot
    width: int
    height: int
    fps: float
    num_shots_dropped: int = 0
    num_people: int = 1  # most that a frame shows side by side

    @property
    def num_frames(self) -> int:
        """Frames in the clip."""
        return len(self.face)

    @property
    def has_face(self) -> NDArray[np.bool_]:
        """[T] whether the face was found."""
        return np.isfinite(self.face[:, 0, 0])

    @property
    def face_height(self) -> Floats:
        """[T] distance from the top of the forehead (10) to the chin (152) in px; NaN without a face."""
        return np.linalg.norm(self.face[:, 10, :2] - self.face[:, 152, :2], axis=-1)


def require_mediapipe() -> ModuleType:
    """MediaPipe, or a ValueError that names the extra which installs it."""
    try:
        import mediapipe
    except ImportError as error:
        raise ValueError(
            "tracking needs the package mediapipe 0.10.21, which is not installed: run `pip install '.[track]'`, "
            "or use a clip or photo that comes with its track"
        ) from error
    return mediapipe


class CutFinder:
    """Tells hard cuts from motion: the change of a small picture is large in itself and against the changes just
    before it.
    """

    def __init__(self, minimum: float = 0.10, ratio: float = 5.0) -> None:
        self.minimum, self.ratio = minimum, ratio
        self.previous: Floats | None = None
        self.changes: list[float] = []

    def is_cut(self, frame: NDArray[np.uint8]) -> bool:
        """Whether `frame` [H, W, 3] starts a new shot. Call once a frame, in order."""
        small = np.asarray(Image.fromarray(frame).resize((48, 32), Image.Resampling.BOX), np.float32) / 255
        if self.previous is None:
            self.previous = small
            return False
        change = float(np.abs(small - self.previous).mean())
        self.previous = small
        usual = float(np.median(self.changes[-12:])) if self.changes else 0.0
        is_cut = change > self.minimum and change > self.ratio * usual
        self.changes = [] if is_cut else [*self.changes, change]
        return is_cut


class Detector:
    """MediaPipe holistic and selfie segmentation. `reset()` at every cut, so that nothing is carried from one shot to
    the next.
    """

    def __init__(self, is_still: bool) -> None:
        self.mediapipe = require_mediapipe()
        self.is_still = is_still
        self.graphs: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """Forget the previous frames."""
        self.close()
        solutions = self.mediapipe.solutions
        # No smoothing here: the causal filter lags behind; the fit smooths over the whole clip without lag.
        holistic = solutions.holistic.Holistic(
            static_image_mode=self.is_still, model_complexity=1, smooth_landmarks=False, refine_face_landmarks=True
        )
        self.graphs = [holistic, solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)]

    def close(self) -> None:
        """Release the graphs."""
        for graph in self.graphs:
            graph.close()
        self.graphs = []

    def __call__(self, frame: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Points and mask of one RGB frame [H, W, 3], in the layout of `Detections`."""
        height, width = frame.shape[:2]
        found = self.graphs[0].process(frame)
        raw = self.graphs[1].process(frame).segmentation_mask
        scale = MASK_SIDE / max(height, width)
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        mask = np.asarray(
            Image.fromarray(raw).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR)
        )
        return {
            "face": points(found.face_landmarks, NUM_FACE_POINTS, width, height),
            "pose": points(found.pose_landmarks, NUM_POSE_POINTS, width, height, with_visibility=True),
            "left_hand": points(found.left_hand_landmarks, NUM_HAND_POINTS, width, height),
            "right_hand": points(found.right_hand_landmarks, NUM_HAND_POINTS, width, height),
            "mask": np.clip(np.nan_to_num(mask) * 255 + 0.5, 0, 255).astype(np.uint8),
        }


def points(landmarks: Any, count: int, width: int, height: int, with_visibility: bool = False) -> Floats:
    """A MediaPipe landmark list as an array [count, 3 or 4] in px; NaN if there is none."""
    if landmarks is None:
        return np.full((count, 4 if with_visibility else 3), np.nan, np.float32)
    rows = [
        (p.x * width, p.y * height, p.z * width, p.visibility)[: 4 if with_visibility else 3]
        for p in landmarks.landmark
    ]
    return np.asarray(rows, np.float32)


def detect(path: Path, progress: Callable[..., Any] = tqdm, person: int = 1) -> Detections:
    """Run the detectors over a video or image file, on one of the people that it shows (`tools.track.people`).

    Raises:
        ValueError: it cannot be read, or shows fewer people than `person`.
    """
    shown = timing(path)
    people = People(require_mediapipe(), person, str(path))
    detector: Detector | None = None
    cuts, size = CutFinder(), (0, 0)
    rows: list[dict[str, NDArray[Any]]] = []
    shots: list[int] = []
    try:
        for frame in progress(read_frames(path), total=shown.num_frames or None, desc="detect", unit="frame"):
            is_cut = cuts.is_cut(frame)
            detector = detector or Detector(is_still=is_image(path))
            if is_cut:
                detector.reset()
                people.forget()
            if rows and frame.shape[:2] != size:
                raise ValueError(f"{path}: the picture size changes in mid-clip: cut the video into clips of one size")
            size = frame.shape[:2]
            shots.append((shots[-1] if shots else 0) + int(is_cut))
            rows.append(detector(people.only_chosen(frame)))
    finally:
        people.close()
        if detector is not None:
            detector.close()
    arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return Detections(
        **arrays, shot=np.asarray(shots), width=size[1], height=size[0], fps=shown.rate, num_people=max(people.most, 1)
    )


def keep_longest_shot(detections: Detections) -> Detections:
    """Forget the faces outside of the shot that shows a face in most frames, which makes those frames invalid.

    A cut may change person and camera, while a track has one shape and one camera; and a window of consecutive frames
    must not run across a cut.
    """
    counts = np.bincount(detections.shot, weights=detections.has_face)
    others = (detections.shot != counts.argmax()) & detections.has_face
    if not others.any():
        return detections
    face = detections.face.copy()
    face[others] = np.nan
    return replace(detections, face=face, num_shots_dropped=int((np.delete(counts, counts.argmax()) > 0).sum()))
