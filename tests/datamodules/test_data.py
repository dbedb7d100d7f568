"""Clips, splits, windows, the progressive schedule and the errors of bad data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, clip_track, write_clip
from visa.datamodules.augment import Augment
from visa.datamodules.baselines import frozen_frame
from visa.datamodules.clip import TRACK_FIELDS, Clip, Splits, frame_rate, load_track
from visa.datamodules.retarget import retarget
from visa.datamodules.schedule import Phase, check_phases, phase_at
from visa.datamodules.sources import ClipSource
from visa.datamodules.video import VideoDataModule
from visa.datamodules.windows import WindowReader, collate
from visa.networks.body import BodyModel, BodyParams
from visa.networks.template import build_template


def module(path: Path, **options: object) -> VideoDataModule:
    data = VideoDataModule(clips=[ClipSource(str(path))], schedule=[Phase(0, 64, 5, 2)], num_steps=6, **options)
    data.setup("fit")
    return data


def test_splits_keep_test_validation_and_gaps_out_of_training(clip_path: Path) -> None:
    training = Clip(clip_path).training_frames()
    assert set(training) == set(range(18)) | set(range(27, 32))


def test_the_frozen_frame_of_a_person_who_never_trains_is_the_photo(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "anna")
    splits = path.with_name("anna.splits.yaml")
    frames = np.arange(20, 25)
    splits.write_text("test: [[20, 24]]\ngap: 2\nreference: 3\n")
    assert frozen_frame(Clip(path), frames).tolist() == [17] * 5  # the last before the gap
    splits.write_text("test: [[20, 24]]\ngap: 2\nreference: 3\ntrain: false\n")
    assert frozen_frame(Clip(path), frames).tolist() == [3] * 5


def test_crop_and_zoom_keep_projected_points_on_their_pixels(clip_path: Path) -> None:
    """A point's colour is the same wherever crop and zoom put it: the intrinsics move with the pixels."""
    clip = Clip(clip_path)
    point = np.array([0.03, 0.2, 0.1, 1.0])
    seen = []
    for zoom, shift, resolution in ((1.0, (0.0, 0.0), 72), (0.7, (0.3, -0.5), 50), (0.7, (-1.0, 1.0), 144)):
        frames, _, intrinsics = clip.window(np.array([4]), resolution, zoom, shift)
        pixel = intrinsics[0].numpy() @ (clip.track["world_to_camera"][4] @ point)[:3]
        grid = torch.tensor(pixel[:2] / pixel[2] / resolution * 2 - 1, dtype=torch.float32).view(1, 1, 1, 2)
        smooth = torch.nn.functional.avg_pool2d(frames, 3, 1, 1)
        seen.append(torch.nn.functional.grid_sample(smooth, grid, align_corners=False).flatten())
    assert torch.allclose(seen[0], seen[1], atol=0.03)
    assert torch.allclose(seen[0], seen[2], atol=0.03)


def test_a_batch_is_a_function_of_seed_step_and_rank(clip_path: Path) -> None:
    data = module(clip_path)
    batches = list(data.train_dataloader())
    again = list(module(clip_path).train_dataloader())
    assert len(batches) == 6
    for a, b in zip(batches, again, strict=True):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.body.body_pose, b.body.body_pose)
    assert not torch.equal(batches[0].frame_numbers, batches[1].frame_numbers)


def test_training_windows_hold_training_frames_only(clip_path: Path) -> None:
    allowed = set(Clip(clip_path).training_frames())
    for batch in module(clip_path).train_dataloader():
        assert set(batch.frame_numbers.flatten().tolist()) <= allowed
        assert set(batch.reference_numbers.tolist()) <= allowed


def test_a_clip_shorter_than_asked_is_played_forth_and_back(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "short", num_frames=4)
    data = VideoDataModule(clips=[ClipSource(str(path))], schedule=[Phase(0, 64, 9, 1)], num_steps=1)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.frame_numbers[0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]  # frame 3 validates


def test_phases_change_at_their_boundary() -> None:
    phases = check_phases([Phase(start=10, resolution=96), Phase(start=0, resolution=64)])
    assert [phase_at(phases, step).resolution for step in (0, 9, 10, 99)] == [64, 64, 96, 96]
    with pytest.raises(ValueError, match="start 0"):
        check_phases([Phase(start=3)])


@pytest.mark.parametrize("name", TRACK_FIELDS[:-1])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])  # float32 cannot hold the last
def test_nan_in_a_track_makes_the_frame_invalid_and_names_the_field(tmp_path: Path, name: str, value: float) -> None:
    track = {**clip_track(5), "frame_valid": np.array([True, True, True, True, False])}
    track[name] = track[name].astype(np.float64)
    for frame in (2, 4):  # of the last one nothing was known anyway
        track[name][frame].flat[1] = value
    np.savez(tmp_path / "a.track.npz", **track)
    with pytest.warns(UserWarning, match=rf"a\.track\.npz: {name} holds NaN or infinity in 1 frames \(2\)"):
        loaded = load_track(tmp_path / "a.track.npz")
    assert loaded["frame_valid"].tolist() == [True, True, False, True, False]
    assert np.isfinite(loaded[name]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda track: track.pop("jaw_pose"), "lacks jaw_pose"),
        (lambda track: track.update(transl=track["transl"][:3]), "transl has 3 frames"),
        (lambda track: track.update(transl=np.float32(0)), "transl has no frames"),
        (
            lambda track: track.update(body_pose=track["body_pose"][:, :20]),
            r"body_pose is \[5, 20, 3\], not \[5, 21, 3\]",
        ),
        (lambda track: track.update(jaw_pose=np.array(["a"] * 5)), "jaw_pose holds <U1, not numbers"),
        (lambda track: track.update(jaw_pose=np.zeros((5, 3), complex)), "jaw_pose holds complex128, not numbers"),
        (lambda track: track.update(betas=np.float32(0)), "betas is \\[\\]: give 10"),
        (lambda track: track.update(betas=np.zeros(4)), "betas is \\[4\\]: give 10"),
        (lambda track: track.update(betas=np.full(10, np.nan)), "betas holds NaN"),
    ],
)
def test_a_wrong_track_is_one_line(tmp_path: Path, damage: object, message: str) -> None:
    track = clip_track(5)
    damage(track)
    np.savez(tmp_path / "a.track.npz", **track)
    with pytest.raises(ValueError, match=message) as caught:
        load_track(tmp_path / "a.track.npz")
    assert "\n" not in str(caught.value)
    assert "a.track.npz" in str(caught.value)


def test_flat_layouts_are_folded(tmp_path: Path) -> None:
    track = clip_track(5)
    rng = np.random.default_rng(0)
    track["body_pose"], track["betas"] = rng.normal(size=(5, 21, 3)).astype(np.float32), rng.normal(size=10)
    np.savez(tmp_path / "a.track.npz", **track)
    flat = {
        **track,
        "frame_valid": track["frame_valid"][:, None],
        "betas": np.append(track["betas"], np.zeros(290))[None],
    }
    for name in ("body_pose", "left_hand_pose", "right_hand_pose", "intrinsics"):
        flat[name] = track[name].reshape(5, -1)
    np.savez(tmp_path / "b.track.npz", **flat)
    one, other = (load_track(tmp_path / f"{name}.track.npz") for name in "ab")
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_a_file_that_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.track.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^\S*a\.track\.npz is not a readable track file [^\n]*$"):
        load_track(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="is not a readable track file"):
        load_track(path)


def test_a_track_of_another_length_than_the_video_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "a", num_frames=6)
    np.savez(tmp_path / "a.track.npz", **clip_track(7))
    with pytest.raises(ValueError, match="has 6 frames, its track 7"):
        Clip(path).load()


def test_an_unreadable_video_is_one_line(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "a", num_frames=6)
    path.write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be decoded") as caught:
        Clip(path).load()
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_splits_is_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path, "a", num_frames=6)
    path.with_name("a.splits.yaml").write_text("tests: [[0, 1]]\n")
    with pytest.raises(ValueError, match="unknown key tests"):
        Clip(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("test: [0, 1]\n", r"'\[0, 1\]' is no list of ranges: write \[\[first, last\], ...\]"),
        ("validation: 3\n", "is no list of ranges"),
        ("test: [[3, 1]]\n", r"the range \[3, 1\] ends before it begins"),
        ("test: [[-1, 1]]\n", "'-1' is no frame number"),
        ("gap: wide\n", "'wide' is no frame number: give a whole number from 0 on"),
        ("reference: 1.5\n", "'1.5' is no frame number"),
        ("train: nobody\n", "train is 'nobody': give true or false"),
        ("- 3\n", "is no mapping: give it keys of gap"),
    ],
)
def test_wrong_splits_are_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.splits.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.splits\.yaml:? .*{message}") as caught:
        Splits.read(path, 50)
    assert "\n" not in str(caught.value)


def test_without_splits_the_last_tenth_validates(tmp_path: Path) -> None:
    splits = Splits.read(tmp_path / "none.splits.yaml", 50)
    assert splits.validation == [(45, 49)]


def test_colour_augmentation_leaves_the_background(clip_path: Path) -> None:
    clip, reader = Clip(clip_path), WindowReader((0.5, 0.25, 0.75))
    batch = reader.read(clip, np.arange(3), 0, 64, rng=np.random.default_rng(0), augment=Augment(zoom=1.0, colour=0.3))
    outside = batch.masks[0, 0, 0] < 0.001
    assert torch.allclose(batch.frames[0, 0][:, outside], torch.tensor([[0.5], [0.25], [0.75]]), atol=1e-3)


def test_the_neck_band_lies_between_head_and_torso() -> None:
    body = BodyModel.from_file(ROOT / "assets/body/smplx_anny.npz")
    whole, cut = build_template(body, remove_neck=False), build_template(body, remove_neck=True)
    assert len(whole.vertex_ids) == len(cut.vertex_ids) + len(cut.neck_ids)
    _, joints = body(BodyParams.zeros((1,), body.num_expressions))
    heights = body.v_template[cut.neck_ids, 1]
    assert joints[0, 9, 1] < heights.min()
    assert heights.max() < joints[0, 23, 1]  # below the eyes


def test_mirror_maps_left_to_right() -> None:
    body = BodyModel.from_file(ROOT / "assets/body/smplx_anny.npz")
    template = build_template(body)
    points = body.v_template[template.vertex_ids]
    flipped = points * torch.tensor([-1.0, 1.0, 1.0])
    assert (points[template.mirror] - flipped).norm(dim=-1).median() < 1e-3


def test_the_driver_s_frame_rate_is_the_result_s(clip_path: Path, tmp_path: Path) -> None:
    track = dict(np.load(clip_path.with_name("person.track.npz")))
    np.savez(tmp_path / "fast.track.npz", **{**track, "fps": np.float32(60)})
    reader = WindowReader((0.5, 0.5, 0.5))
    batch = retarget(
        str(ROOT / "assets/photos/astronaut.png"),
        str(tmp_path / "fast.track.npz"),
        reader,
        32,
        3,
        str(ROOT / "assets/body/smplx_anny.npz"),
    )
    assert batch.fps == [60.0]
    own = reader.read(Clip(clip_path), np.arange(2), 3, 32)
    assert collate([own, own]).fps == [25.0, 25.0]
    for wrong in (0, np.nan, -5, 1e9):
        assert frame_rate({"fps": np.float32(wrong)}) == 25.0
    for wrong in (np.array("fast"), np.ones(3), np.zeros(0)):
        assert frame_rate({"fps": wrong}) == 25.0
    assert frame_rate({}) == 25.0
