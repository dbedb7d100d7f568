"""The causal tracker: a perfect detector of a known motion, the filter's own numbers, and the shipped clip."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT
from tests.tools.detected import needs_mediapipe, synthetic
from visa.datamodules.clip import load_track
from visa.live.capture import LANDMARKS, NEUTRAL_FRAMES, FaceCapture, FaceSolver, OneEuro
from visa.live.signal import Signal
from visa.networks.body import BodyModel, BodyParams
from visa.runtime.shipped import BODY
from visa.tools.track.correspond import Landmarks
from visa.tools.track.read import read_frames

FAST = 1e4  # Hz, a filter that lets everything through


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return BodyModel.from_file(ROOT / BODY)


def test_the_filter_is_a_low_pass_that_opens_with_speed() -> None:
    """One step by hand: at 1 Hz and 0.1 s a new value counts 2 pi 0.1 / (1 + 2 pi 0.1)."""
    smooth = OneEuro(cutoff=1.0, speed=0.0)
    smooth(np.zeros(1), 0.0)
    rate = 2 * np.pi * 0.1
    assert smooth(np.ones(1), 0.1)[0] == pytest.approx(rate / (1 + rate))
    fast = OneEuro(cutoff=1.0, speed=5.0)
    fast(np.zeros(1), 0.0)
    assert fast(np.ones(1), 0.1)[0] > rate / (1 + rate)


def solved(solver: FaceSolver, faces: np.ndarray) -> list[Signal]:
    solver._filter = OneEuro(cutoff=FAST)
    for _ in range(NEUTRAL_FRAMES):
        solver(faces[0], 0.0)
    return [solver(face, 0.04 * (1 + t)) for t, face in enumerate(faces)]


def test_a_perfect_detector_s_face_is_explained(body: BodyModel) -> None:
    landmarks = Landmarks.load(ROOT / LANDMARKS)
    detections, params = synthetic(body, landmarks)
    solver = FaceSolver(body, landmarks)
    found = solved(solver, detections.face)
    names = solver.shapes.names

    def track(name: str) -> np.ndarray:
        return np.array([float(signal.values[names.index(name)]) for signal in found])

    jaw = (params.jaw_pose[:, 0] - params.jaw_pose[0, 0]).numpy() / 0.35
    assert np.corrcoef(track("jawOpen"), jaw)[0, 1] > 0.95
    blink = params.expression[:, body.expression_names.index("eyeBlinkLeft")].numpy()
    assert np.corrcoef(track("eyeBlinkLeft"), blink)[0, 1] > 0.9
    turns = Rotation.from_rotvec(params.body_pose[:, 14].numpy())
    angles = [Rotation.from_rotvec(s.turn.numpy()) * (turns[0].inv() * turns[t]).inv() for t, s in enumerate(found)]
    assert np.degrees(np.median([angle.magnitude() for angle in angles])) < 3


def test_the_neutral_frame_is_neutral(body: BodyModel) -> None:
    landmarks = Landmarks.load(ROOT / LANDMARKS)
    detections, params = synthetic(body, landmarks)
    solver = FaceSolver(body, landmarks)
    signal = solved(solver, detections.face[:1])[-1]
    for value in (signal.values, signal.turn, signal.gaze, signal.shift):
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-4, rtol=0)
    assert isinstance(signal.posed(params[:1], solver.shapes), BodyParams)


@pytest.mark.slow
@needs_mediapipe
def test_the_shipped_clip_is_followed_as_its_track_says(body: BodyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    track = load_track("assets/clips/webcam_man.track.npz")
    capture, found, numbers = FaceCapture(body), [], []
    for number, frame in enumerate(islice(read_frames(ROOT / "assets/clips/webcam_man.mp4"), 150)):
        signal = capture(frame, number / 25)
        if signal is not None:
            found.append(signal)
            numbers.append(number)
    capture.close()
    assert len(found) > 140
    jaw = capture.solver.shapes.names.index("jawOpen")
    opened = np.array([float(signal.values[jaw]) for signal in found])
    assert np.corrcoef(opened, track["jaw_pose"][numbers, 0])[0, 1] > 0.6
