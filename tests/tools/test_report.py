"""The page of runs: whole, of one file, and shown by a browser where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from visa.artifacts.media import write_image, write_video
from visa.evaluation.table import write_metrics
from visa.tools.report.__main__ import main, write_report
from visa.tools.report.curves import curve

VOID = {"meta", "img", "br", "rect", "polyline", "circle"}


class Page(HTMLParser):
    """Text, tags and attributes of a page whose tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def tested(tmp_path: Path) -> Path:
    """The folder of a test: figures, a sheet, a video, its config."""
    folder = tmp_path / "test/version_0"
    folder.mkdir(parents=True)
    rows: dict[str, dict[str, object]] = {
        "freeze (anna)": {"psnr": 20.125, "perceptual": 0.3, "num_steps": 0},
        "textured (anna)": {"psnr": 22.5, "perceptual": 0.1, "psnr_mouth": 19.5},
        "freeze (bert)": {"psnr": 21.0, "perceptual": 0.2},
        "textured (bert)": {"psnr": 23.75, "perceptual": None, "perceptual_reason": "<too small> & sad"},
        "textured (mean of 2 in x/test)": {"psnr": 23.125, "psnr_interval": [22.5, 23.75]},
    }
    rows["textured (anna)"] |= {"bands": ["4-8"], "power_db": [-1.5], "coherence": [0.75]}
    write_metrics(folder / "metrics.json", rows, config="shader", seed=3, protocol="a & b", weights="w.safetensors")
    (folder / "config.yaml").write_text("seed_everything: 0\nname: <script>alert(1)</script>\n")
    write_image(folder / "anna.png", torch.rand(3, 40, 2000, generator=torch.Generator().manual_seed(0)))
    write_video(folder / "anna.mp4", torch.rand(30, 3, 48, 64, generator=torch.Generator().manual_seed(0)), 25)
    return folder


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """The folder of a fit: curves and a picture in an event file."""
    folder = tmp_path / "fit/version_0"
    with SummaryWriter(str(folder)) as writer:
        for step in range(5):
            writer.add_scalar("loss/l1", 1.0 / (step + 1), step)
        writer.add_image("val/sheet", torch.rand(3, 8, 8), 4)
    (folder / "config.yaml").write_text("seed_everything: 0\n")
    return folder


def test_the_page_holds_what_the_runs_hold_and_nothing_from_elsewhere(tested: Path, fitted: Path) -> None:
    out = write_report([tested, fitted], tested.parent / "report.html", seconds=1)
    page = Page(out.read_text())
    for shown in (
        "22.50", "[22.50, 23.75]", "anna", "bert", "a & b", "w.safetensors", "shader", "loss/l1", "val/sheet, step 4",
        "-1.5 / 0.75", "<too small> & sad", "<script>alert(1)</script>", "commit", "device", "By person", "last 0.2",
        "mouth dB ^",
    ):  # fmt: skip
        assert shown in page.text, shown
    assert "script" not in page.tags
    assert page.tags.count("svg") == 1
    assert page.tags.count("video") == 1
    assert page.tags.count("img") == 2
    assert all(link.startswith(("data:", "#run")) for link in page.links)
    assert len(out.read_text()) < 400_000


def test_runs_are_put_side_by_side_where_they_share_rows(tested: Path, tmp_path: Path) -> None:
    other = tmp_path / "test/version_1"
    shutil.copytree(tested, other)
    content = json.loads((other / "metrics.json").read_text())
    content["rows"]["freeze (anna)"]["psnr"] = 77.5
    (other / "metrics.json").write_text(json.dumps(content))
    text = Page(write_report([tested, other], tmp_path / "r.html", seconds=0).read_text()).text
    assert "Side by side" in text
    assert text.index("20.12 / 0.300") < text.index("77.50 / 0.300")


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], tested: Path) -> None:
    def fails(folder: Path) -> str:
        sys_argv, sys.argv = sys.argv, ["report", str(folder), "--out", str(tmp_path / "r.html")]
        try:
            assert main() == 1
        finally:
            sys.argv = sys_argv
        assert not (tmp_path / "r.html").exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "is no folder" in fails(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no metrics.json" in fails(tmp_path / "empty")
    (tested / "anna.mp4").write_bytes(b"no video")
    assert "anna.mp4 is no video" in fails(tested)
    (tested / "metrics.json").write_text("{")
    assert "metrics.json is no JSON" in fails(tested)


def test_a_curve_of_one_point_or_of_none() -> None:
    assert "<circle" in curve("a", [(3, 1.0)])
    assert curve("a", [(3, float("nan"))]) == ""
    assert "step 0 to 2" in curve("a<b", [(0, 1.0), (1, float("inf")), (2, 0.5)])


@pytest.mark.slow
def test_a_browser_shows_pictures_and_video(tested: Path, fitted: Path, chromium: str, tmp_path: Path) -> None:
    out = write_report([tested, fitted], tmp_path / "report.html", seconds=1)
    # The page itself has no script: what it shows is told by one that is added for this test.
    probe = """<script>window.onload = () => setTimeout(() => { document.title = JSON.stringify({
      images: [...document.images].map((one) => one.naturalWidth),
      videos: [...document.querySelectorAll('video')].map((one) => [one.readyState, one.videoWidth]),
      rows: document.querySelectorAll('tbody tr').length}); }, 1500);</script>"""
    probed = tmp_path / "probed.html"
    probed.write_text(out.read_text().replace("</body>", probe + "</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run(
        [chromium, *options, probed.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    title = shown.stdout.partition("<title>")[2].partition("</title>")[0]
    found = json.loads(title)
    assert found["images"] == [1600, 8]
    assert found["videos"][0][1] == 64
    assert found["videos"][0][0] >= 1
    assert found["rows"] > 10
