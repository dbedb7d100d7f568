"""A face in single frames -> blendshapes and turns of the head, causally and at the speed of a camera.

The tracker of `visa.tools.track` fits all frames of a clip together, in minutes. Here each frame stands alone: the
detector's 478 points are laid on the body's own head by Procrustes, and what is left of their difference to a neutral
frame is explained by the body's actions, a least-squares problem of forty unknowns that are not negative (Lawson and
Hanson, 1974). All is told relative to the neutral frame, so that one person's face drives another's. Jitter is held
down by the one-euro filter (Casiez et al., 2012), which lags least where the motion is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from visa.live.blendshapes import TURNS, Blendshapes
from visa.live.signal import Signal
from visa.networks.body import BodyModel, BodyParams
from visa.tools.track.correspond import DEFAULT_LANDMARKS, Landmarks
from visa.tools.track.detect import NUM_FACE_POINTS, points, require_mediapipe
from visa.tools.track.points import point_model

LANDMARKS = DEFAULT_LANDMARKS
Floats = NDArray[np.float64]

NUM_SKIN = 468  # points before those of the irises
DEPTH_TRUST = 0.3  # of the detector's relative depth, against 1 of what the picture shows
PRIOR = 0.004  # m: an action that moves all points by less than this together is not worth its while
NEUTRAL_FRAMES = 5  # the mean of so many is the neutral one
CUTOFF, SPEED = 1.5, 3.0  # one-euro filter: Hz at rest, and Hz more for each unit a second
IRISES = {"leye_pose": slice(473, 478), "reye_pose": slice(468, 473)}
LIDS = {"leye_pose": (386, 374), "reye_pose": (159, 145)}  # upper and lower
LEAST_OPEN = 0.003  # m between lids, below which the detector guesses the iris


@dataclass
class OneEuro:
    """The filter of a vector in time; `cutoff` Hz at rest, `speed` Hz more for each unit a second."""

    cutoff: float = CUTOFF
    speed: float = SPEED
    _time: float | None = None
    _value: Floats | None = None
    _slope: Floats | None = None

    def __call__(self, value: Floats, time: float) -> Floats:
        """The value `[D]` at `time` s, smoothed by those before it."""
        if self._value is None or self._time is None or self._slope is None or time <= self._time:
            self._time, self._value, self._slope = time, value, np.zeros_like(value)
            return value
        step = time - self._time
        self._slope += _share(1.0, step) * ((value - self._value) / step - self._slope)
        self._value = self._value + _share(self.cutoff + self.speed * np.abs(self._slope), step) * (value - self._value)
        self._time = time
        return self._value


def _share(cutoff: float | Floats, step: float) -> float | Floats:
    """Of a new value, in a low-pass of `cutoff` Hz after `step` s."""
    rate = 2 * np.pi * cutoff * step
    return rate / (1 + rate)


class FaceSolver:
    """Detected points of one frame -> what drives an avatar, relative to the neutral frames.

    Args:
        body: names its actions as ARKit does.
        landmarks: which of its points the detector finds.
    """

    def __init__(self, body: BodyModel, landmarks: Landmarks) -> None:
        self.shapes = Blendshapes(body)
        model = point_model(body, landmarks, torch.zeros(0, dtype=torch.long))
        rest = BodyParams.zeros((1,), body.num_expressions)

        def face(params: BodyParams) -> Floats:
            return model(params)[0][0, :NUM_FACE_POINTS].double().numpy()

        self.rest = face(rest)
        self.middle = self.rest[:NUM_SKIN].mean(0)
        # Small parts of actions: what a whole one does is not quite linear.
        self.names = [name for name in self.shapes.names if name not in TURNS] + ["jawOpen"]
        moved = [face(self.shapes.applied(rest, self.shapes.values({n: 0.5})[None])) - self.rest for n in self.names]
        self.basis = 2 * np.stack(moved, -1)  # [478,3,A]
        self.trust = np.array([1.0, 1.0, DEPTH_TRUST])[None, :, None]
        columns = (self.basis[:NUM_SKIN] * self.trust).reshape(-1, len(self.names))
        normal = columns.T @ columns + np.eye(len(self.names)) * NUM_SKIN * PRIOR**2 / 10
        self._root = np.linalg.cholesky(normal).T
        self._columns = columns
        self.eyes = {name: self._eye(model, rest, name) for name in IRISES}
        self._filter = OneEuro()
        self.reset()

    @staticmethod
    def _eye(model: BodyModel, rest: BodyParams, name: str) -> Floats:
        """`[2,2]` motion of an iris's centre to the right and up, m, for turns about x and y, rad."""
        columns = []
        for axis in range(2):
            ends = []
            for angle in (-0.1, 0.1):
                turn = torch.zeros(1, 3)
                turn[0, axis] = angle
                posed = BodyParams(**{**vars(rest), name: turn})
                ends.append(model(posed)[0][0, IRISES[name]].mean(0)[:2].double().numpy())
            columns.append((ends[1] - ends[0]) / 0.2)
        return np.stack(columns, -1)

    def reset(self) -> None:
        """The next frames are the neutral ones."""
        self._neutral: list[tuple[Floats, Floats, Floats]] = []
        self._filter = OneEuro()

    @property
    def is_calibrated(self) -> bool:
        """Whether enough neutral frames have been seen."""
        return len(self._neutral) >= NEUTRAL_FRAMES

    def _laid(self, found: Floats) -> tuple[Floats, Floats, Floats]:
        """Points in the head's axes `[478,3]` m, its rotation `[3,3]`, its place `[3]` m (z: towards the camera).

        Umeyama's fit of the skin's points: what is left of them is expression.
        """
        seen = found * np.array([1.0, -1.0, -1.0])  # px, y up, towards the camera
        centre, source = seen[:NUM_SKIN].mean(0), self.rest[:NUM_SKIN] - self.middle
        u, s, vt = np.linalg.svd((seen[:NUM_SKIN] - centre).T @ source)
        flip = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
        turn, scale = (u * flip) @ vt, float((s * flip).sum() / (source**2).sum())  # px a metre
        inside = (seen - centre) @ turn / scale + self.middle
        return inside, turn, np.array([centre[0] / scale, centre[1] / scale, np.log(scale)])

    def __call__(self, found: NDArray[np.float32], time: float) -> Signal:
        """Points `[478,3]` of one frame (x right, y down, z away; px) at `time` s; the first ones are neutral."""
        inside, turn, place = self._laid(found.astype(np.float64))
        if not self.is_calibrated:
            self._neutral.append((inside, turn, place))
        still, level, start = (np.mean(values, axis=0) for values in zip(*self._neutral, strict=True))
        change = (inside - still)[:NUM_SKIN, :, None] * self.trust
        right = np.linalg.solve(self._root.T, self._columns.T @ change.reshape(-1))
        weights = np.minimum(nnls(self._root, right)[0], 1.0)
        gaze = np.concatenate([self._gaze(inside, still, name) for name in IRISES])
        # `level` is a mean of rotations, nearly one: SciPy makes it one.
        head = (Rotation.from_matrix(level).inv() * Rotation.from_matrix(turn)).as_rotvec()
        moved = place[:2] - start[:2]
        smooth = self._filter(np.concatenate([weights, gaze, head, moved]), time)
        count = len(weights)
        given = dict(zip(self.names, np.clip(smooth[:count], 0, 1).tolist(), strict=True))
        gaze, head, moved = smooth[count : count + 4], smooth[count + 4 : count + 7], smooth[count + 7 :]
        return Signal(
            values=self.shapes.values(given),
            turn=torch.from_numpy(head).float(),
            gaze=torch.from_numpy(gaze.reshape(2, 2)).float(),
            shift=torch.tensor([*moved, 0.0]).float(),
        )

    def _gaze(self, inside: Floats, still: Floats, name: str) -> Floats:
        """Turns about x and y `[2]`, rad, of an eye against the neutral frame; none behind closed lids."""
        upper, lower = LIDS[name]
        if inside[upper, 1] - inside[lower, 1] < LEAST_OPEN:
            return np.zeros(2)
        moved = (inside - still)[IRISES[name], :2].mean(0)
        return np.clip(np.linalg.solve(self.eyes[name], moved), -0.6, 0.6)


class FaceCapture:
    """Frames of a camera -> `Signal`s, by MediaPipe's face mesh (extra `track`).

    Args:
        body: names its actions as ARKit does.
        landmarks: file of the detector's points on the body.
    """

    def __init__(self, body: BodyModel, landmarks: Path = LANDMARKS) -> None:
        mesh = require_mediapipe().solutions.face_mesh
        self.detector = mesh.FaceMesh(static_image_mode=False, max_num_faces=1, refine_landmarks=True)
        self.solver = FaceSolver(body, Landmarks.load(landmarks))

    def __call__(self, frame: NDArray[np.uint8], time: float) -> Signal | None:
        """An RGB frame `[H,W,3]` at `time` s; None where it shows no face."""
        height, width = frame.shape[:2]
        faces = self.detector.process(frame).multi_face_landmarks
        if not faces:
            return None
        return self.solver(points(faces[0], NUM_FACE_POINTS, width, height), time)

    def close(self) -> None:
        """Release the detector."""
        self.detector.close()
