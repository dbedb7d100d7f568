"""Distances of faces: known motions of known points, scipy's rotation, and the detector on a real face."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT
from tests.tools.detected import needs_mediapipe
from visa.artifacts.photos import read_photo
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.faces import CHIN, FOREHEAD, LIPS, MOVING, RIGID, face_errors, similarity
from visa.tools.track.face_points import face_points


def _points(count: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(64, 20, (count, 478, 3))


def test_the_similarity_is_scipys_rotation_and_finds_scale_and_shift() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 30, 3))
    found = similarity(a, b)
    expected, _ = Rotation.align_vectors(b - b.mean(0), a - a.mean(0))
    np.testing.assert_allclose(found.rotation, expected.as_matrix(), atol=1e-7)
    turn = Rotation.from_rotvec([0.3, -0.8, 0.2]).as_matrix()
    exact = similarity(a, 1.7 * a @ turn.T + (1, 2, 3))
    assert exact.scale == pytest.approx(1.7)
    np.testing.assert_allclose(exact(a), 1.7 * a @ turn.T + (1, 2, 3), atol=1e-9)
    mirrored = similarity(a, a * (-1, 1, 1))
    assert np.linalg.det(mirrored.rotation) == pytest.approx(1)  # a face has no mirror image


def test_a_turned_face_has_the_angle_as_pose_and_no_expression() -> None:
    truth = _points()
    centre = truth.mean(axis=1, keepdims=True)
    turned = (truth - centre) @ Rotation.from_rotvec([0, np.radians(12), 0]).as_matrix().T + centre
    errors = face_errors(turned, truth, side=128)
    np.testing.assert_allclose(errors.pose, 12, atol=1e-6)
    np.testing.assert_allclose(errors.expression, 0, atol=1e-6)
    expected = np.linalg.norm((turned - truth)[..., :2], axis=-1).mean(axis=1) * 2
    np.testing.assert_allclose(errors.keypoints, expected)


def test_a_moved_mouth_is_expression_by_its_share_of_the_points() -> None:
    truth = _points()
    spoken = truth.copy()
    spoken[:, list(LIPS), 1] += 3.0
    errors = face_errors(spoken, truth, side=256)
    height = np.linalg.norm(truth[:, FOREHEAD] - truth[:, CHIN], axis=-1)
    share = sum(point in LIPS for point in MOVING) / len(MOVING)
    np.testing.assert_allclose(errors.expression, 100 * 3.0 * share / height, rtol=1e-6)
    np.testing.assert_allclose(errors.pose, 0, atol=1e-4)
    np.testing.assert_allclose(errors.keypoints, 3.0 * len(set(LIPS)) / 478)
    assert not set(RIGID) & set(MOVING) - {CHIN}


def test_frames_without_a_face_are_left_out() -> None:
    truth, ours = _points(), _points(seed=1)
    ours[1] = np.nan
    assert len(face_errors(ours, truth, 64).pose) == 2
    assert len(face_errors(ours[1:2], truth[1:2], 64).pose) == 0


def test_rows_have_face_distances_or_say_why_not() -> None:
    truth = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def found(frames: torch.Tensor) -> np.ndarray:
        points = _points(len(frames))
        points[..., 0] += 4.0 * float(frames.mean() < 0.3)  # the darkened row's
        return points if float(frames.mean()) > 0.1 else np.full_like(points, np.nan)

    rows = {"same": Prediction(truth), "dark": Prediction(truth * 0.5), "black": Prediction(truth * 0)}
    figures = evaluate_rows(truth, rows, measures=["faces"], identity_every=4, face_points=found)
    assert figures["same"]["akd"] == 0
    assert figures["same"]["apd"] == pytest.approx(0, abs=1e-4)
    assert figures["dark"]["akd"] == pytest.approx(4.0 * 256 / 32)
    assert figures["dark"]["aed"] == pytest.approx(0, abs=1e-6)
    assert figures["black"]["aed"] is None
    assert figures["black"]["aed_reason"] == "no face found in both of 3 frame pairs"
    untold = evaluate_rows(truth, rows, measures=["faces"])["same"]
    assert untold["apd"] is None
    assert "pip install '.[track]'" in untold["apd_reason"]


@needs_mediapipe
@pytest.mark.slow
def test_the_detector_finds_a_real_face_in_a_small_picture_and_its_mirror_image() -> None:
    photo = torch.tensor(read_photo(ROOT / "assets/photos/astronaut.png")).permute(2, 0, 1)[None].float() / 255
    side = min(photo.shape[-2:])
    small = F.interpolate(photo[..., :side, :side], size=128, mode="area")
    points = face_points(torch.cat([small, torch.full_like(small, 0.5)]))
    assert points.shape == (2, 478, 3)
    assert np.isnan(points[1]).all()
    errors = face_errors(points[:1], face_points(small.half()), 128)
    assert errors.keypoints[0] < 1
    assert 0 < points[0, :, :2].min() < points[0, :, :2].max() < 128
    shifted = face_points(torch.roll(small, 6, dims=-1))
    assert shifted[0, :, 0].mean() - points[0, :, 0].mean() == pytest.approx(6, abs=1)
