"""Which block is held out of a clip, against a clip whose person moves when it is told to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import clip_track, write_clip
from visa.artifacts.media import write_video
from visa.datamodules.clip import Clip
from visa.datamodules.hold_out import held_out_block, moving_block
from visa.tools import hold_out


def clip_that_moves(folder: Path, name: str, frames: int, moving: slice, beside: slice = slice(0, 0)) -> Path:
    """Grey all along, white where it moves; what is white in `beside` lies outside of the mask."""
    pictures = torch.full((frames, 3, 72, 96), 0.4)
    pictures[moving, :, :, 30:66] = 1
    pictures[beside, :, :, :20] = 1
    mask = torch.zeros(frames, 3, 72, 96)
    mask[..., 30:66] = 1
    write_video(folder / f"{name}.mp4", pictures, fps=25)
    write_video(folder / f"{name}.mask.mp4", mask, fps=25)
    np.savez(folder / f"{name}.track.npz", **clip_track(frames))
    return folder / f"{name}.mp4"


def test_the_block_is_where_the_person_differs_most_from_the_photo(tmp_path: Path) -> None:
    clip = Clip(clip_that_moves(tmp_path, "anna", 70, slice(44, 54), beside=slice(58, 70)))
    assert moving_block(clip, 10) == (44, 53)
    first, last = moving_block(clip, 20)
    assert last - first == 19
    assert first <= 44
    assert last >= 53
    early = Clip(clip_that_moves(tmp_path, "bert", 50, slice(5, 25)))
    assert moving_block(early, 8)[0] >= 26  # a second after the photo
    assert moving_block(early, 48) == (26, 49)  # all that there is
    assert moving_block(early, 49, start=1) == (1, 49)
    assert moving_block(early, 8, start=1)[0] in range(5, 18)
    with pytest.raises(ValueError, match="has 20 frames: give one of more than 26"):
        moving_block(Clip(write_clip(tmp_path, "carl", num_frames=20)))


def test_splits_say_which_block_where_there_are_any(tmp_path: Path) -> None:
    path = clip_that_moves(tmp_path, "anna", 60, slice(40, 50))
    assert held_out_block(Clip(path), 10) == (40, 49)
    path.with_name("anna.splits.yaml").write_text("validation: [[3, 9]]\n")
    assert held_out_block(Clip(path), 10) == (3, 9)


def test_a_folder_is_held_out_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip_that_moves(tmp_path, "anna", 60, slice(40, 50))
    clip_that_moves(tmp_path, "bert", 60, slice(30, 40))
    own = tmp_path / "bert.splits.yaml"
    own.write_text("test: [[1, 2]]\n")
    assert hold_out.main([str(tmp_path), "--kind", "test", "--frames", "10"]) == 0
    content = OmegaConf.to_container(OmegaConf.load(tmp_path / "anna.splits.yaml"))
    assert content == {"test": [[40, 49]], "reference": 0, "train": False}
    assert own.read_text() == "test: [[1, 2]]\n"  # what somebody chose stays
    assert "left as it is" in capsys.readouterr().out
    clip = Clip(tmp_path / "anna.mp4")
    assert clip.reference_frame() == 0
    assert len(clip.training_frames()) == 0


def test_a_block_may_begin_sooner(tmp_path: Path) -> None:
    clip_that_moves(tmp_path, "bert", 50, slice(5, 25))
    assert hold_out.main([str(tmp_path), "--kind", "test", "--frames", "8", "--start", "1"]) == 0
    content = OmegaConf.to_container(OmegaConf.load(tmp_path / "bert.splits.yaml"))
    assert content["test"][0][0] in range(5, 18)


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hold_out.main([str(tmp_path), "--kind", "test"]) == 1
    assert "no tracked clip" in capsys.readouterr().err
    write_clip(tmp_path, "short", num_frames=20)
    assert hold_out.main([str(tmp_path), "--kind", "validation"]) == 1
    assert "short.mp4 has 20 frames: give one of more than 26" in capsys.readouterr().err
    assert not (tmp_path / "short.splits.yaml").exists()
