"""Sound beside pictures: a tone that begins at a known time is heard at the right frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from visa.artifacts import sound
from visa.artifacts.media import write_video
from visa.artifacts.sound import Sound, has_sound

RATE, FPS = 16000, 25


def write_tone(path: Path, begins: float, seconds: float) -> Path:
    """A video whose sound is silence up to a tone of 440 Hz."""
    times = np.arange(int(seconds * RATE)) / RATE
    wave = (0.5 * np.sin(2 * np.pi * 440 * times) * (times >= begins)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for first in range(0, len(wave), 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, first : first + 1024], format="fltp", layout="mono")
            frame.rate, frame.pts = RATE, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def heard(path: Path) -> np.ndarray:
    """`[samples]` of the first channel, at `sound.RATE`."""
    with av.open(str(path)) as container:
        assert container.streams.audio[0].rate == sound.RATE
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize("start", [0.0, 0.6])
def test_the_tone_begins_with_its_picture(tmp_path: Path, start: float) -> None:
    tone = write_tone(tmp_path / "tone.mp4", begins=1.0, seconds=3.0)
    frames = torch.rand(38, 3, 16, 16)
    path = write_video(tmp_path / "out.mp4", frames, FPS, sound=Sound(tone, start))
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 38
        assert float(container.streams.audio[0].duration * container.streams.audio[0].time_base) == pytest.approx(
            38 / FPS, abs=0.1
        )
    wave = heard(path)
    begins = np.flatnonzero(np.abs(wave) > 0.2)[0] / sound.RATE
    assert begins == pytest.approx(1.0 - start, abs=1 / FPS)


def test_sound_that_ends_early_leaves_silence(tmp_path: Path) -> None:
    tone = write_tone(tmp_path / "tone.mp4", begins=0.0, seconds=0.5)
    path = write_video(tmp_path / "out.mp4", torch.rand(50, 3, 16, 16), FPS, sound=Sound(tone, 0.0))
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50


def test_pictures_survive_a_sound_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone = write_tone(tmp_path / "tone.mp4", begins=0.0, seconds=1.0)

    def broken(_: object) -> None:
        raise OSError("damaged")

    monkeypatch.setattr(sound.SoundTrack, "_decoded", broken)
    with pytest.warns(UserWarning, match="breaks off: damaged"):
        path = write_video(tmp_path / "out.mp4", torch.rand(9, 3, 16, 16), FPS, sound=Sound(tone, 0.0))
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_files_without_sound_are_told(tmp_path: Path) -> None:
    assert not has_sound(write_video(tmp_path / "silent.mp4", torch.rand(3, 3, 16, 16), FPS))
    assert has_sound(write_tone(tmp_path / "tone.mp4", 0.0, 0.2))
    (tmp_path / "no.mp4").write_bytes(b"nothing")
    assert not has_sound(tmp_path / "no.mp4")
    assert not has_sound(tmp_path / "missing.mp4")
