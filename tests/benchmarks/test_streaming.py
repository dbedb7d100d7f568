"""The benchmark of live pictures."""

from __future__ import annotations

import json
import time

import pytest

from tests.conftest import ROOT
from visa.benchmarks import streaming
from visa.networks.avatar import Avatar


def test_parts_do_not_count_what_is_inside_them() -> None:
    watch = streaming.Stopwatch()
    inner = watch.timed(lambda: time.sleep(0.02), "inner")
    watch.timed(lambda: (time.sleep(0.01), inner()), "outer")()
    assert watch.seconds["inner"] == pytest.approx(0.02, abs=0.01)
    assert watch.seconds["outer"] == pytest.approx(0.01, abs=0.01)


@pytest.mark.slow
def test_figures_add_up_and_nothing_stays_watched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    pose = Avatar.pose
    streaming.main(["--size", "128", "--resolution", "64", "--frames", "6", "--chunk", "2", "--json"])
    flat = json.loads(capsys.readouterr().out)
    assert flat["pictures"] == 6
    parts = ("posing", "splatting", "texture", "composition", "other")
    assert sum(flat[f"{part}_ms"] for part in parts) == pytest.approx(flat["picture_ms"], rel=1e-3)
    assert Avatar.pose is pose


@pytest.mark.parametrize("words", [["--steps", "2"], ["--fast"], ["--look", "shaded", "--chunk", "2"]])
def test_options_without_effect_are_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        streaming.main(words)
