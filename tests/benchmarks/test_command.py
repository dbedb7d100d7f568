"""The command line that benchmarks share."""

import json
from pathlib import Path

import pytest

from visa.benchmarks.arms import comparison
from visa.benchmarks.command import add_clips, clip_paths, command_line, print_json, run, say_figures


def test_figures_are_for_people_and_the_object_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"psnr": 31.234567, "clips": 2, "device": "cpu", "lpips": None}
    say_figures(figures)
    print_json(figures, wanted=False)
    out, error = capsys.readouterr()
    assert out == ""
    assert [line.split() for line in error.splitlines()] == [
        ["psnr", "31.2346"], ["clips", "2"], ["device", "cpu"], ["lpips", "None"],
    ]  # fmt: skip
    print_json(figures, wanted=True, digits=2)
    out, error = capsys.readouterr()
    assert json.loads(out) == {"psnr": 31.23, "clips": 2, "device": "cpu", "lpips": None}
    assert error == ""


def test_clips_are_files_folders_and_patterns(clip_path: Path) -> None:
    parser = command_line("what it measures")
    add_clips(parser, [str(clip_path)])
    assert clip_paths(parser.parse_args([]).clips) == [clip_path]
    given = parser.parse_args(["--clips", str(clip_path.parent), str(clip_path.parent / "*.mp4")])
    assert clip_paths(given.clips) == [clip_path, clip_path]
    assert "what it measures" in parser.format_help()


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: data\.clips: no tracked clip in"):
        run(lambda: print(clip_paths([str(tmp_path)])))


@pytest.mark.parametrize("option", ["--seeds", "--stride"])
def test_counts_start_at_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = comparison(None, ["a", "b"], 2, "runs/x")
    assert parser.parse_args([]).arms == ["a", "b"]
    with pytest.raises(SystemExit):
        parser.parse_args([option, "0"])
    assert f"argument {option}: 0: must be at least 1" in capsys.readouterr().err
