"""What every stage does alike: named noise, the step in an error, weights that are not there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
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
    with pytest.raises(ValueError, match="not finite at step 5 "):
        stage.training_step(data.training_windows()[5], 0)
    assert stage.step == 5


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
