"""The turn that `turned_heads` reads from a track, and its command line on a small clip."""

import json
from pathlib import Path

import numpy as np
import pytest

from visa.benchmarks.turned_heads import head_yaw, main
from visa.datamodules.clip import Clip


def test_a_turn_is_the_sum_of_its_joints(clip_path: Path) -> None:
    clip = Clip(clip_path)
    clip.track["global_orient"][:] = 0
    clip.track["body_pose"][:] = 0
    clip.track["global_orient"][3, 1], clip.track["body_pose"][3, [11, 14], 1] = 0.1, (0.2, 0.3)  # neck and head
    yaw = head_yaw(clip)
    assert yaw[3] == pytest.approx(0.6)
    assert np.nanmax(np.abs(np.delete(yaw, 3))) == 0


@pytest.mark.slow
def test_both_ends_are_measured(clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--clips", str(clip_path), "--steps", "1", "--json", "--out", str(tmp_path / "new" / "turned.png")])
    found = json.loads(capsys.readouterr().out)
    assert found["views"] == 2
    assert 0 < found["psnr"] < 100
    assert (tmp_path / "new" / "turned.png").stat().st_size > 0
