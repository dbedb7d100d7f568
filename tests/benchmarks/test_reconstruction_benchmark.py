"""The ablation of the reconstruction: what it trains, what it collects, and that it goes on where it was cut off."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, write_clip
from visa import cli as train
from visa.benchmarks import reconstruction
from visa.benchmarks.reconstruction import (
    ARMS,
    CROSS,
    OURS,
    PROJECTED,
    REAL_GROUP,
    SELF,
    arguments_of,
    flatten,
    schedule,
)
from visa.tools.ablate.training import trained_weights


def test_means_spread_and_gain_over_seeds() -> None:
    rows = {
        PROJECTED: {"psnr": 15.0, "ssim": 0.5},
        "ours, seed 0": {"psnr": 18.0, "ssim": 0.6, "identity": 0.4},
        "ours, seed 1": {"psnr": 19.0, "ssim": 0.7},
    }
    seeds = {PROJECTED: [PROJECTED], OURS: ["ours, seed 0", "ours, seed 1"]}
    means, flat = flatten({"unseen": rows}, seeds)
    assert means["unseen"][OURS] == pytest.approx({"psnr": 18.5, "ssim": 0.65, "identity": 0.4})
    assert flat["unseen/ours/psnr_spread"] == 1.0
    assert flat["unseen/ours/psnr_gain"] == 3.5
    assert "unseen/projected/psnr_gain" not in flat


@pytest.mark.parametrize(("steps", "starts"), [(900, [0, 200, 400]), (9, [0, 2, 4]), (1, [0])])
def test_the_schedule_keeps_its_shares(steps: int, starts: list[int]) -> None:
    assert [phase["start"] for phase in json.loads(schedule(steps))] == starts


@pytest.mark.slow
def test_each_arm_changes_its_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = {}
    for arm in ARMS:
        stage, _ = reconstruction.build(arm, 3, 20, [], "assets/captures/test")
        network = stage.reconstructor
        neck = len(network.anchors.template.neck_ids) > 0
        on = network.options
        found[arm] = (on.use_semantic, on.use_visual, on.use_prior, on.use_loose, neck)
        assert (stage.seed, stage.num_steps) == (3, 20)
    for number, arm in enumerate(("no F_sem", "no F_vis", "no F_prior", "no loose Gaussians", "neck kept")):
        assert found[arm] == tuple(k != number for k in range(5))
    assert found[OURS] == (True,) * 5


def test_a_finished_training_is_kept_and_a_broken_one_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    run = tmp_path / "reconstruction" / "version_0"

    def pretend(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        assert env["VISA_RUNS"] == str(tmp_path.resolve())
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (run / "checkpoints/last.ckpt").touch()
        if len(commands) > 1:
            (run / "weights.safetensors").touch()
        return subprocess.CompletedProcess(command, 0 if len(commands) > 1 else 1)

    monkeypatch.setattr(subprocess, "run", pretend)
    with pytest.raises(ValueError, match=r"fit\.log"):
        reconstruction.train_arm(tmp_path, "no F_sem", 1, 5, ["--data.resolution=64"])
    for _ in range(2):
        assert reconstruction.train_arm(tmp_path, "no F_sem", 1, 5, ["--data.resolution=64"]).parent == run
    assert len(commands) == 2
    assert commands[0][1:3] == ["train.py", "fit"]
    assert "--model.init_args.reconstructor_options.use_semantic=false" in commands[0]
    assert commands[0][-1] == "--data.resolution=64"
    assert commands[1] == [*commands[0], "--ckpt_path=last"]


@pytest.mark.slow
def test_the_whole_comparison_on_synthetic_people(
    clip_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two arms, two batches each, in this process."""
    monkeypatch.chdir(ROOT)
    unseen = tmp_path / "unseen"
    unseen.mkdir()
    for number, name in enumerate(("anna", "bert")):
        path = write_clip(unseen, name, num_frames=12, seed=number + 1)
        path.with_name(f"{name}.splits.yaml").write_text("test: [[4, 8]]\nreference: 0\n")

    def fit(folder: Path, arm: str, seed: int, steps: int, options: Sequence[str]) -> Path:
        monkeypatch.setattr(train, "RUNS", folder)
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
        train.main(["fit", *arguments_of(arm, seed, steps, [*quiet, *options])])
        return trained_weights(folder, "reconstruction") or folder

    monkeypatch.setattr(reconstruction, "train_arm", fit)
    schedule_option = json.dumps([{"start": 0, "resolution": 64, "num_frames": 2, "batch_size": 1}])
    reconstruction.main(
        [
            "--seeds", "1", "--steps", "2", "--arms", OURS, "neck kept", "--stride", "2", "--json", "--out",
            str(tmp_path / "out"), "--unseen", str(unseen), "--real", str(clip_path), "--",
            f"--data.clips=[{{path: {clip_path}}}]", "--data.resolution=64", f"--data.schedule={schedule_option}",
        ]
    )  # fmt: skip
    flat = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    for group in (SELF, REAL_GROUP):
        for arm in (OURS, "neck kept", PROJECTED):
            assert 3 < flat[f"{group}/{arm}/psnr"] < 40
            assert 0 <= flat[f"{group}/{arm}/silhouette"] <= 1
        gain = flat[f"{group}/ours/psnr"] - flat[f"{group}/projected/psnr"]
        assert flat[f"{group}/ours/psnr_gain"] == pytest.approx(gain, abs=2e-4)
    rows = json.loads((tmp_path / "out/metrics_validation.json").read_text())["rows"]
    assert f"{PROJECTED} ({CROSS})" in rows
    assert (tmp_path / "out/sheet_validation.png").is_file()
    assert (tmp_path / "out/options.json").is_file()


def test_bad_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        reconstruction.parse(["--steps", "0"])
    assert "at least 1" in capsys.readouterr().err
