"""Ablations: what the plans say, figures by hand, resuming, and shipped plans whose every arm can be built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.conftest import ROOT, write_clip
from visa import cli as train
from visa.tools.ablate import __main__ as tool
from visa.tools.ablate.compare import by_person, compared, format_comparison
from visa.tools.ablate.plan import read_plan

PLANS = sorted((ROOT / "configs/ablations").glob("*.yaml"))
PLAN = """
stage: shader
configs: [configs/shader.yaml]
num_steps: 20
row: student
control: ours
arms:
  ours: []
  other: ["--data.cross_clip=0"]
  {more}
columns: [psnr+, perceptual-]
"""


def _rows(**people: tuple[float, float]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {
        f"student ({name})": {"psnr": psnr, "perceptual": distance} for name, (psnr, distance) in people.items()
    }
    return rows | {"student (mean of 2 in x)": {"psnr": 99.0}, "student (a moved by b)": {"psnr": 9.0}, "student": {}}


def test_figures_over_people_and_seeds_are_those_by_hand() -> None:
    ours = [_rows(a=(20, 0.2), b=(30, 0.1), c=(10, 0.3)), _rows(a=(22, 0.2), b=(30, 0.1), c=(10, 0.3))]
    other = [_rows(a=(25, 0.1), b=(29, 0.1), c=(14, 0.5)), _rows(a=(27, 0.1), b=(29, 0.1))]
    control, arm = by_person(ours, "student", "psnr"), by_person(other, "student", "psnr")
    assert control == {"a": [20, 22], "b": [30, 30], "c": [10, 10]}
    assert arm == {"a": [25, 27], "b": [29, 29]}  # c lacks a seed
    found = compared(arm, control, 1)
    assert found["mean"] == pytest.approx((27 + 28) / 2)
    assert found["spread"] == pytest.approx(1)
    assert found["difference"] == pytest.approx((5 - 1) / 2)
    assert (found["better"], found["people"]) == (1, 2)
    assert found["interval"] == [-1, 5]
    assert found["p"] == 1
    less = compared(by_person(other[:1], "student", "perceptual"), by_person(ours[:1], "student", "perceptual"), -1)
    assert (less["better"], less["people"], less["p"]) == (1, 3, 1)  # one better, one level, one worse
    many = {str(k): [1.0 + k] for k in range(12)}
    shifted = {name: [value[0] + (0.5 if name != "3" else -1)] for name, value in many.items()}
    assert compared(shifted, many, 1)["p"] == pytest.approx(binomtest(11, 12).pvalue, abs=1e-6)
    assert compared({}, control, 1)["mean"] is None
    table = format_comparison({"psnr": {"ours": compared(control, control, 1), "other": found}}, "ours")
    assert "+2.0000" in table
    assert "1/2" in table


def test_wrong_plans_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"

    def fails(text: str, match: str) -> None:
        path.write_text(text)
        with pytest.raises(ValueError, match=match) as caught:
            read_plan(path)
        assert "\n" not in str(caught.value)

    fails(PLAN.format(more="").replace("control: ours", "control: mine"), "'mine' is none of the arms ours, other")
    fails(PLAN.format(more="") + "seed: 3\n", "no such key 'seed'")
    fails(PLAN.format(more='bad: ["data.seed=1"]'), "arm 'bad' has .*give options of train.py")
    fails(PLAN.format(more="bad: {rows: x}"), "arm 'bad' has a key 'rows'")
    fails(PLAN.format(more="").replace("perceptual-", "perceptual"), r"'perceptual' must end in \+")
    fails(PLAN.format(more="").replace("row: student\n", ""), "has no 'row'")
    fails(PLAN.format(more="").replace("20", "0"), "num_steps is 0")


def test_arms_are_trained_and_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With trainings and tests that leave files only: what is there is kept, what fails goes on from there."""
    calls: list[list[str]] = []
    breaks = {"test other 1"}

    def fit(
        folder: Path, stage: str, arm: str, seed: int, steps: int, arguments: list[str], options: list[str]
    ) -> Path:
        assert (stage, steps) == ("shader", 20)
        assert f"--data.seed={seed}" in arguments
        assert ("--data.cross_clip=0" in arguments) == (arm == "other")
        assert options == ["--data.resolution=64"]
        return folder / "weights.safetensors"

    def run(command: list[str], folder: Path, log: Path) -> int:
        calls.append([*folder.parts[-2:], *command])
        name = f"test {folder.parts[-2]} {folder.name[-1]}"
        if name in breaks:
            breaks.remove(name)
            return 1
        assert str(log).endswith("test.log")
        target = folder / "test/shader/version_0/metrics.json"
        target.parent.mkdir(parents=True)
        better = 1.0 if folder.parts[-2] == "other" else 0.0
        target.write_text(json.dumps({"rows": _rows(a=(20 + better, 0.2), b=(30 + better, 0.1))}))
        return 0

    monkeypatch.setattr(tool, "fit_arm", fit)
    monkeypatch.setattr(tool, "run_logged", run)
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.format(more=""))
    call = [str(plan), "--seeds", "2", "--out", str(tmp_path / "out"), "--", "--data.resolution=64"]
    assert tool.main(call) == 1
    assert "measuring 'other, seed 1' failed" in capsys.readouterr().err
    assert len(calls) == 4
    assert tool.main(call) == 0
    assert len(calls) == 5  # the one that failed, alone
    content = json.loads((tmp_path / "out/plan/ablation.json").read_text())
    assert content["results"]["psnr"]["other"]["difference"] == pytest.approx(1)
    assert content["results"]["psnr"]["other"]["better"] == 2
    assert content["results"]["perceptual"]["other"]["better"] == 0
    assert (content["seeds"], content["budget"]) == (2, "20 batches")
    assert np.isfinite(content["results"]["psnr"]["ours"]["mean"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("ablation.json")
    plan.write_text(PLAN.format(more="").replace("cross_clip=0", "cross_clip=0.1"))
    assert tool.main(call) == 1  # another arm under the same name
    assert "holds networks trained with other options" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_every_arm_of_a_shipped_plan_can_be_built(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    plan = read_plan(path)
    assert f"python -m visa.tools.ablate configs/ablations/{path.name}" in path.read_text().splitlines()[0]
    configs = [word for config in plan.configs for word in ("-c", config)]
    for arm in plan.arms.values():
        cli = train.main(["test", *configs, *plan.options, *arm.options, *plan.test], cli=train.BuildOnly)
        assert cli.model.stage == plan.stage


@pytest.mark.slow
def test_a_small_ablation_runs_from_training_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    for seed, name in enumerate(("anna", "bert")):
        path = write_clip(tmp_path, name, num_frames=12, seed=seed)
        path.with_name(f"{name}.splits.yaml").write_text("test: [[8, 10]]\nreference: 0\n")
    plan = tmp_path / "small.yaml"
    content = (ROOT / "configs/ablations/features.yaml").read_text()
    kept = [line for line in content.splitlines() if not line.startswith(("  no F_vis", "  no F_prior", "  neck"))]
    plan.write_text("\n".join(kept))
    schedule = json.dumps([{"start": 0, "resolution": 64, "num_frames": 1, "batch_size": 1}])
    call = [
        str(plan), "--seeds", "1", "--steps", "2", "--out", str(tmp_path / "out"), "--",
        f"--data.clips=[{{path: {write_clip(tmp_path / 'own', 'carl', num_frames=12)}}}]",
        f"--data.test_clips=[{{path: {tmp_path}}}]", "--data.resolution=64", f"--data.schedule={schedule}",
        "--trainer.limit_val_batches=0",
    ]  # fmt: skip
    assert tool.main(call) == 0
    printed = capsys.readouterr().out
    assert "no F_sem" in printed
    found = json.loads((tmp_path / "out/small/ablation.json").read_text())["results"]["psnr"]["no F_sem"]
    assert found["people"] == 2
    assert found["mean"] > 5
