"""Benchmarks of the fit and of anatomy: their figures, on few frames of the shipped clip, and their arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conftest import ROOT
from visa.benchmarks import anatomy, fit
from visa.datamodules.clip import Clip
from visa.networks.body import BodyModel


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
def test_more_steps_of_the_fit_come_nearer_to_the_photo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "TIMED_SIZES", (64,))
    monkeypatch.setattr(fit, "SIZE", 64)
    fit.main(["--settings", "0 steps", "40 steps", "--stride", "24", "--json"])
    out, error = capsys.readouterr()
    flat = json.loads(out)
    assert flat["clips"] == 1
    assert flat["40 steps/own_splat_psnr"] > flat["0 steps/own_splat_psnr"] + 1
    assert flat["40 steps/own_splat_perceptual"] < flat["0 steps/own_splat_perceptual"]
    assert flat["fit_64px_s"] > 0
    assert 0 < flat["fit_64px_rasterizer_share"] < 1
    assert "40 steps" in error


def test_a_stride_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit.main(["--stride", "0"])
    assert "argument --stride: 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_anatomy_of_the_shipped_avatar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(anatomy, "MOST_FRAMES", 2)
    anatomy.main(["--steps", "2", "--json"])
    flat = json.loads(capsys.readouterr().out)
    assert flat["R1_met"]
    assert flat["R2_met"]
    assert flat["R3_met"]
    assert flat["pose_teeth"] == 0
    assert flat["teeth_contrast"] >= anatomy.LEAST_CONTRAST
    # .39 where lids that close read the photo's iris; as fitted by two steps this man's lids hardly tell.
    assert 0.45 < flat["feed_forward_shut_textured"] < 0.95


def test_summary_tells_the_criteria_of_every_clip() -> None:
    good = {"pose_teeth": 0.0, "pose_eyeballs": 0.0, "lid_cover": 0.95, "open_interior": 0.6, "teeth_contrast": 0.2}
    found = anatomy.summary([good, good | {"lid_cover": 0.85, "eyes_l1": 0.03}])
    assert (found["R1_met"], found["R2_met"], found["R3_met"]) == (True, False, True)
    assert found["lid_cover"] == pytest.approx(0.9)
    assert found["eyes_l1"] == 0.03  # of the clip that has it


@pytest.mark.slow
def test_conditions_are_what_the_track_says() -> None:
    clip, body = Clip("assets/clips/webcam_man.mp4"), BodyModel.from_file("assets/body/smplx_anny.npz")
    found = anatomy.conditions(clip, body)
    jaw = clip.track["jaw_pose"][:, 0]
    assert (jaw[found["mouth"]] > anatomy.OPEN_JAW).all()
    assert (jaw[found["closed_mouth"]] < anatomy.CLOSED_JAW).all()
    tested = np.concatenate([np.arange(first, last + 1) for first, last in clip.splits.test])
    assert all(np.intersect1d(numbers, tested).size == 0 for numbers in found.values())
    assert anatomy.spread(np.arange(100)).tolist()[0] == 0
    assert len(anatomy.spread(np.arange(100))) == anatomy.MOST_FRAMES
