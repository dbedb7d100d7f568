"""Photos and motions as people give them: tracked where they are not, in their own time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, clip_track, write_clip
from visa.datamodules.clip import Clip
from visa.datamodules.retarget import held_frames, read_motion, rest_frame, retarget, retargeted
from visa.datamodules.windows import WindowReader
from visa.networks.body import BodyModel, BodyParams
from visa.networks.joints import ELBOWS
from visa.tools.track.on_demand import tracked

BODY = str(ROOT / "assets/body/smplx_anny.npz")
PHOTO = str(ROOT / "assets/photos/astronaut.png")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were tracked: the tracker is replaced by a track that is made up."""
    made: list[Path] = []

    def pretend(source: Path, out: Path, *_: Any) -> None:
        made.append(source)
        out.mkdir(parents=True)
        write_clip(out, source.stem, num_frames=5)

    monkeypatch.setattr("visa.tools.track.__main__.track_file", pretend)
    return made


def test_a_video_without_a_track_is_tracked_once(tmp_path: Path, calls: list[Path]) -> None:
    video = tmp_path / "speech.mp4"
    video.write_bytes(b"one")
    first = tracked(video, BODY, "--driving")
    assert tracked(video, BODY, "--driving") == first
    assert calls == [video]
    assert len(read_motion(first)["frame_valid"]) == 5
    assert calls == [video]


def test_another_file_of_the_same_name_is_another_person(tmp_path: Path, calls: list[Path]) -> None:
    video = tmp_path / "me.mp4"
    video.write_bytes(b"one")
    first = tracked(video, BODY, "--image")
    video.write_bytes(b"two")
    assert tracked(video, BODY, "--image") != first
    assert len(calls) == 2
    video.write_bytes(b"one")
    assert tracked(video, BODY, "--image") == first
    assert len(calls) == 2
    assert Clip(first).load().num_frames == 5


def test_a_track_beside_the_file_is_taken(tmp_path: Path, calls: list[Path]) -> None:
    path = write_clip(tmp_path, "clip", num_frames=6)
    assert tracked(path, BODY, "--image") == path
    assert len(read_motion(path)["frame_valid"]) == 6
    assert len(read_motion(path.with_name("clip.track.npz"))["frame_valid"]) == 6
    assert calls == []


def test_a_missing_file_is_named_with_its_option(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody\.mp4: check --driving"):
        tracked(tmp_path / "nobody.mp4", BODY, "--driving")


def test_frames_without_a_person_hold_the_one_before() -> None:
    valid = np.array([0, 1, 1, 0, 0, 1, 0], dtype=bool)
    assert held_frames(valid).tolist() == [1, 2, 2, 2, 5]
    assert held_frames(np.zeros(3, dtype=bool)).size == 0


def test_the_motion_keeps_its_time_where_nobody_is_seen(tmp_path: Path) -> None:
    track = clip_track(12)
    track["frame_valid"][[4, 5]] = False
    np.savez(tmp_path / "motion.track.npz", **track)
    batch = retarget(PHOTO, str(tmp_path / "motion.track.npz"), WindowReader((0.5, 0.5, 0.5)), 32, None, BODY)
    assert batch.frame_numbers[0].tolist() == [0, 1, 2, 3, 3, 3, 6, 7, 8, 9, 10, 11]
    assert batch.body.transl[0, 4].equal(batch.body.transl[0, 3])


def test_a_driver_rests_where_the_head_most_often_is() -> None:
    track = clip_track(9)
    track["body_pose"][:, 11, 1] = [0.5, 0.5, 0.5, 0.1, 0.0, -0.1, -0.4, -0.6, -0.7]
    assert rest_frame(track, BodyModel.from_file(BODY)) == 4
    track["frame_valid"][4] = False
    assert rest_frame(track, BodyModel.from_file(BODY)) in {3, 5}


def test_a_resting_driver_shows_the_photo_as_it_is() -> None:
    body = BodyModel.from_file(BODY)
    track = clip_track(12)
    track["global_orient"][:] = (0.3, 0.2, 0)  # the driver's camera looks up at them from the side
    photo = Clip(PHOTO).load()
    own = BodyParams.from_track(photo.track, np.asarray([0]))
    rest = rest_frame(track, body)
    camera = torch.from_numpy(photo.track["world_to_camera"][0])
    found = retargeted(track, np.asarray([0, rest]), own, camera, body)
    torso = slice(ELBOWS[0])  # with the head; the driver's arms are seen
    torch.testing.assert_close(body.joints(found)[1, torso], body.joints(own)[0, torso], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.leye_pose[1:], own.leye_pose, atol=1e-5, rtol=0)
    assert (found.body_pose[0] - found.body_pose[1]).abs().max() > 0.05
