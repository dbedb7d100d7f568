"""Sound of a video: cut to the frames that are shown, and written beside them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import OutputContainer

BIT_RATE = 160_000  # bits a second
RATE = 48_000  # samples a second: one that every player takes


@dataclass(frozen=True)
class Sound:
    """Sound to go with pictures.

    Attributes:
        path: of a video or sound file.
        start: s, of the first picture in it.
    """

    path: Path
    start: float


def has_sound(path: Path) -> bool:
    """Whether a file holds a sound track that can be read."""
    import av

    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except (av.FFmpegError, OSError):
        return False


class SoundTrack:
    """The sound of an open container that is being written, as AAC.

    Args:
        container: to write to, before any of its packets.
        sound: what is heard.
    """

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self.container, self.sound = container, sound
        self.stream = container.add_stream("aac", rate=RATE, layout="stereo", bit_rate=BIT_RATE)

    def write(self, seconds: float) -> None:
        """Encode so many seconds, fewer where the sound ends, or breaks off, before: pictures are worth more."""
        import av

        try:
            self._write(round(self.sound.start * RATE), round((self.sound.start + seconds) * RATE))
        except (av.FFmpegError, OSError, ValueError) as error:
            warnings.warn(f"the sound of {self.sound.path} breaks off: {error}", stacklevel=2)
        self.container.mux(self.stream.encode())

    def _write(self, first: int, last: int) -> None:
        """Samples `first` to `last` of the source, at RATE."""
        import av

        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
        for frame in self._decoded():
            for piece in resampler.resample(frame):
                if piece.pts is None or piece.time_base is None:
                    raise ValueError("a part of it has no time")
                begin = round(float(piece.pts * piece.time_base) * RATE)
                if begin >= last:
                    return
                cut = max(first - begin, 0)
                kept = piece.to_ndarray()[:, cut : last - begin]
                if kept.shape[1]:
                    out = av.AudioFrame.from_ndarray(kept.copy(), format="fltp", layout="stereo")
                    out.rate, out.pts, out.time_base = RATE, begin + cut - first, Fraction(1, RATE)
                    self.container.mux(self.stream.encode(out))

    def _decoded(self) -> Iterator[AudioFrame]:
        import av

        with av.open(str(self.sound.path)) as source:
            yield from source.decode(audio=0)
