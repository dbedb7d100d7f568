"""Tracker: correspondences, fit against a known body, contract files, errors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.detected import face_points, needs_mediapipe, quiet, synthetic
from visa.networks.body import BodyModel, BodyParams, rotation_matrices
from visa.networks.joints import HEAD
from visa.tools.track.__main__ import main
from visa.tools.track.correspond import (
    LOWER_INNER_LIP,
    UPPER_INNER_LIP,
    Landmarks,
    closest_barycentric,
    head_of,
)
from visa.tools.track.detect import CutFinder, Detections
from visa.tools.track.fit import Track, fit
from visa.tools.track.matte import refine, steady_masks
from visa.tools.track.options import FitOptions
from visa.tools.track.read import read_frames
from visa.tools.track.render import shade, visible_triangles
from visa.tools.track.report import report_of
from visa.tools.track.skeleton import matrix_to_axis_angle
from visa.tools.track.start import rigid_start
from visa.tools.track.targets import covered, solved_frames
from visa.tools.track.terms import Objective
from visa.tools.track.write import VideoWriter, whole_or_nothing, write_clip

OPTIONS = FitOptions(num_coarse_steps=220, num_fine_steps=60)


@pytest.fixture(scope="module")
def solved(body: BodyModel, landmarks: Landmarks) -> tuple[Detections, BodyParams, Track]:
    detections, params = synthetic(body, landmarks)
    return detections, params, fit(detections, body, landmarks, OPTIONS, progress=quiet)


def head_turn(body: BodyModel, params: BodyParams) -> torch.Tensor:
    return body.joint_transforms(params)[:, HEAD, :3, :3]


def test_mouth_and_lid_points_move_with_jaw_and_lids(body: BodyModel, landmarks: Landmarks) -> None:
    params = BodyParams.zeros((3,), body.num_expressions)
    params.jaw_pose[1, 0] = 0.3
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        params.expression[2, body.expression_names.index(name)] = 0.65
    face = face_points(body, landmarks, params)
    mouth = np.linalg.norm(face[:, 13] - face[:, 14], axis=-1)
    assert mouth[0] < 0.003
    assert mouth[1] > 0.012
    for upper, lower in ((159, 145), (386, 374)):
        gap = face[:, upper, 1] - face[:, lower, 1]
        assert gap[0] > 0.006
        assert gap[2] < 0.3 * gap[0]
    # The lower lip's rim hangs on the jaw, the upper lip's on the skull.
    fall = face[0, :, 1] - face[1, :, 1]
    assert fall[list(LOWER_INNER_LIP[2:-2])].min() > 0.01
    assert np.abs(fall[list(UPPER_INNER_LIP[2:-2])]).max() < 0.004


def test_face_points_lie_on_skin_and_irises_on_eyeballs(body: BodyModel, landmarks: Landmarks) -> None:
    names = np.array(body.part_names)[body.part.numpy()][body.faces.numpy()[landmarks.face_index]]
    assert (names[:468] == "skin").all()
    assert (names[468:473] == "eyeball_right").all()
    assert (names[473:] == "eyeball_left").all()
    np.testing.assert_allclose(landmarks.face_barycentric.sum(-1), 1, atol=1e-5)
    assert landmarks.face_barycentric.min() > -1e-5
    # Left and right are the subject's: +x is left.
    places = face_points(body, landmarks, BodyParams.zeros((1,), body.num_expressions))[0]
    assert places[263, 0] > 0.03
    assert places[33, 0] < -0.03
    assert np.abs(places[[10, 152, 1, 13, 14], 0]).max() < 0.004


def test_fit_recovers_a_known_clip(body: BodyModel, solved: tuple) -> None:
    detections, truth, track = solved
    assert track.frame_valid.all()
    between = head_turn(body, truth).transpose(-1, -2) @ head_turn(body, track.params)
    angle = matrix_to_axis_angle(between).norm(dim=-1)
    # The ends of a clip have a neighbour on one side only.
    assert angle.mean() < np.radians(2.5)
    assert angle.max() < np.radians(5)
    # The lips' own actions can open the mouth, too, so the jaw's share of the opening is known less well than its
    # course.
    jaw, true_jaw = track.params.jaw_pose[:, 0], truth.jaw_pose[:, 0]
    assert torch.corrcoef(torch.stack([jaw, true_jaw]))[0, 1] > 0.98
    assert 0.65 < float((jaw.max() - jaw.min()) / (true_jaw.max() - true_jaw.min())) < 1.1
    report = report_of(detections, track)
    # The points are exact here: what remains is what the priors on expression and motion cost.
    assert report["face_error_percent"] < 0.6
    assert report["body_error_percent"] < 2
    assert report["mouth_opening_correlation"] > 0.98
    assert report["eyes_opening_correlation"] > 0.98
    assert 0.85 < report["mouth_opening_range_ratio"] < 1.15
    assert 0.85 < report["eyes_opening_range_ratio"] < 1.15
    assert report["brow_height_correlation"] > 0.98
    assert 0.8 < report["brow_height_range_ratio"] < 1.15


@pytest.mark.slow
def test_quick_motions_are_followed_and_not_smoothed_away(body: BodyModel, landmarks: Landmarks) -> None:
    detections, _ = synthetic(body, landmarks)
    shake = np.float32(12) * (np.arange(detections.num_frames) // 2 % 2)[:, None]  # px to the side, of a face of 75
    face, pose = detections.face.copy(), detections.pose.copy()
    face[..., 0] += shake
    pose[..., 0] += shake
    shaken = replace(detections, face=face, pose=pose)

    track = fit(shaken, body, landmarks, OPTIONS, progress=quiet)
    assert track.frame_valid.all()  # with squares alone they are left behind by more than `max_error_percent`
    assert np.linalg.norm(track.face - face[..., :2], axis=-1).mean() < 1.0


def test_reported_points_are_those_of_the_written_parameters(
    body: BodyModel, landmarks: Landmarks, solved: tuple
) -> None:
    _, _, track = solved
    places = face_points(body, landmarks, track.params) * (1, -1, -1)
    pixels = places @ track.intrinsics.T
    np.testing.assert_allclose(pixels[..., :2] / pixels[..., 2:], track.face, atol=0.3)


def test_long_gaps_and_cuts_are_not_bridged(body: BodyModel, landmarks: Landmarks) -> None:
    detections, _ = synthetic(body, landmarks, count=30)
    detections.face[4:6] = np.nan  # short: bridged
    detections.face[10:20] = np.nan  # long: not
    detections.face[24:26] = np.nan  # short, but with a cut inside
    detections.shot[25:] = 1
    expected = np.r_[np.arange(10), np.arange(20, 24), np.arange(26, 30)]
    np.testing.assert_array_equal(solved_frames(detections, OPTIONS), expected)
    track = fit(detections, body, landmarks, FitOptions(num_coarse_steps=40, num_fine_steps=5), progress=quiet)
    assert not track.frame_valid[10:20].any()
    assert not track.params.transl[10:20].any()
    assert all(torch.isfinite(value).all() for value in vars(track.params).values())
    model = Objective(body, landmarks, track.intrinsics, OPTIONS).model
    assert len(model.landmarks.pose_index) == len(model.landmarks.pose_offset)


def test_no_face_is_an_error(body: BodyModel, landmarks: Landmarks) -> None:
    detections, _ = synthetic(body, landmarks, count=4)
    detections.face[:] = np.nan
    with pytest.raises(ValueError, match="no person found"):
        fit(detections, body, landmarks, OPTIONS, progress=quiet)


def test_rotation_logarithm_inverts_the_exponential() -> None:
    vector = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    vector[0] = 0
    matrix = rotation_matrices(vector)
    torch.testing.assert_close(rotation_matrices(matrix_to_axis_angle(matrix)), matrix, atol=1e-4, rtol=0)


def test_rigid_start_recovers_a_similarity() -> None:
    random = np.random.default_rng(0)
    rest = random.normal(size=(478, 3)) * 0.06
    turn = rotation_matrices(torch.tensor([0.1, 0.5, -0.2])).numpy()
    placed = rest @ turn.T * 700 + (5, -3, 0)  # px, y-up
    face = np.stack([placed[:, 0] + 160, 120 - placed[:, 1], -placed[:, 2]], -1)[None]
    rotation, origin = rigid_start(rest, face, 384.0, (160.0, 120.0))
    np.testing.assert_allclose(rotation[0], turn, atol=1e-4)
    np.testing.assert_allclose(origin[0, 2] + (turn @ rest.mean(0))[2], -384 / 700, atol=1e-4)


def test_hand_covers_points_near_its_bones() -> None:
    hand = np.stack([np.linspace(0, 20, 21), np.zeros(21)], -1)[None].astype(np.float32)
    hand[0, 17] = (5, 20)
    points = np.array([[[2.5, 1.0], [200.0, 1.0]]], np.float32)
    np.testing.assert_array_equal(covered(points, hand), [[True, False]])
    assert not covered(points, np.full_like(hand, np.nan)).any()


def test_cuts_are_told_from_motion() -> None:
    random = np.random.default_rng(0)
    first, second = (random.integers(0, 255, (6, 8, 3)).repeat(20, 0).repeat(20, 1).astype(np.uint8) for _ in range(2))
    finder = CutFinder()
    frames = [np.roll(first, t, 1) for t in range(8)] + [np.roll(second, t, 1) for t in range(8)]
    assert [t for t, frame in enumerate(frames) if finder.is_cut(frame)] == [8]


def test_visible_triangle_is_the_nearest() -> None:
    points = np.array([[-1, -1, 2], [1, -1, 2], [0, 1, 2], [-2, -2, 4], [2, -2, 4], [0, 2, 4]], np.float32)
    seen = visible_triangles(points, np.array([[3, 4, 5], [0, 1, 2]]), 20.0, 40)
    assert seen[20, 20] == 1
    assert seen[0, 0] == -1


def test_closest_point_of_a_triangle() -> None:
    corners = np.array([[[0, 0, 0], [1, 0, 0], [0, 1, 0]]], float)
    np.testing.assert_allclose(closest_barycentric(corners, np.array([0.25, 0.25, 3.0])), [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(closest_barycentric(corners, np.array([0.5, -1.0, 0.0])), [[0.5, 0.5, 0]])
    np.testing.assert_allclose(closest_barycentric(corners, np.array([-1.0, -1.0, 0.0])), [[1, 0, 0]])


def test_mask_keeps_the_person_alone_and_follows_the_edge(solved: tuple) -> None:
    detections, _, track = solved
    mask = detections.mask.copy()
    detections.mask[:, 150:, 230:] = 255  # a lamp
    steady = steady_masks(detections, track.frame_valid)
    detections.mask[:] = mask
    assert steady[3, 170, 240] == 0
    assert steady[3, 100, 100] == 255
    frame = np.full((240, 320, 3), 30, np.uint8)
    frame[:, 160:] = 200
    coarse = np.zeros((192, 256), np.uint8)
    coarse[:, 128:] = 255
    coarse[:, 124:132] = np.linspace(0, 255, 8).astype(np.uint8)
    fine = refine(coarse, frame)
    assert fine[:, 155].max() < 0.1
    assert fine[:, 164].min() > 0.9


def test_contract_files(tmp_path: Path, body: BodyModel, solved: tuple) -> None:
    detections, _, track = solved
    source = tmp_path / "talk.mp4"
    writer = VideoWriter(source, 25.0, 320, 240, crf=20)
    for t in range(detections.num_frames):
        writer.write(np.full((240, 320, 3), 10 * t, np.uint8))
    writer.close()
    paths = write_clip(source, tmp_path / "out", detections, track, {"a": 1}, body, "smplx_anny.npz", progress=quiet)
    names = ["talk.mask.mp4", "talk.mp4", "talk.overlay.mp4", "talk.report.json", "talk.track.npz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(path.name for path in paths) == names
    assert (tmp_path / "out" / "talk.mp4").read_bytes() == source.read_bytes()
    with np.load(tmp_path / "out" / "talk.track.npz", allow_pickle=False) as file:
        arrays = dict(file)
    count, expressions = detections.num_frames, body.num_expressions
    shapes = {
        "betas": (10,), "expression": (count, expressions), "global_orient": (count, 3), "transl": (count, 3),
        "body_pose": (count, 21, 3), "jaw_pose": (count, 3), "leye_pose": (count, 3), "reye_pose": (count, 3),
        "left_hand_pose": (count, 15, 3), "right_hand_pose": (count, 15, 3), "intrinsics": (count, 3, 3),
        "world_to_camera": (count, 4, 4), "frame_valid": (count,), "fps": (), "image_size": (2,), "body_model": (),
    }  # fmt: skip
    assert {name: value.shape for name, value in arrays.items()} == shapes
    assert all(np.isfinite(value).all() for value in arrays.values() if value.dtype.kind == "f")
    read = BodyParams.from_track(arrays)
    torch.testing.assert_close(read.body_pose, track.params.body_pose)
    masks = np.stack([frame[..., 0] for frame in read_frames(tmp_path / "out" / "talk.mask.mp4")])
    assert masks.shape == (count, 240, 320)
    assert masks[5, 150, 160] > 250
    assert masks[5, 20, 20] < 5


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    def write() -> None:
        with whole_or_nothing([tmp_path / "a", tmp_path / "b"]) as (first, _):
            first.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["absent.mp4", "broken.mp4", "broken.png"])
def test_bad_input_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visa.tools.track.detect.Detector", lambda **_: None)
    monkeypatch.setattr("visa.tools.track.detect.People", MagicMock())
    monkeypatch.setitem(sys.modules, "mediapipe", object())
    source = tmp_path / name
    if not name.startswith("absent"):
        source.write_bytes(b"this is no picture" * 20)
    assert main([str(source), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert name in lines[0]
    assert not (tmp_path / "out").exists()


def test_missing_extra_is_named(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    assert main([str(tmp_path / "photo.png"), "--out", str(tmp_path / "out")]) == 1
    assert ".[track]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_landmark_file_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "wrong.npz", a=1)
    with pytest.raises(ValueError, match=r"python -m visa.tools\.track\.correspond"):
        Landmarks.load(tmp_path / "wrong.npz")


@needs_mediapipe
def test_photo_from_end_to_end(tmp_path: Path, body: BodyModel) -> None:
    head = head_of(body)
    picture = shade(head.seen_from(15, 0, 0.75), head.faces, head.colours, 500.0, 320)
    Image.fromarray(picture).save(tmp_path / "doll.png")
    assert main([str(tmp_path / "doll.png"), "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "doll.report.json").read_text())
    assert report["face_error_percent"] < 1.5
    with np.load(tmp_path / "out" / "doll.track.npz", allow_pickle=False) as track:
        params = BodyParams.from_track(track)
    turn = matrix_to_axis_angle(body.joint_transforms(params)[0, HEAD, :3, :3])
    assert abs(float(turn[1]) - np.radians(15)) < np.radians(4)


@needs_mediapipe
def test_picture_without_a_person_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    Image.new("RGB", (128, 96), (90, 120, 60)).save(tmp_path / "field.png")
    assert main([str(tmp_path / "field.png"), "--out", str(tmp_path / "out")]) == 1
    assert "no person found" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
