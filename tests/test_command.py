"""The command `visa`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from visa import cli, command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What reaches the stages' command line."""
    made: list[list[str]] = []
    monkeypatch.setattr(cli, "run", lambda arguments: made.append(arguments))
    return made


def test_animate_is_predict(calls: list[list[str]]) -> None:
    assert (
        command.main(["animate", "a.png", "b.png", "--driving", "talk.mp4", "--size", "256", "--weights=shipped"]) == 0
    )
    expected = ["predict", "--image", "a.png", "b.png", "--driving", "talk.mp4", "--out", "out.mp4", "--size=256"]
    assert calls == [[*expected, "--weights=shipped"]]


@pytest.mark.parametrize(("name", "subcommand"), [("train", "fit"), ("test", "test"), ("validate", "validate")])
def test_stages_take_their_own_options(name: str, subcommand: str, calls: list[list[str]]) -> None:
    assert command.main([name, "-c", "configs/teacher.yaml", "--trainer.max_epochs=1"]) == 0
    assert calls == [[subcommand, "-c", "configs/teacher.yaml", "--trainer.max_epochs=1"]]


def test_export_goes_to_its_tool(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["export", "--image", "nobody.png", "--out", str(tmp_path / "a.ply")]) == 1
    assert capsys.readouterr().err == "error: no file at nobody.png: check --image\n"


@pytest.mark.parametrize("name", ["frames", "page", "live", "view"])
def test_what_is_live_names_a_missing_photo(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "take.csv").write_text("")
    words = {
        "frames": ["--driving", "a.npz", "--out", str(tmp_path / "out")],
        "page": ["--driving", "a.npz", "--out", str(tmp_path / "out.html")],
        "live": ["--csv", str(tmp_path / "take.csv")],
        "view": [],
    }
    assert command.main([name, "nobody.png", *words[name]]) == 1
    assert capsys.readouterr().err == "error: no file at nobody.png: check --image\n"


def test_help_names_every_command_and_waits_for_no_network() -> None:
    code = (
        "import sys; from visa.command import main\ntry: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in command.COMMANDS)


@pytest.mark.parametrize("words", [[], ["fly"], ["animate", "a.png"]])
def test_wrong_words_end_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert "usage: visa" in capsys.readouterr().err
