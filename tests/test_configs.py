"""Configs that stand on others: how they merge, that what is printed is whole, and what is derived or checked."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from visa import cli as train
from visa.artifacts.configs import read_config

CHAINS = {
    "reconstruction": ["configs/reconstruction.yaml"],
    "teacher": ["configs/teacher.yaml"],
    "shader_ode": ["configs/shader_ode.yaml"],
    "shader_ode after shader": ["configs/shader.yaml", "configs/shader_ode.yaml"],
    "shader": ["configs/shader.yaml"],
    "adversarial, full size": [
        "configs/adversarial.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_adversarial.yaml",
        "configs/data/videos.yaml",
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")


def printed(paths: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What `--print_config` shows of these files."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        train.main(["fit", *(word for path in paths for word in ("-c", path)), "--print_config"], cli=train.BuildOnly)
    assert caught.value.code in (None, 0)
    return yaml.safe_load(capsys.readouterr().out)


def test_a_file_is_merged_over_its_bases_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/first.yaml").write_text("a: {x: 1, y: [1, 2]}\nb: 1\n")
    (tmp_path / "base/second.yaml").write_text("base: [first.yaml]\na: {z: 3}\nb: 2\n")
    (tmp_path / "own.yaml").write_text("base: [base/second.yaml]\na: {x: 5, y: [7]}\n")
    assert read_config(tmp_path / "own.yaml") == {"a": {"x": 5, "y": [7], "z": 3}, "b": 2}


def test_bad_bases_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("base: [nowhere.yaml]\n")
    with pytest.raises(FileNotFoundError, match=r"no config at .*nowhere\.yaml, base of .*own\.yaml"):
        read_config(own)
    own.write_text("base: [own.yaml]\n")
    with pytest.raises(ValueError, match=r"own\.yaml stands on itself"):
        read_config(own)
    own.write_text("- 1\n")
    with pytest.raises(ValueError, match="no mapping"):
        read_config(own)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_printed_config_is_whole_and_loads_again(
    chain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = printed(CHAINS[chain], capsys)
    assert "base" not in whole
    path = tmp_path / "printed.yaml"
    path.write_text(yaml.safe_dump(whole))
    assert printed([str(path)], capsys) == whole


def test_the_start_of_the_student_may_be_given_over_the_main_jobs_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(CHAINS["shader_ode after shader"], capsys) == printed(CHAINS["shader_ode"], capsys)


@pytest.mark.parametrize(
    ("stage", "network"), [("reconstruction", "reconstructor"), ("teacher", "shader"), ("adversarial", "student")]
)
def test_the_exported_network_is_averaged(stage: str, network: str) -> None:
    cli = train.main(["validate", "-c", f"configs/{stage}.yaml"], cli=train.BuildOnly)
    (average,) = [one for one in cli.trainer.callbacks if isinstance(one, train.ExponentialMovingAverage)]
    assert average.module == network
    assert cli.model.exported() is getattr(cli.model, network)


@pytest.mark.parametrize(("name", "given", "needed"), [("latent_channels", 16, 96), ("semantic_dim", 768, 128)])
def test_a_shader_of_other_widths_than_codec_and_reconstruction_is_named(name: str, given: int, needed: int) -> None:
    option = f"--model.init_args.shader.init_args.{name}"
    with pytest.raises(ValueError, match=f"shader.{name} is {given}.*init_args.{name} to {needed}") as caught:
        train.main(["fit", "-c", "configs/teacher.yaml", f"{option}={given}"], cli=train.BuildOnly)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_default_reads_outside_of_the_repository() -> None:
    cli = train.main(["test", "-c", "configs/shader.yaml"], cli=train.BuildOnly)
    sources = [*cli.datamodule.sources, *cli.datamodule.test_sources]
    assert sources
    assert all((ROOT / source.path).resolve().is_relative_to(ROOT) for source in sources)
    options = ["-c", "configs/reconstruction.yaml", "-c", "configs/data/studio_woman.yaml"]
    cli = train.main(["test", *options], cli=train.BuildOnly)
    assert cli.datamodule.test_sources[-1].sidecars == "assets/clips"


PROTOCOLS = sorted((ROOT / "configs/protocols").glob("*.yaml"))


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.stem)
def test_a_protocol_builds_by_the_command_of_its_first_line(path: Path) -> None:
    command = path.read_text().splitlines()[0].partition("python train.py ")[2].split()
    assert f"configs/protocols/{path.name}" in command
    cli = train.main(command, cli=train.BuildOnly)
    data = cli.datamodule
    assert [source.path for source in data.test_sources] in (["people/test"], ["data/long"], ["data/vfhq_test"])
    given = read_config(path)["data"]
    assert data.test_frames == given.get("test_frames")  # what `test` takes by itself does not come between
    assert (data.test_stride == 1) == ("test_stride" not in given and "--quick" not in command)
    assert f"[{path.stem}](../configs/protocols/{path.name})" in (ROOT / "docs/protocols.md").read_text()


@pytest.mark.parametrize(
    ("options", "frames", "stride", "steps"),
    [
        ([], train.TEST_FRAMES, 1, [1, 2, 4]),
        (["--quick"], None, 4, [1, 2, 4]),
        (["--full"], None, 1, [1, 2, 4, 50]),
        (["--data.test_frames=5"], 5, 1, [1, 2, 4]),
        (["--data.test_stride=3"], None, 3, [1, 2, 4]),
        (["--full", "--model.init_args.teacher_test_steps=[50]"], None, 1, [50]),
    ],
)
def test_what_test_reads_by_itself_quick_and_full(
    options: list[str], frames: int | None, stride: int, steps: list[int]
) -> None:
    cli = train.main(["test", "-c", "configs/shader.yaml", *options], cli=train.BuildOnly)
    assert (cli.datamodule.test_frames, cli.datamodule.test_stride) == (frames, stride)
    assert cli.model.teacher_test_steps == steps


def test_quick_and_full_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="--quick and --full exclude each other"):
        train.main(["test", "-c", "configs/shader.yaml", "--quick", "--full"], cli=train.BuildOnly)
