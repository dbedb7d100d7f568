"""Importers, on files built as the publishers' writers build them (cited in docs/import_tracks.md), against `smplx`."""

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT, write_clip
from visa.datamodules.clip import load_track
from visa.networks.body import BodyModel, BodyParams
from visa.tools.import_tracks.__main__ import main

EMBEDDED = ROOT / "assets/body/smplx_anny.npz"
FRAMES = 4


@pytest.fixture(scope="module")
def licensed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body file in the licensed files' layout: expressions without names, and a mean hand that is not flat."""
    with np.load(EMBEDDED, allow_pickle=False) as file:
        own = ("expression_names", "part", "part_names", "face_part")
        arrays = {name: file[name] for name in file.files if name not in own}
    rng = np.random.default_rng(0)
    arrays["hands_meanl"], arrays["hands_meanr"] = rng.normal(0, 0.3, (2, 45))
    path = tmp_path_factory.mktemp("body") / "smplx_licensed.npz"
    np.savez(path, **arrays)
    return path


def reference(path: Path, flat_hand_mean: bool, **fields: np.ndarray) -> np.ndarray:
    """Joints [T,55,3] by the `smplx` package."""
    smplx = pytest.importorskip("smplx", reason="the reference implementation is in the extra `smplx`")
    count = len(next(iter(fields.values())))
    model = smplx.create(
        str(path), model_type="smplx", ext="npz", use_pca=False, flat_hand_mean=flat_hand_mean, num_betas=10,
        num_expression_coeffs=10, batch_size=count, dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        given = {name: torch.from_numpy(np.asarray(value, np.float64)).flatten(1) for name, value in fields.items()}
        return model(**given).joints[:, :55].numpy()


def joints_of(track: Path, body: Path) -> tuple[np.ndarray, np.ndarray]:
    """Joints [T,55,3] in the world and [T,55,2] in the picture, as our code reads a track."""
    arrays = load_track(track)
    with torch.no_grad():
        joints = BodyModel.from_file(body)(BodyParams.from_track(arrays), torch.zeros(1, dtype=torch.long))[1].numpy()
    seen = np.einsum("tij,tnj->tni", arrays["world_to_camera"][:, :3, :3], joints)
    seen = np.einsum("tij,tnj->tni", arrays["intrinsics"], seen + arrays["world_to_camera"][:, None, :3, 3])
    return joints, seen[..., :2] / seen[..., 2:]


def random_pose(seed: int) -> dict[str, np.ndarray]:
    """Axis-angle fields as the `smplx` package names them, upright in a y-up world."""
    rng = np.random.default_rng(seed)
    joints = {
        "body_pose": 21,
        "jaw_pose": 1,
        "leye_pose": 1,
        "reye_pose": 1,
        "left_hand_pose": 15,
        "right_hand_pose": 15,
    }
    pose = {name: rng.normal(0, 0.2, (FRAMES, count, 3)) for name, count in joints.items()}
    return pose | {"global_orient": rng.normal(0, 0.1, (FRAMES, 1, 3))}


# --- SMPLer-X: the fields and shapes of main/inference.py ---


def write_smplerx(folder: Path, seed: int = 0) -> tuple[dict[str, np.ndarray], list[dict]]:
    """What inference writes for person 0 in pictures 1, 2 and 4 of a video, and a second person in one of them."""
    rng = np.random.default_rng(seed)
    fields = random_pose(seed)
    fields["global_orient"][:, 0, 0] += np.pi  # upright in a y-down camera
    fields |= {"betas": np.tile(rng.normal(0, 1, (1, 10)), (FRAMES, 1)), "expression": rng.normal(0, 1, (FRAMES, 10))}
    fields["transl"] = rng.normal([0, 0.3, 12], 0.2, (FRAMES, 3))
    (folder / "smplx").mkdir(parents=True)
    (folder / "meta").mkdir()
    metas = []
    for index in range(FRAMES):
        single = {name: fields[name][index].reshape(-1, 3).astype(np.float32) for name in random_pose(0)}
        single |= {name: fields[name][index][None].astype(np.float32) for name in ("betas", "expression", "transl")}
        single["leye_pose"] = single["leye_pose"].astype(np.float64)  # np.zeros((1, 3)) there
        meta = {
            "focal": [5000 / 192 * (200 + index), 5000 / 256 * 300],
            "princpt": [96 + index, 128.0],
            "bbox": [0, 0, 9, 9],
        }
        metas.append(meta)
        if index != 2:
            np.savez(folder / "smplx" / f"{index + 1:05}_0.npz", **single)
            (folder / "meta" / f"{index + 1:05}_0.json").write_text(json.dumps(meta))
    np.savez(folder / "smplx" / "00002_1.npz", **single)
    return fields, metas


def test_smplerx_lands_where_its_own_body_layer_and_camera_put_it(licensed: Path, tmp_path: Path) -> None:
    fields, metas = write_smplerx(tmp_path / "result")
    command = ["smplerx", str(tmp_path / "result"), "--out", str(tmp_path), "--smplx", str(licensed)]
    assert main([*command, "--body", str(licensed), "--size", "192", "256", "--fps", "30"]) == 0
    track = tmp_path / "result.track.npz"
    expected = reference(licensed, flat_hand_mean=False, **fields)
    joints, pixels = joints_of(track, licensed)
    arrays = load_track(track)
    assert arrays["frame_valid"].tolist() == [True, True, False, True]
    for index in (0, 1, 3):
        np.testing.assert_allclose(joints[index], expected[index], atol=1e-4)  # m; smplx's layer adds transl itself
        drawn = expected[index, :, :2] / expected[index, :, 2:] * metas[index]["focal"] + metas[index]["princpt"]
        np.testing.assert_allclose(pixels[index], drawn, atol=0.05)
    assert arrays["image_size"].tolist() == [192, 256]
    assert arrays["fps"] == 30
    np.testing.assert_allclose(arrays["betas"], fields["betas"][0], atol=1e-5)


@pytest.mark.slow
def test_smplerx_without_what_it_needs_says_so(
    licensed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_smplerx(tmp_path / "result")
    command = ["smplerx", str(tmp_path / "result"), "--out", str(tmp_path)]
    for extra, message in (
        (["--size", "9", "9"], "mean hand"),
        (["--size", "9", "9", "--smplx", str(EMBEDDED)], "flat mean hand"),
        (["--smplx", str(licensed)], "--size"),
        (["--size", "9", "9", "--smplx", str(licensed), "--person", "7"], "person 7"),
        (["--size", "9", "9", "--smplx", str(licensed), "--first", "3"], "--first"),
    ):
        assert main([*command, *extra]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (tmp_path / "result" / "meta" / "00001_0.json").unlink()
    assert main([*command, "--size", "9", "9", "--smplx", str(licensed)]) == 1
    assert "00001_0.json" in capsys.readouterr().err
    assert list(tmp_path.glob("*.track.npz")) == []


# --- EHM-Tracker: the dictionaries of data_prepare_pipeline.py and ehm_refiner.py ---


def write_ehm(folder: Path, seed: int = 1) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The two pickles of one tracked video; returns the SMPL-X fields and the cameras [T,3,4]."""
    rng = np.random.default_rng(seed)
    fields = random_pose(seed)
    expression, shape = rng.normal(0, 1, (FRAMES, 50)), rng.normal(0, 1, (1, 200))
    cameras = np.zeros((FRAMES, 3, 4))
    cameras[:, :, :3] = np.diag([-1.0, -1.0, 1.0]) @ np.diag([1.0, -1.0, -1.0])  # facing a y-up body, PyTorch3D's axes
    cameras[:, :, 3] = rng.normal([0, 0.4, 30], 0.1, (FRAMES, 3))
    crop = np.array([[1024 / 180, 0, -250], [0, 1024 / 180, -120], [0, 0, 1]])
    tracked = {}
    for index in range(FRAMES):
        tracked[f"frame_{index:06d}"] = {
            "body_crop": {"M_o2c-hd": crop, "M_c2o-hd": np.linalg.inv(crop)},
            "dwpose_raw": {"keypoints": np.zeros((133, 2)), "faces": None},
            "smplx_coeffs": {
                "exp": np.zeros(50, np.float32),
                "global_pose": fields["global_orient"][index, 0].astype(np.float32),
                "body_pose": fields["body_pose"][index].astype(np.float32),
                "body_cam": np.ones(3, np.float32),
                "camera_RT_params": cameras[index].astype(np.float32),
                "left_hand_pose": fields["left_hand_pose"][index].astype(np.float32),
                "right_hand_pose": fields["right_hand_pose"][index].astype(np.float32),
            },
            "flame_coeffs": {
                "expression_params": expression[index].astype(np.float32),
                "jaw_params": fields["jaw_pose"][index, 0].astype(np.float32),
                "pose_params": np.zeros(3, np.float32),
                "eye_pose_params": np.concatenate(
                    [fields["leye_pose"][index, 0], fields["reye_pose"][index, 0]]
                ).astype(np.float32),
                "eyelid_params": np.zeros(2, np.float32),
                "camera_RT_params": np.zeros((3, 4), np.float32),
                "cam": np.ones(3, np.float32),
            },
        }
    shared = {
        "smplx_shape": shape.astype(np.float32), "flame_shape": np.zeros((1, 300), np.float32),
        "joints_offset": np.zeros((1, 55, 3), np.float32), "head_scale": np.ones((1, 3), np.float32),
        "hand_scale": np.ones((1, 3), np.float32),
    }  # fmt: skip
    folder.mkdir()
    (folder / "optim_tracking_ehm.pkl").write_bytes(pickle.dumps(tracked))
    (folder / "id_share_params.pkl").write_bytes(pickle.dumps(shared))
    return fields | {"betas": np.tile(shape[:, :10], (FRAMES, 1)), "expression": expression[:, :10]}, cameras


def convert(folder: Path) -> Path:
    """Run the lines that the docs give for EHM-Tracker's environment."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/import_tracks.md").read_text(), re.DOTALL)[1]
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    return folder / "ehm_tracking.npz"


def test_ehm_projects_as_its_own_camera_does(licensed: Path, tmp_path: Path) -> None:
    fields, cameras = write_ehm(tmp_path / "video")
    npz = convert(tmp_path / "video")
    expected = reference(licensed, flat_hand_mean=True, **fields)
    view = np.einsum("tij,tnj->tni", cameras[:, :, :3], expected) + cameras[:, None, :, 3]
    screen = (1 - 24 * view[..., :2] / view[..., 2:]) * 1024 / 2  # GS_Camera.transform_points_screen
    assert main(["ehm", str(npz), "--out", str(tmp_path), "--body", str(licensed), "--name", "crop"]) == 0
    joints, pixels = joints_of(tmp_path / "crop.track.npz", licensed)
    np.testing.assert_allclose(joints, expected, atol=1e-4)
    np.testing.assert_allclose(pixels, screen, atol=0.1)
    # upright and seen from the front: the person's left is on the right of the picture
    assert (pixels[:, 15, 1] < pixels[:, 0, 1]).all()
    assert (pixels[:, 16, 0] > pixels[:, 17, 0]).all()
    video = write_clip(tmp_path, "film", num_frames=FRAMES)
    assert main(["ehm", str(npz), "--video", str(video), "--out", str(tmp_path), "--body", str(licensed)]) == 0
    _, whole = joints_of(tmp_path / "ehm_tracking.track.npz", licensed)
    np.testing.assert_allclose(whole, (screen + np.array([250, 120])) * 180 / 1024, atol=0.05)
    assert load_track(tmp_path / "ehm_tracking.track.npz")["image_size"].tolist() == [96, 72]


def test_ehm_pickles_are_not_opened_and_other_lengths_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ehm(tmp_path / "video")
    npz = convert(tmp_path / "video")
    for given in (tmp_path / "video", tmp_path / "video" / "optim_tracking_ehm.pkl"):
        assert main(["ehm", str(given), "--out", str(tmp_path)]) == 1
        assert "not opened" in capsys.readouterr().err
    video = write_clip(tmp_path, "film", num_frames=FRAMES + 2)
    assert main(["ehm", str(npz), "--video", str(video), "--out", str(tmp_path)]) == 1
    assert f"holds {FRAMES} frames and the video {FRAMES + 2}" in capsys.readouterr().err


# --- AMASS: the arrays of moshpp's load_as_amass_npz (SMPL-X) and of the SMPL-H release ---


def write_amass(path: Path, is_smplx: bool, frames: int = 240, rate: float = 120.0) -> dict[str, np.ndarray]:
    """A walk along x, turned by 130 degrees about the vertical z; returns the fields by our names."""
    rng = np.random.default_rng(2)
    upright = Rotation.from_euler("xz", [90, 130], degrees=True)  # y-up body into the z-up world, then turned
    sway = Rotation.from_rotvec(0.1 * np.sin(np.arange(frames) / 30)[:, None] * [[0.0, 1.0, 0.0]])
    fields = {"global_orient": (upright * sway).as_rotvec()}
    slow = np.sin(np.arange(frames)[:, None] / 40 + rng.uniform(0, 6, 63 + 90 + 9))
    fields["body_pose"] = 0.15 * slow[:, :63].reshape(frames, 21, 3)
    hands = 0.2 * slow[:, 63:153].reshape(frames, 30, 3)
    fields |= {"left_hand_pose": hands[:, :15], "right_hand_pose": hands[:, 15:]}
    face = 0.1 * slow[:, 153:] if is_smplx else np.zeros((frames, 9))
    fields |= {"jaw_pose": face[:, :3], "leye_pose": face[:, 3:6], "reye_pose": face[:, 6:]}
    fields["transl"] = np.stack([np.arange(frames) / rate, np.full(frames, 3.0), np.full(frames, 0.9)], axis=1)
    order = ["global_orient", "body_pose", "left_hand_pose", "right_hand_pose"]
    if is_smplx:
        order[2:2] = ["jaw_pose", "leye_pose", "reye_pose"]
    poses = np.concatenate([fields[name].reshape(frames, -1) for name in order], axis=1)
    common = {"trans": fields["transl"], "poses": poses, "betas": rng.normal(0, 1, 16), "gender": "male"}
    if is_smplx:
        common |= {
            "surface_model_type": "smplx", "mocap_frame_rate": rate, "mocap_time_length": frames / rate,
            "root_orient": poses[:, :3], "pose_body": poses[:, 3:66], "num_betas": 16,
            "markers_latent_vids": {"ARIEL": 3},  # a dictionary: numpy pickles it
        }  # fmt: skip
    else:
        common |= {"mocap_framerate": rate, "dmpls": np.zeros((frames, 8))}
    np.savez(path, **common)
    return fields


@pytest.mark.parametrize("is_smplx", [True, False])
def test_amass_moves_the_body_as_written_in_front_of_a_level_camera(
    licensed: Path, tmp_path: Path, is_smplx: bool
) -> None:
    fields = write_amass(tmp_path / "walk_poses.npz", is_smplx)
    command = ["amass", str(tmp_path / "walk_poses.npz"), "--out", str(tmp_path), "--travel"]
    assert main([*command, "--body", str(licensed), "--fps", "25"]) == 0
    arrays = load_track(tmp_path / "walk_poses.track.npz")
    picked = np.round(np.arange(50) * 120 / 25).astype(int)  # 2 s
    assert len(arrays["transl"]) == 50
    chosen = {name: values[picked] for name, values in fields.items()}
    neutral = {"betas": np.zeros((50, 10)), "expression": np.zeros((50, 10))}
    joints, pixels = joints_of(tmp_path / "walk_poses.track.npz", licensed)
    np.testing.assert_allclose(joints, reference(licensed, flat_hand_mean=True, **chosen, **neutral), atol=1e-4)
    assert (joints[:, 15, 2] - joints[:, 0, 2] > 0.4).all()  # the head is above the pelvis, in the z-up world
    assert (pixels[:, 15, 1] < pixels[:, 0, 1]).all()  # and in the picture
    assert (pixels[:, 16, 0] > pixels[:, 17, 0]).all()  # seen from the front
    view = arrays["world_to_camera"]
    depth = np.einsum("tj,tnj->tn", view[:, 2, :3], joints) + view[:, None, 2, 3]
    assert abs(depth[:, 9].mean() - 2.0) < 0.05  # m
    assert (depth[:, [23, 24]].mean(axis=1) < depth[:, 15]).all()  # the eyes are nearer than the head's joint
    assert np.abs(view[0, 1, :2]).max() < 1e-6  # level
    assert np.linalg.det(view[0, :3, :3]) == pytest.approx(1)


def test_amass_in_place_stays_in_the_picture_and_drives_the_shipped_body(tmp_path: Path) -> None:
    write_amass(tmp_path / "walk_poses.npz", is_smplx=False)
    assert main(["amass", str(tmp_path / "walk_poses.npz"), "--out", str(tmp_path), "--body", str(EMBEDDED)]) == 0
    arrays = load_track(tmp_path / "walk_poses.track.npz")
    assert arrays["expression"].shape == (50, 40)
    assert arrays["fps"] == 25
    assert np.ptp(arrays["transl"][:, :2], axis=0).max() == 0
    _, pixels = joints_of(tmp_path / "walk_poses.track.npz", EMBEDDED)
    assert ((pixels[:, [0, 12, 15]] > 0) & (pixels[:, [0, 12, 15]] < 512)).all()


@pytest.mark.slow
def test_amass_of_another_layout_is_a_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {"poses": np.zeros((5, 156)), "trans": np.zeros((5, 3)), "mocap_framerate": 60.0}
    for change, message in (
        ({"poses": np.zeros((5, 72))}, "156"),
        ({"trans": np.zeros((4, 3))}, "4 frames"),
        ({"mocap_framerate": -1.0}, "mocap_framerate"),
        ({"poses": np.zeros((0, 156)), "trans": np.zeros((0, 3))}, "0 frames"),
    ):
        np.savez(tmp_path / "bad.npz", **{**good, **change})
        assert main(["amass", str(tmp_path / "bad.npz"), "--out", str(tmp_path)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    np.savez(tmp_path / "bad.npz", **good)
    whole = (tmp_path / "bad.npz").read_bytes()
    for content in (b"nonsense", whole[:-100], b""):
        (tmp_path / "bad.npz").write_bytes(content)
        assert main(["amass", str(tmp_path / "bad.npz"), "--out", str(tmp_path)]) == 1
        assert "no readable npz" in capsys.readouterr().err
    assert main(["amass", str(tmp_path / "absent.npz"), "--out", str(tmp_path)]) == 1
    assert list(tmp_path.glob("*.track.npz")) == []
