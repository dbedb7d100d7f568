"""People of small clips moved by one another, and the clips that are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from visa.benchmarks.cross_reenactment import faces_in, main
from visa.evaluation.identity import FaceIdentity
from visa.evaluation.turned import against_template


def test_clips_with_test_blocks_and_single_ones_are_refused(clip_path: Path) -> None:
    pytest.importorskip("dlib", reason="the extra `identity` is not installed")
    with pytest.raises(ValueError, match="give two or more"):
        main(["--clips", str(clip_path)])
    with pytest.raises(ValueError, match="has a test block, which only `test` opens"):
        main(["--clips", str(clip_path), str(clip_path)])


@pytest.mark.slow
def test_each_is_moved_by_the_next(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("dlib", reason="the extra `identity` is not installed")
    clips = [f"assets/captures/person_0{number}.mp4" for number in (0, 1)]
    main(["--clips", *clips, "--frames", "4", "--size", "128", "--json", "--out", str(tmp_path / "new" / "sheet.png")])
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == 2
    assert 0 <= found["holes"] < 0.2
    assert 0 <= found["outside"] < 0.5
    assert (tmp_path / "new" / "sheet.png").stat().st_size > 0


def test_faces_that_nobody_finds_are_no_distance() -> None:
    pytest.importorskip("dlib", reason="the extra `identity` is not installed")
    grey = torch.full((3, 3, 128, 128), 0.5)
    found = faces_in(FaceIdentity(), grey, grey[0], grey[0])
    assert np.isnan(found["identity"])
    assert found["detection"] == 0


def test_holes_and_what_stands_out_by_hand() -> None:
    """A square template of 32 px in a picture of 64; the avatar lacks 4 x 4 px of it and has 16 px far off."""
    template = torch.zeros(1, 1, 64, 64)
    template[..., 16:48, 16:48] = 1
    alpha = template.clone()
    alpha[..., 30:34, 30:34] = 0
    alpha[..., :2, :8] = 1
    outside, holes = against_template(alpha, template)
    assert float(outside) == pytest.approx(16 / 32**2)
    assert float(holes) == pytest.approx(16 / 28**2)
