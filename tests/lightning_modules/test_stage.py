"""What every stage does alike: named noise, the step in an error, weights that are not there."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.lightning_modules.test_stages import STAGES, small
from visa import cli as train
from visa.lightning_modules.adversarial import Adversarial
from visa.lightning_modules.ode import OdeRegression
from visa.lightning_modules.reconstruction import Reconstruction
from visa.lightning_modules.stage import Stage
from visa.lightning_modules.teacher import Teacher
from visa.runtime.shipped import COMMANDS


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def drawn(stage: Stage, name: str, index: int = 0, rank: int | None = None) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=stage.generator(name, index, rank)).tolist())


def test_other_names_indices_steps_and_seeds_draw_other_noise() -> None:
    stage, other = Stage(10, seed=0), Stage(10, seed=1)
    names = ("critic_level", "critic_noise", "discriminator_level", "rollout")
    draws = [drawn(stage, name, index) for name in names for index in range(40)]
    draws += [drawn(other, name) for name in names]
    draws.append(drawn(stage, "rollout", rank=1))
    stage.step = 1
    draws += [drawn(stage, name, index) for name in names for index in range(40)]
    assert len(set(draws)) == len(draws)


def test_the_same_call_repeats_and_so_does_a_resumed_run() -> None:
    stage = Stage(10, seed=3)
    stage.step = 7
    first = drawn(stage, "critic_noise", 6)
    assert drawn(stage, "critic_noise", 6) == first
    assert drawn(stage, "critic_noise", 6, rank=0) == first  # a process alone has rank 0
    checkpoint = {"state_dict": {}}
    stage.on_save_checkpoint(checkpoint)
    resumed = Stage(10, seed=3)
    resumed.on_load_checkpoint(checkpoint)
    assert drawn(resumed, "critic_noise", 6) == first


def test_streams_do_not_depend_on_the_process() -> None:
    """The number that a name stands for is written down: Python's own hash differs from process to process."""
    assert Stage(10, seed=0).generator("rollout", 2).initial_seed() == 3374241920


class Broken(nn.Module):
    """A network whose every output is not a number."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs) * float("nan")


@pytest.mark.parametrize(("name", "kind"), [("reconstruction", Reconstruction), ("teacher", Teacher)])
def test_a_loss_that_is_not_finite_names_its_own_step(name: str, kind: type[Stage], clip_path: Path) -> None:
    schedule = "[{start: 0, resolution: 64, num_frames: 2, batch_size: 1}]"
    options = [f"--data.clips=[{{path: {clip_path}}}]", f"--data.schedule={schedule}"]
    cli = train.main(["fit", "-c", f"configs/{name}.yaml", *options], cli=train.BuildOnly)
    stage, data = cli.model, cli.datamodule
    assert isinstance(stage, kind)
    data.setup("validate")
    stage.step = 5
    stage.perceptual = Broken(stage.perceptual)
    batch = data.training_windows()[5]
    stage.on_train_batch_start(batch, 5)
    numbers = batch.frame_numbers[0].tolist()
    seen = rf"batch: person frames {numbers[0]} to {numbers[-1]}, photo {int(batch.reference_numbers[0])}\): stopped"
    with pytest.raises(ValueError, match=f"not finite at step 5 .*{seen}"):
        stage.training_step(batch, 5)
    assert stage.step == 5
    stage.on_train_batch_end(None, batch, 5)
    assert stage.origin == ""


class PoisonedGradient(lightning.Callback):
    """From the third batch on, one gradient is infinite, though every loss is finite."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Stage, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if pl_module.step == 2:
            network = pl_module.exported()
            parameter = next(one for one in network.parameters() if one.requires_grad)
            parameter.register_hook(lambda gradient: gradient * float("inf"))
            self.before = {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reconstruction", "teacher", "ode", "shader", "adversarial"])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, clip_path: Path, tmp_path: Path) -> None:
    """Stopped before the step, batch and parameter named, the last checkpoint good and resumable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "RUNS", tmp_path / "runs")
        poison = "tests.lightning_modules.test_stage.PoisonedGradient"
        arguments = ["fit", *STAGES[name], *small(clip_path, num_steps=4, num_frames=3), "--resume.every=1"]
        built: list[train.StageCLI] = []

        class Kept(train.StageCLI):
            def before_fit(self) -> None:
                built.append(self)

        with pytest.raises(ValueError, match=r"gradient is not finite at step 2 \(in .*; batch: person frames .*photo"):
            train.main([*arguments, f"--trainer.callbacks+={poison}"], cli=Kept)
        (cli,) = built
        callback = next(one for one in cli.trainer.callbacks if isinstance(one, PoisonedGradient))
        for key, value in cli.model.exported().state_dict().items():
            assert torch.equal(value, callback.before[key]), key
        (path,) = (tmp_path / "runs").rglob("last.ckpt")
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["step"] == 2
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
        train.main([*arguments, "--ckpt_path=last"])
        assert torch.load(path, weights_only=True)["step"] == 4


@pytest.mark.parametrize("choice", [None, "shipped"])
def test_a_stage_that_ships_no_weights_says_what_makes_them(choice: str | None, tmp_path: Path) -> None:
    stage = Adversarial.__new__(Adversarial)
    with pytest.raises(FileNotFoundError, match=r"adversarial are shipped: .*adversarial\.yaml.*--weights"):
        Adversarial.load_exported(stage, choice, tmp_path)


def test_commands_name_configs_and_ships_name_files() -> None:
    for name, command in COMMANDS.items():
        assert f"configs/{name}.yaml" in command
        assert (ROOT / f"configs/{name}.yaml").is_file()
        assert "OVERLAYS" in command  # what is missing at full size is not made by the embedded config
    for stage in (Reconstruction, Teacher, OdeRegression, Adversarial):
        assert stage.stage in COMMANDS
        assert stage.shipped is None or (ROOT / stage.shipped).is_file()
