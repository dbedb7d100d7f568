"""The overlay for own videos, as shipped: a folder of tracked clips trains two steps, read by its loader workers."""

import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from visa import cli as train
from visa.artifacts.media import write_video
from visa.datamodules.decode import stream_frames

FRAMES = np.arange(10, 34)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `my_clips`: two cuts of the shipped clip as the tracker leaves them, and a broken file."""
    for name in ("assets", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    clips, source = tmp_path / "my_clips", ROOT / "assets/clips/webcam_man"
    clips.mkdir()
    with np.load(f"{source}.track.npz", allow_pickle=False) as archive:
        track = {name: archive[name] for name in archive.files}
    count = len(track["frame_valid"])
    for name in track:
        if track[name].shape[:1] == (count,):
            track[name] = track[name][FRAMES]
    for suffix in (".mp4", ".mask.mp4"):
        frames = np.stack(list(islice(stream_frames(Path(f"{source}{suffix}"), gray=False), FRAMES[0], FRAMES[-1] + 1)))
        write_video(clips / f"first{suffix}", torch.from_numpy(frames).permute(0, 3, 1, 2) / 255, fps=25)
        shutil.copy(clips / f"first{suffix}", clips / f"second{suffix}")
    shutil.copy(clips / "first.mp4", clips / "first.overlay.mp4")
    for name in ("first", "second", "broken"):
        np.savez(clips / f"{name}.track.npz", **track)
    for suffix in (".mp4", ".mask.mp4"):
        (clips / f"broken{suffix}").write_bytes((clips / f"first{suffix}").read_bytes()[:300])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    return tmp_path


@pytest.mark.slow
def test_a_folder_of_clips_trains_by_the_shipped_overlay(folder: Path) -> None:
    schedule = [{"start": 0, "resolution": 64, "num_frames": 2, "batch_size": 1}]
    options = [
        f"--data.schedule={json.dumps(schedule)}", "--data.num_steps=2", "--data.resolution=64",
        "--data.validation_windows=1", "--trainer.val_check_interval=2",
        "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="2 clips are read; left out: 1 damaged, 0 without a track"):
        cli = train.main(["fit", "-c", "configs/reconstruction.yaml", "-c", "configs/data/videos.yaml", *options])
    assert [clip.name for clip in cli.datamodule.clips] == ["first", "second"]
    assert cli.datamodule.num_workers == 2
    (run,) = (folder / "runs/reconstruction").glob("version_*")
    assert (run / "weights.safetensors").is_file()
    assert "my_clips" in (run / "config.yaml").read_text()
