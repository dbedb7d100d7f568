"""Every shipped config: instantiated, trained two steps, resumed bit for bit; the command line's files and errors."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from tests.conftest import ROOT
from visa import cli as train
from visa.lightning_modules.distillation import Distillation
from visa.networks.shader import Window

STAGES = {
    "reconstruction": ["-c", "configs/reconstruction.yaml"],
    "teacher": ["-c", "configs/teacher.yaml"],
    "ode": ["-c", "configs/shader_ode.yaml"],
    "shader": ["-c", "configs/shader.yaml"],
    "adversarial": ["-c", "configs/adversarial.yaml"],
}
FOLDERS = {"ode": "shader_ode"}


class StopAfter(lightning.Callback):
    """Breaks a run off after some batches, as a machine that is switched off does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if pl_module.step >= self.after:
            raise RuntimeError(f"switched off at {trainer.global_step}")


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")


def small(clip_path: Path, num_steps: int = 2, num_frames: int = 4) -> list[str]:
    """Overrides that make a stage quick: a synthetic clip at 64 px."""
    schedule = [{"start": 0, "resolution": 64, "num_frames": num_frames, "batch_size": 1}]
    return [
        f"--data.clips={json.dumps([{'path': str(clip_path)}])}",
        f"--data.schedule={json.dumps(schedule)}",
        f"--data.num_steps={num_steps}",
        "--data.resolution=64",
        "--data.validation_windows=1",
        "--data.validation_frames=4",
        f"--trainer.val_check_interval={num_steps}",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


def newest(stage: str) -> Path:
    return max((train.RUNS / FOLDERS.get(stage, stage)).glob("version_*"), key=lambda path: path.stat().st_mtime)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_each_config_trains_two_steps_and_exports(stage: str, clip_path: Path) -> None:
    train.main(["fit", *STAGES[stage], *small(clip_path)])
    run = newest(stage)
    assert (run / "weights.safetensors").is_file()
    assert (run / "config.yaml").is_file()
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["step"] == 2
    assert not any(name.startswith(("conditioner.", "teacher.", "perceptual.")) for name in checkpoint["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_an_unbroken_one(stage: str, clip_path: Path) -> None:
    arguments = ["fit", *STAGES[stage], *small(clip_path, num_steps=4)]
    every = "--trainer.callbacks+={class_path: visa.callbacks.resume.ResumeCheckpoint, init_args: {every: 2}}"
    train.main([*arguments, every])
    whole = torch.load(newest(stage) / "checkpoints/last.ckpt", weights_only=True)
    stop = "--trainer.callbacks+={class_path: tests.lightning_modules.test_stages.StopAfter, init_args: {after: 3}}"
    with pytest.raises(RuntimeError, match="switched off"):
        train.main([*arguments, every, stop])
    broken = newest(stage)
    assert not (broken / "weights.safetensors").exists()
    train.main([*arguments, every, "--ckpt_path=last"])
    assert newest(stage) == broken  # it goes on in its own folder
    assert {path.name for path in broken.glob("*.yaml")} >= {"config.yaml", "config_2.yaml"}
    assert "ckpt_path: null" in (broken / "config.yaml").read_text()
    resumed = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)
    assert resumed["step"] == whole["step"] == 4
    states = whole["state_dict"], resumed["state_dict"]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    averages = [
        next(v["average"] for k, v in run["callbacks"].items() if "MovingAverage" in k) for run in (whole, resumed)
    ]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["teacher", "ode", "shader", "adversarial"])
def test_the_full_size_path_trains_on_a_tiny_wan_codec(stage: str, clip_path: Path) -> None:
    weights = ["--model.init_args.teacher_weights=null", "--model.init_args.student_weights=null"]
    train.main(
        [
            "fit",
            *STAGES[stage],
            "-c",
            "configs/scale/tiny_wan.yaml",
            *small(clip_path, num_frames=13),
            "--data.validation_frames=5",
            *(weights if stage != "teacher" else []),
        ]
    )
    assert (newest(stage) / "weights.safetensors").is_file()


def test_an_overlay_reaches_model_and_data(clip_path: Path) -> None:
    cli = train.main(
        ["fit", *STAGES["teacher"], *small(clip_path), "--data.num_steps=7", "--data.seed=3"], cli=train.BuildOnly
    )
    assert (cli.model.num_steps, cli.model.seed, cli.datamodule.num_steps) == (7, 3, 7)


@pytest.mark.slow
def test_a_rollout_window_reaches_training_and_painting(clip_path: Path) -> None:
    assert Distillation.rollout_window == Window(sink_frames=3, recent_frames=9)
    options = ["fit", *STAGES["adversarial"], *small(clip_path)]
    key = "--model.init_args.rollout_window"
    stage = train.main([*options, f"{key}.sink_frames=0", f"{key}.recent_frames=3"], cli=train.BuildOnly).model
    expected = Window(sink_frames=0, recent_frames=3)
    assert stage.rollout.window == expected
    assert stage.stream(stage.student, stage.noise_levels).rollout.window == expected
    with pytest.raises(ValueError, match="multiples of the chunk's 3 frames"):
        train.main([*options, f"{key}.recent_frames=4"], cli=train.BuildOnly)


@pytest.mark.slow
def test_test_writes_table_pictures_and_metrics(clip_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--data.test_clips=[]",
        "--data.resolution=64",
        "--weights=shipped",
        "--trainer.enable_progress_bar=false",
    ]
    train.main(["test", *small(clip_path)[:1], *options])
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    assert "block 1 of 1, person: textured, 5 frames in " in captured.err
    assert "person: 11 rows measured in " in captured.err
    path = Path(lines[-1])
    metrics = json.loads(path.read_text())
    assert {"freeze", "nearest", "splat", "teacher", "student"} <= set(metrics["rows"])
    for row in metrics["rows"].values():
        for column, value in row.items():
            assert value is not None or f"{column}_reason" in row
    assert (path.parent / "person.mp4").is_file()
    assert (path.parent / "person.png").is_file()
    assert "weights: shipped" in (path.parent / "config.yaml").read_text()
    assert metrics["weights"].endswith("student.safetensors")


@pytest.mark.slow
def test_predict_writes_the_video(clip_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    driving = str(clip_path.with_suffix(".track.npz"))
    train.main(
        [
            "predict", "-c", "configs/shader.yaml", "--image=assets/photos/astronaut.png", f"--driving={driving}",
            f"--out={out}", "--data.resolution=64", "--data.predict.num_frames=5", "--weights=shipped",
            "--trainer.enable_progress_bar=false",
        ]
    )  # fmt: skip
    assert out.stat().st_size > 0


def test_a_broken_checkpoint_is_named(clip_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for content in (b"", b"PK half of one"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.ckpt is no whole checkpoint: start the run without"):
            train.main(["fit", *STAGES["shader"], *small(clip_path), f"--ckpt_path={path}"], cli=train.BuildOnly)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["shader", "adversarial"])
def test_each_subcommand_builds_the_networks_that_it_uses(stage: str, clip_path: Path) -> None:
    expected = {"fit": {"student", "teacher", "critic"}, "test": {"student", "teacher"}}
    if stage == "adversarial":
        expected["fit"].add("discriminator")
    unread = "--model.init_args.teacher_weights=nowhere.safetensors"
    inputs = ["--image=assets/photos/astronaut.png", f"--driving={clip_path.with_suffix('.track.npz')}"]
    for subcommand, options in {"fit": [], "validate": [unread], "test": [], "predict": [unread, *inputs]}.items():
        cli = train.main([subcommand, *STAGES[stage], *small(clip_path)[:1], *options], cli=train.BuildOnly)
        built = {name for name, _ in cli.model.named_children()} - {"conditioner", "perceptual"}
        assert built == expected.get(subcommand, {"student"})


@pytest.mark.slow
def test_the_student_of_a_checkpoint_is_validated(clip_path: Path) -> None:
    """The checkpoint also holds critic and discriminator, which validation does without."""
    options = [*STAGES["adversarial"], *small(clip_path)]
    train.main(["fit", *options])
    path = newest("adversarial") / "checkpoints/last.ckpt"
    cli = train.main(["validate", *options, f"--ckpt_path={path}"])
    state = torch.load(path, weights_only=True)["state_dict"]
    assert any(name.startswith("discriminator.") for name in state)
    for name, value in cli.model.student.state_dict().items():
        assert torch.equal(value, state[f"student.{name}"]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.clips=[{path: nowhere.mp4}]"], "no video or image at nowhere.mp4"),
        (["--model.init_args.teacher_weights=nowhere.safetensors"], "no weights at nowhere.safetensors"),
        (["--data.body_model=setup.cfg"], "setup.cfg"),
    ],
)
def test_bad_input_is_one_line_that_names_the_thing(arguments: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        train.main(["fit", "-c", "configs/shader.yaml", *arguments])
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train.main(["fit", "-c", "configs/shader.yaml", "--data.nonsense=1"])
    assert caught.value.code != 0
    assert "nonsense" in capsys.readouterr().err
