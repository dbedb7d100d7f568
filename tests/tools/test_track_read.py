"""Videos of any kind reach the tracker upright, square, in SDR and evenly timed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from visa.tools.track.read import is_plain, read_frames, timing

WIDTH, HEIGHT = 96, 64


def write(
    path: Path, levels: list[int], times: list[int] | None = None, aspect: Fraction | None = None, **stream_values: Any
) -> Path:
    """Grey frames of `levels` at `times` (in 1/100 s)."""
    with av.open(f"file:{path}", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for name, value in stream_values.items():
            setattr(stream.codec_context, name, value)
        for index, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH, 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = (4 * index if times is None else times[index]), Fraction(1, 100)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def levels_of(path: Path) -> list[int]:
    return [round(float(frame.mean())) for frame in read_frames(path)]


def test_an_even_video_passes_as_it_is(tmp_path: Path) -> None:
    levels = [20, 60, 100, 140, 180, 220]
    path = write(tmp_path / "even.mp4", levels)
    assert timing(path).rate == pytest.approx(25)
    assert not timing(path).is_variable
    assert np.abs(np.subtract(levels_of(path), levels)).max() <= 2
    assert is_plain(path)


def test_a_variable_rate_becomes_its_mean(tmp_path: Path) -> None:
    # A frame every 4/100 s, then one that stays for 20, as phones write in the dark.
    path = write(tmp_path / "uneven.mp4", [20, 60, 100, 140, 180], [0, 4, 8, 28, 32])
    assert timing(path).is_variable
    assert timing(path).rate == pytest.approx(4 / 0.32)
    assert not is_plain(path)
    # One picture each 8/100 s: at 0, 8, 16, 24, 32.
    assert np.abs(np.subtract(levels_of(path), [20, 100, 100, 100, 180])).max() <= 2


def test_oblong_pixels_become_square(tmp_path: Path) -> None:
    path = write(tmp_path / "anamorphic.mp4", [100, 100], aspect=Fraction(4, 3))
    assert next(iter(read_frames(path))).shape == (HEIGHT, WIDTH * 4 // 3, 3)
    assert not is_plain(path)


def test_hdr_is_brought_to_sdr(tmp_path: Path) -> None:
    plain = write(tmp_path / "sdr.mp4", [128, 128])
    bright = write(tmp_path / "hdr.mp4", [128, 128], color_trc=18, color_primaries=9, colorspace=9)
    # Hybrid log-gamma (BT.2100): half the signal is a twelfth of the scene's peak, 51 of 1000 cd/m2 on a display of
    # gamma 1.2; a quarter of SDR white at 203 cd/m2 (BT.2408), which is (1/4)^(1/2.4) = .56 of its signal.
    assert levels_of(bright)[0] == pytest.approx(0.56 * 255, abs=6)
    assert levels_of(plain)[0] == pytest.approx(128, abs=2)
    assert not is_plain(bright)


def test_odd_names_are_no_protocols_or_patterns(tmp_path: Path) -> None:
    path = write(tmp_path / "a: take [1] #2.mp4", [50, 50])
    assert len(levels_of(path)) == 2
    assert timing(path).num_frames == 2


def test_no_video_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "note.mp4"
    path.write_bytes(b"nothing")
    for read in (timing, lambda source: list(read_frames(source))):
        with pytest.raises(ValueError, match=r"^\S*note\.mp4: not a readable video[^\n]*$"):
            read(path)
