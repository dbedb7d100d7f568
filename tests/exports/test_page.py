"""One page of a moving avatar: what it holds, and what a browser without a network makes of it."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from visa.artifacts.media import to_uint8
from visa.exports import page
from visa.person import Person
from visa.runtime.stream import view_of

DRIVING = ROOT / "assets/clips/webcam_man.track.npz"


def held(text: str) -> dict:
    return json.loads(re.search(r"^const about = (\{.*\});$", text, re.MULTILINE).group(1))


def test_the_page_holds_the_posed_gaussians(person: Person, tmp_path: Path) -> None:
    saved, out = str(person.save(tmp_path / "person.safetensors")), tmp_path / "a&b.html"
    assert page.main([saved, "--driving", str(DRIVING), "--out", str(out), "--num_frames", "4"]) == 0
    text = out.read_text()
    about = held(text)
    assert (about["frames"], about["rate"]) == (2, 12.5)
    assert "@" not in text.replace("@media", "")
    assert "http" not in text  # nothing is fetched
    motion, _ = person.motion(DRIVING, 4)
    with torch.no_grad():
        posed = person.avatar.pose(person.body, motion[::2].map(lambda value: value[None]))
    kept = posed.opacities[0, 0] > page.FAINTEST
    centers = np.frombuffer(base64.b64decode(about["centers"]), "<u2").reshape(2, -1, 3)
    found = np.asarray(about["low"]) + np.asarray(about["step"]) * centers
    np.testing.assert_allclose(found, posed.means[0][:, kept].numpy(), atol=2e-5)


def test_counts_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.html"
    assert page.main(["a.png", "--driving", "b.npz", "--out", str(out), "--every", "0"]) == 1
    assert capsys.readouterr().err == "error: --num_frames and --every are counts: give 1 or more\n"
    assert not out.exists()


@pytest.mark.slow
def test_a_browser_draws_what_the_rasterizer_draws(person: Person, chromium: str, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    side, (motion, rate) = person.resolution, person.motion(DRIVING, 30)
    path = tmp_path / "page.html"
    path.write_text(page.page_of(person, motion, rate, "a test", side))
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        window = browser.new_page(viewport={"width": 300, "height": 300}, offline=True)
        errors: list[str] = []
        window.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.goto(path.as_uri())
        drawn = []
        for frame in (0, 29):
            window.evaluate(f"visa.hold({frame})")
            data = window.evaluate("document.getElementById('canvas').toDataURL()").split(",")[1]
            with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
                drawn.append(np.asarray(picture.convert("RGBA")).astype(float))
        browser.close()
    assert errors == []
    with torch.no_grad():
        views = view_of(person.photos[0].view(), motion[torch.tensor([0, 29])])
        expected = to_uint8(person.avatar.render(person.body, views).rgb[0]).astype(float)
    for picture, right in zip(drawn, expected, strict=True):
        alpha = picture[..., 3:] / 255
        shown = picture[..., :3] * alpha + 255 * 0.5 * (1 - alpha)  # the data URL is not premultiplied
        assert np.abs(shown - right).mean() < 3
    assert np.abs(drawn[0] - drawn[1]).mean() > 1
