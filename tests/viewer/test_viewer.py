"""The viewer: what is sent to the browser, what is taken from it, and a browser that loads, poses and uploads."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from tests.conftest import ROOT
from tests.live.conftest import person as person
from visa.networks.gaussians import Gaussians
from visa.person import Person
from visa.viewer import __main__ as program
from visa.viewer.splats import UPRIGHT, splats_of
from visa.viewer.uploads import MOST_BYTES, MOST_PHOTOS, Uploads

DRIVING = ROOT / "assets/clips/webcam_man.track.npz"
# viser 1.1.1 logs this for any Gaussians, random ones too.
VISER_S_OWN = "THREE.BufferGeometry.computeBoundingSphere(): Computed radius is NaN"
WAIT = 60  # seconds; the machine may be busy


def test_covariances_are_those_of_turned_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    quats, scales = torch.randn(5, 4, generator=generator), torch.rand(5, 3, generator=generator)
    color = torch.tensor([[1.2, 0.5, -0.1]]).expand(5, -1)
    gaussians = Gaussians(torch.randn(5, 3), quats, scales, torch.full((5,), 0.5), color, torch.zeros(5, 0))
    splats = splats_of(gaussians)
    turn = UPRIGHT.numpy() @ Rotation.from_quat(quats[:, [1, 2, 3, 0]].numpy()).as_matrix()
    expected = turn @ (scales.numpy()[:, :, None] ** 2 * np.eye(3)) @ turn.transpose(0, 2, 1)
    np.testing.assert_allclose(splats.covariances, expected, atol=1e-6)
    assert splats.opacities.shape == (5, 1)
    wider = splats_of(gaussians, blur=0.5)
    np.testing.assert_allclose(wider.covariances - splats.covariances, np.tile(0.5 * np.eye(3), (5, 1, 1)), atol=1e-6)
    assert splats.rgbs[0].tolist() == [1.0, 0.5, 0.0]


def picture(kind: str = "PNG", side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, kind)
    return file.getvalue()


def test_photos_are_kept_under_names_of_our_own(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    assert [uploads.add(picture(kind)).name for kind in ("PNG", "JPEG")] == ["photo_0.png", "photo_1.jpg"]
    assert [path.parent for path in uploads.take()] == [tmp_path, tmp_path]
    assert uploads.add(picture()).parent == tmp_path / "next"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JPEG, PNG or WebP"),
        (b"<html>", "no JPEG, PNG or WebP"),
        (picture()[:40], "no JPEG, PNG or WebP"),
        (picture("GIF"), "no JPEG, PNG or WebP"),
        (bytes(MOST_BYTES + 1), "this file has 20 MB"),
    ],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    with pytest.raises(ValueError, match=message):
        uploads.add(content)
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_most_of_photos(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path)
    for _ in range(MOST_PHOTOS):
        uploads.add(picture())
    with pytest.raises(ValueError, match="there are 8 photos already"):
        uploads.add(picture())


@pytest.fixture(scope="module")
def viewer(person: Person) -> Iterator[program.Viewer]:
    pytest.importorskip("viser", reason="the extra viewer is not installed")
    served = program.Viewer(person, [DRIVING], size=128, port=8790)
    yield served
    served.close()


def test_it_listens_on_this_machine_alone(viewer: program.Viewer) -> None:
    assert viewer.server.get_host() == "127.0.0.1"


def test_missing_files_are_named(person: Person, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"no file at nobody\.mp4: check --driving"):
        program.Viewer(person, ["nobody.mp4"])
    assert program.main(["nobody.png"]) == 1
    assert capsys.readouterr().err.startswith("error: no file at nobody.png")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT} s: {what}"
        time.sleep(0.1)


def share_drawn(screenshot: bytes) -> float:
    """Of the scene's middle, what is not white."""
    with Image.open(io.BytesIO(screenshot)) as shot:
        middle = np.asarray(shot.convert("RGB"))[200:700, 330:850]
    return float((middle < 200).any(-1).mean())


@pytest.mark.slow
def test_a_browser_loads_poses_plays_and_uploads(viewer: program.Viewer, chromium: str, tmp_path: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(viewer.address)
        until(lambda: len(viewer.sessions) == 1, "the client's session")
        session = viewer.sessions[0]
        until(lambda: bool(session._times), "the first picture")
        still = session._picture.image.copy()
        page.wait_for_selector("canvas")
        slider = page.get_by_role("slider").first
        slider.focus()
        slider.press("End")
        until(lambda: np.abs(session._picture.image.astype(int) - still).mean() > 1, "a nodding picture")
        page.get_by_role("tab", name="Photos").click()
        wrong = tmp_path / "photo.png"
        wrong.write_bytes(b"no picture")
        page.set_input_files("input[type=file]", str(wrong))
        until(lambda: "no JPEG" in session._status.content, "the refusal")
        page.set_input_files("input[type=file]", str(ROOT / "assets/photos/astronaut.png"))
        until(lambda: session._status.content == "1 photos", "the upload")
        other = browser.new_page()
        other.goto(viewer.address)
        until(lambda: len(viewer.sessions) == 2, "another client")
        until(lambda: bool(viewer.sessions[1]._times), "its picture")
        assert viewer.sessions[1].uploads.paths == []  # clients are apart
        assert np.abs(viewer.sessions[1]._picture.image.astype(int) - session._picture.image).mean() > 1
        session._play.value = "webcam_man"
        until(lambda: session._frame > 2, "the motion")
        until(lambda: share_drawn(page.screenshot()) > 0.05, "the Gaussians")
        browser.close()
        assert [text for text in errors if VISER_S_OWN not in text] == []
    until(lambda: viewer.sessions == [], "the clients' end")
