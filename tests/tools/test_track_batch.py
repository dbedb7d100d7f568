"""Batches of the tracker: what is tracked, shares, going on after a break, broken files, shots, framings."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.detected import needs_mediapipe, quiet, synthetic
from visa.networks.body import BodyModel
from visa.tools.track.__main__ import main
from visa.tools.track.batch import find_sources, finished, run_batch, share, table, track_in_process
from visa.tools.track.correspond import Landmarks, head_of
from visa.tools.track.detect import keep_longest_shot
from visa.tools.track.fit import Track, fit
from visa.tools.track.options import FitOptions
from visa.tools.track.render import shade
from visa.tools.track.report import accelerations, report_of
from visa.tools.track.targets import solved_frames

SHORT = FitOptions(num_coarse_steps=40, num_fine_steps=5)


def files(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return [folder / name for name in names]


def write_result(source: Path, out: Path) -> None:
    """The files by which a finished clip is known."""
    out.mkdir(exist_ok=True)
    report = {"source": source.name, "source_bytes": source.stat().st_size, "num_frames": 5, "num_valid_frames": 4}
    (out / f"{source.stem}.report.json").write_text(json.dumps(report | {"face_error_percent": 0.9}))
    np.savez(out / f"{source.stem}.track.npz", a=1)


def test_sources_are_videos_and_images_without_what_a_tracker_wrote(tmp_path: Path) -> None:
    files(tmp_path / "in", "b.mp4", "a.MOV", "c.png", "b.mask.mp4", "b.overlay.mp4", "notes.txt", ".partial-1-b.mp4")
    (extra,) = files(tmp_path, "z.avi")
    names = [path.name for path in find_sources([tmp_path / "in", extra, extra])]
    assert names == ["a.MOV", "b.mp4", "c.png", "z.avi"]
    with pytest.raises(ValueError, match="no video or image"):
        find_sources([(tmp_path / "empty").mkdir() or tmp_path / "empty"])
    (clash,) = files(tmp_path / "other", "b.mov")
    with pytest.raises(ValueError, match=r"b\.mp4 and .*b\.mov would become one clip b"):
        find_sources([tmp_path / "in", clash])


def test_shards_part_the_sources(tmp_path: Path) -> None:
    sources = files(tmp_path, *(f"{index:02}.mp4" for index in range(11)))
    parts = [share(sources, f"{index}/4") for index in range(4)]
    assert sorted(source for part in parts for source in part) == sources
    assert {len(part) for part in parts} == {2, 3}
    for wrong in ("4/4", "1", "a/b", "-1/4"):
        with pytest.raises(ValueError, match="--shard"):
            share(sources, wrong)


def test_a_broken_file_is_listed_and_the_batch_goes_on(tmp_path: Path) -> None:
    sources, out = files(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4", "d.mp4"), tmp_path / "out"
    tracked = []

    def track_one(source: Path) -> str | None:
        tracked.append(source.name)
        if source.name == "b.mp4":
            return "b.mp4: not a readable video"
        if source.name == "c.mp4":
            raise RuntimeError("died\nin many lines")
        write_result(source, out)
        return None

    result = run_batch(sources, out, track_one)
    assert (result["num_done"], result["num_failed"], result["num_skipped"]) == (2, 2, 0)
    stored = json.loads((out / "batch.json").read_text())
    assert stored == result
    reasons = {Path(name).name: entry["reason"] for name, entry in stored["clips"].items()}
    assert reasons == {
        "a.mp4": None, "b.mp4": "b.mp4: not a readable video", "c.mp4": "RuntimeError: died", "d.mp4": None,
    }  # fmt: skip
    text = table(result)
    assert "4 of 5" in text
    assert text.splitlines()[-2].startswith("c.mp4")
    assert text.splitlines()[-1] == "4 clips: 2 done, 0 skipped, 2 failed"

    tracked.clear()
    (tmp_path / "in" / "d.mp4").write_bytes(b"another file of this name")
    again = run_batch(sources, out, track_one)
    assert sorted(tracked) == ["b.mp4", "c.mp4", "d.mp4"]
    assert (again["num_done"], again["num_failed"], again["num_skipped"]) == (1, 2, 1)


def test_a_half_written_clip_is_not_finished(tmp_path: Path) -> None:
    (source,) = files(tmp_path, "a.mp4")
    out = tmp_path / "out"
    assert finished(source, out) is None
    write_result(source, out)
    assert finished(source, out)["face_error_percent"] == 0.9
    (out / "a.track.npz").unlink()
    assert finished(source, out) is None
    write_result(source, out)
    (out / "a.report.json").write_text('{"source"')
    assert finished(source, out) is None


def test_a_clip_that_is_to_be_refined_is_not_finished_before(tmp_path: Path) -> None:
    (source,) = files(tmp_path, "a.mp4")
    out = tmp_path / "out"
    write_result(source, out)
    assert finished(source, out) is not None
    assert finished(source, out, is_refined=True) is None
    report = json.loads((out / "a.report.json").read_text())
    (out / "a.report.json").write_text(json.dumps(report | {"refined_picture_error": 0.02}))
    assert finished(source, out, is_refined=True) is not None


def test_an_interrupted_batch_goes_on_where_it_was(tmp_path: Path) -> None:
    sources, out = files(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "out"

    def interrupted(source: Path) -> None:
        if source.name == "b.mp4":
            raise KeyboardInterrupt
        write_result(source, out)

    with pytest.raises(KeyboardInterrupt):
        run_batch(sources[:2], out, interrupted)
    assert set(json.loads((out / "batch.json").read_text())["clips"]) == {str(sources[0])}
    tracked = []
    result = run_batch(sources, out, lambda source: tracked.append(source.name) or write_result(source, out))
    assert tracked == ["b.mp4", "c.mp4"]
    assert (result["num_done"], result["num_skipped"]) == (2, 1)


def test_workers_run_at_the_same_time(tmp_path: Path) -> None:
    sources, out = files(tmp_path / "in", "a.mp4", "b.mp4"), tmp_path / "out"
    meeting = threading.Barrier(2, timeout=20)

    def track_one(source: Path) -> None:
        meeting.wait()  # passes only if both are being tracked
        write_result(source, out)

    assert run_batch(sources, out, track_one, num_workers=2, shard="0/3")["num_done"] == 2
    assert (out / "batch.0-of-3.json").is_file()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; print('error: a.mp4: bad', file=sys.stderr); sys.exit(1)", "a.mp4: bad"),
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "stopped by signal 9 (out of memory?)"),
        ("pass", None),
    ],
)
def test_a_process_that_dies_is_a_reason(
    program: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert track_in_process(tmp_path / "a.mp4", tmp_path, [], 1) == reason


def test_only_the_longest_shot_is_tracked(body: BodyModel, landmarks: Landmarks) -> None:
    detections, _ = synthetic(body, landmarks, count=20)
    detections.shot[6:] = 1
    detections.shot[16:] = 2
    kept = keep_longest_shot(detections)
    assert np.isfinite(detections.face).all()  # the caller's arrays stay as they were
    assert kept.num_shots_dropped == 2
    np.testing.assert_array_equal(solved_frames(kept, SHORT), np.arange(6, 16))
    track = fit(kept, body, landmarks, SHORT, progress=quiet)
    np.testing.assert_array_equal(np.flatnonzero(track.frame_valid), np.arange(6, 16))
    assert report_of(kept, track)["num_shots"] == 3
    whole, _ = synthetic(body, landmarks, count=4)
    assert keep_longest_shot(whole) is whole


@pytest.mark.parametrize("framing", ["head only", "half body", "photo"])
def test_what_is_not_in_the_picture_makes_no_nan(body: BodyModel, landmarks: Landmarks, framing: str) -> None:
    detections, _ = synthetic(body, landmarks, count=1 if framing == "photo" else 6)
    if framing == "head only":
        detections.pose[:] = np.nan
    elif framing == "half body":  # the detector guesses hips and legs far below the picture
        detections.pose[:, 23:33, :2] = (160, 700)
        detections.pose[:, 23:33, 3] = 0.01
    track = fit(detections, body, landmarks, replace(SHORT, max_error_percent=50.0), progress=quiet)
    assert track.frame_valid.all()
    assert all(torch.isfinite(value).all() for value in vars(track.params).values())
    legs = track.params.body_pose[:, [0, 1, 3, 4, 6, 7]]  # hips, knees, ankles
    assert legs.abs().max() < 0.05  # unseen legs stay at rest
    report = report_of(detections, track)
    if framing == "head only":
        assert report["body_error_px"] is None
        assert report["body_points_per_frame"] == 0
        assert report["fitted_body_acceleration_px"] is None
        assert "body_acceleration_reason" in report
    if framing == "photo":
        assert report["fitted_acceleration_px"] is None


def test_acceleration_is_the_mean_second_difference(body: BodyModel, landmarks: Landmarks) -> None:
    """Face and body points on parabolas of known bend, the fitted ones half as bent."""
    detections, params = synthetic(body, landmarks, count=8)
    time = np.arange(8, dtype=np.float32)[:, None]
    face, pose = np.zeros((8, 478, 3), np.float32), np.full((8, 33, 4), np.nan, np.float32)
    face[..., 0], pose[:, 11:13, 1], pose[:, 11:13, 0] = 2 * time**2, 3 * time**2, 50
    pose[:, 11:13, 3] = 1
    pose[3, 11, 3] = 0  # hidden in one frame: its three triples do not count
    detections = replace(detections, face=face, pose=pose)
    track = Track(
        params,
        np.ones(8, bool),
        np.eye(3, dtype=np.float32),
        face=face[..., :2] / 2,
        pose=pose[..., :2] / 2,
        pose_weight=pose[..., 3],
        hands=np.full((8, 2, 21, 2), np.nan, np.float32),
        hand_weight=np.zeros((8, 2), np.float32),
    )
    figures = accelerations(detections, track, np.ones(8, bool))
    assert figures == pytest.approx(
        {
            "detected_acceleration_px": 4, "fitted_acceleration_px": 2,
            "detected_body_acceleration_px": 6, "fitted_body_acceleration_px": 3,
        }
    )  # fmt: skip


@needs_mediapipe
def test_a_folder_from_end_to_end(body: BodyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = head_of(body)
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(shade(head.seen_from(15, 0, 0.75), head.faces, head.colours, 500.0, 320))
    picture.save(tmp_path / "in" / "doll.png")
    (tmp_path / "in" / "broken.mp4").write_bytes(b"no video")
    command = [str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2"]
    assert main(command) == 0
    assert "2 clips: 1 done, 0 skipped, 1 failed" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 clips: 0 done, 1 skipped, 1 failed" in capsys.readouterr().out
    clips = json.loads((tmp_path / "out" / "batch.json").read_text())["clips"]
    assert "not a readable video" in clips[str(tmp_path / "in" / "broken.mp4")]["reason"]
