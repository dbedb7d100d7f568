"""A run from a source to pictures: what is dropped, refused and timed, in files and in a browser's stream."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from tests.tools.detected import needs_mediapipe
from visa.artifacts.media import read_video
from visa.live import __main__ as program
from visa.live import drive
from visa.live.blendshapes import Blendshapes
from visa.live.broadcast import BOUNDARY, Broadcast
from visa.live.drive import Driver, Newest, fastest_look
from visa.live.inputs import Moment
from visa.live.performer import Performer
from visa.live.record import Recorder
from visa.live.signal import Signal, named_signal
from visa.person import Person

PICTURE = np.zeros((16, 16, 3), np.uint8)


def test_the_newest_takes_the_place_of_what_waits() -> None:
    room: Newest[int] = Newest()
    for item in range(3):
        room.put(item)
    assert (room.take(), room.num_dropped) == (2, 2)
    room.put(7)
    room.end()
    assert (room.take(), room.take()) == (7, None)


def driven(
    person: Person, source: Iterator[Moment], capture: drive.Capture | None = None
) -> tuple[Driver, list[np.ndarray]]:
    shown: list[np.ndarray] = []
    driver = Driver(Performer(person, "textured", 64), capture, shown.append)
    driver.run(source)
    return driver, shown


def test_bad_moments_are_refused_and_the_stream_goes_on(person: Person) -> None:
    shapes = Blendshapes(person.body)

    def source() -> Iterator[Moment]:
        for values in ({"jawOpen": 0.0}, None, {"jawOpen": 1.0}):
            signal = None if values is None else named_signal(shapes, values)
            yield Moment(time.monotonic(), 0.0, signal=signal, error="torn" if signal is None else None)
            time.sleep(0.4)  # as long as a picture may take
        broken = Signal(torch.full((52,), torch.nan))
        yield Moment(time.monotonic(), 0.0, signal=broken)

    driver, shown = driven(person, source())
    assert len(shown) == 2
    assert np.abs(shown[0].astype(int) - shown[1]).max() > 8
    assert driver.figures.errors[0] == "torn"
    assert "not finite" in driver.figures.errors[1]
    flat = driver.figures.flat()
    assert (flat["pictures"], flat["moments"], flat["refused"]) == (2, 4, 2)
    assert 0 < flat["latency_p50_ms"] <= flat["latency_p99_ms"]


def test_a_source_that_is_too_fast_is_thinned_and_latency_stays(person: Person) -> None:
    signal = named_signal(Blendshapes(person.body), {})

    def slow(frame: np.ndarray, at: float) -> Signal:  # noqa: ARG001
        time.sleep(0.1)
        return signal

    def source() -> Iterator[Moment]:
        for number in range(40):
            yield Moment(time.monotonic(), number / 100, PICTURE)
            time.sleep(0.01)

    driver, shown = driven(person, source(), slow)
    figures = driver.figures
    assert figures.num_moments == 40
    assert figures.num_dropped + len(shown) == 40
    assert len(shown) < 20
    assert np.percentile(figures.latency, 50) < 1000  # nothing queues up


def test_an_error_of_a_thread_ends_the_run(person: Person) -> None:
    def broken(frame: np.ndarray, at: float) -> Signal:  # noqa: ARG001
        raise OSError("the camera has gone")

    with pytest.raises(OSError, match="the camera has gone"):
        driven(person, iter([Moment(time.monotonic(), 0.0, PICTURE)]), broken)


def test_a_slow_machine_draws_the_gaussians_alone(person: Person) -> None:
    pose = person.photos[0].body
    assert fastest_look(person, 64, 1e-3, pose) == ("textured", 64, "")
    look, geometry, note = fastest_look(person, 64, 1e6, pose)
    assert (look, geometry) == ("splat", 64)
    assert "ms a picture: the Gaussians alone are drawn" in note


def test_a_browser_gets_the_newest_picture() -> None:
    page = Broadcast(port=0)
    page.said = "<slow>"
    try:
        assert page.address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(page.address, timeout=10) as answer:
            assert "&lt;slow&gt;" in answer.read().decode()
        with urllib.request.urlopen(page.address + "/said", timeout=10) as answer:
            assert answer.read() == b"<slow>"
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(page.address + "/../etc/passwd", timeout=10)
        threading.Timer(0.2, page.show, [PICTURE]).start()
        with urllib.request.urlopen(page.address + "/stream", timeout=10) as answer:
            assert answer.headers["Content-Type"].endswith(BOUNDARY)
            start = answer.read(120)
        assert start.startswith(f"--{BOUNDARY}".encode())
        assert b"\xff\xd8\xff" in start
        with pytest.raises(ValueError, match="give another port"):
            Broadcast(port=int(page.address.rsplit(":", 1)[1]))
    finally:
        page.close()


def test_a_record_keeps_the_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "live.mp4")
    for shade in (0, 255):
        recorder.show(np.full((16, 16, 3), shade, np.uint8))
        time.sleep(0.4)
    recorder.close()
    frames, rate = read_video(tmp_path / "live.mp4")
    assert rate == 25
    assert 9 <= len(frames) <= 20
    assert float(frames[0].mean()) < 0.1
    assert float(frames[-1].mean()) > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video", "no.mp4"], "error: no file at no.mp4: check --video"),
        (["--csv", "no.csv"], "error: no file at no.csv: check --csv"),
        (["--lines", "no.txt"], "error: no file at no.txt: check --lines"),
    ],
)
def test_missing_sources_are_named(
    words: list[str], message: str, person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = person.save(tmp_path / "person.safetensors")
    assert program.main([str(path), *words]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--osc", "1", "--camera", "0"], ["--osc", "1", "--steps", "2"]])
def test_wrong_words_end_with_the_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["photo.png", *words])


@pytest.mark.slow
@needs_mediapipe
def test_a_video_drives_a_saved_person(person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = person.save(tmp_path / "person.safetensors")
    words = [str(path), "--video", str(ROOT / "assets/clips/webcam_man.mp4"), "--size", "128", "--port", "0"]
    assert program.main([*words, "--seconds", "4", "--out", str(tmp_path / "live.mp4"), "--json"]) == 0
    flat = json.loads(capsys.readouterr().out)
    assert flat["pictures"] > 5
    assert flat["refused"] == 0
    assert (tmp_path / "live.mp4").stat().st_size > 1000
