"""The comparison with and without the adversarial term: what it collects, where it looks, and that it goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from visa.benchmarks.adversarial import ARMS, CONTROL, FULL, run_folder, train_arm
from visa.benchmarks.adversarial_effects import crop_boxes, effects, row_name
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.regions import face_points
from visa.networks.body import BodyModel
from visa.tools.ablate.training import check_options, split_options, trained_weights


def figures(power: list[float], coherence: list[float], **others: float | None) -> dict[str, Any]:
    names = ("frechet", "perceptual", "psnr", "identity", "flicker", "sharpness", "diversity", "temporal", "warping")
    return {"power_db": power, "coherence": coherence, **dict.fromkeys(names, 1.0), **others}


def test_effects_are_the_worst_band_and_means_over_seeds() -> None:
    rows = {
        row_name(CONTROL, 0): figures([-0.5, -4.0, -2.0], [0.9, 0.8, 0.5], psnr=30.0, frechet=2.0),
        row_name(FULL, 0): figures([-0.9, -1.0, 1.5], [0.9, 0.82, 0.4], psnr=29.5, frechet=1.0),
        row_name(CONTROL, 1): figures([-0.5, -4.0, -0.5], [0.9, 0.8, 0.5], psnr=30.0, frechet=2.0, identity=None),
        row_name(FULL, 1): figures([-0.5, -2.0, -0.5], [0.9, 0.8, 0.5], psnr=30.5, frechet=2.0),
    }
    found = effects(rows, FULL, CONTROL, [0, 1])
    assert found["bands_lacking"] == 1.5
    assert found["deficit_ratio"] == pytest.approx((0.75 + 0.5) / 2)  # too much power counts as lacking does
    assert found["deficit_ratio_spread"] == pytest.approx(0.25)
    assert found["coherence_change"] == pytest.approx((-0.1 + 0.0) / 2)
    assert found["frechet_ratio"] == pytest.approx(0.75)
    assert found["psnr_change"] == pytest.approx(0.0)
    assert found["psnr_change_spread"] == pytest.approx(1.0)
    assert found["identity_change"] == 0.0  # of the seed in which both were found


@pytest.mark.slow
def test_crops_lie_on_mouth_eyes_and_hair(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the sample clip's real track: the face is where dlib-free evidence says, the parts in their order."""
    monkeypatch.chdir(ROOT)
    batch = WindowReader((0.5, 0.5, 0.5)).read(Clip("assets/clips/webcam_man.mp4"), np.arange(1203, 1206), 0, 128)
    body = BodyModel.from_file("assets/body/smplx_anny.npz")
    boxes = crop_boxes(face_points(body, batch.cut(slice(1, 2)).view())[0, 0].numpy(), 128)
    tops = {name: top for name, (_, top, _) in boxes.items()}
    assert tops["hair"] < tops["eyes"] < tops["mouth"]
    for left, top, side in boxes.values():
        assert side >= 16
        assert min(left, top) >= 0
        assert max(left, top) + side <= 128
    left, top, side = boxes["mouth"]
    assert float(batch.masks[0, 1, 0, top : top + side, left : left + side].mean()) > 0.9  # on the person


def test_a_finished_student_is_kept_and_a_broken_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess:
        commands.append(command)
        version = Path(env["VISA_RUNS"]) / "adversarial" / "version_0"
        (version / "checkpoints").mkdir(parents=True, exist_ok=True)
        (version / "checkpoints" / "last.ckpt").touch()
        if len(commands) > 1:
            (version / "weights.safetensors").touch()
        return subprocess.CompletedProcess(command, 0 if len(commands) > 1 else 1)

    monkeypatch.setattr(subprocess, "run", run)
    folder = run_folder(tmp_path, FULL, 1, 7)
    with pytest.raises(ValueError, match=r"with seed 1 failed: see .*fit\.log"):
        train_arm(folder, FULL, 1, 7, "configs/adversarial.yaml", ["--data.resolution=64"])
    weights = train_arm(folder, FULL, 1, 7, "configs/adversarial.yaml", ["--data.resolution=64"])
    assert weights == trained_weights(folder, "adversarial")
    assert train_arm(folder, FULL, 1, 7, "configs/adversarial.yaml", []) == weights
    assert ["--ckpt_path=last" in command for command in commands] == [False, True]
    assert {"--data.num_steps=7", "--data.seed=1", "--seed_everything=1"} <= set(commands[0])
    assert commands[0][-1] == "--data.resolution=64"  # what the user says comes last and wins


def test_what_stands_after_two_dashes_is_for_training() -> None:
    assert split_options(["--seeds", "1"]) == (["--seeds", "1"], [])
    assert split_options(["--seeds", "1", "--", "--x=1", "--"]) == (["--seeds", "1"], ["--x=1", "--"])


def test_students_of_other_options_are_not_mixed(tmp_path: Path) -> None:
    check_options(tmp_path, "a.yaml", ["--x=1"])
    check_options(tmp_path, "a.yaml", ["--x=1"])
    with pytest.raises(ValueError, match="choose another --out"):
        check_options(tmp_path, "a.yaml", ["--x=2"])
    assert json.loads((tmp_path / "options.json").read_text())["options"] == ["--x=1"]


def test_arms_are_options_of_the_stage() -> None:
    from visa.lightning_modules.adversarial import Adversarial

    names = Adversarial.__init__.__annotations__
    for options in ARMS.values():
        for option in options:
            assert option.split("=")[0].removeprefix("--model.init_args.") in names
    assert ARMS[FULL] == []


def test_the_control_may_not_be_left_out() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "visa.benchmarks.adversarial", "--arms", FULL], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "must be among the arms" in done.stderr
