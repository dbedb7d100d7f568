"""Sound of a video: cut to the frames that are shown, and written beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import OutputContainer

BIT_RATE = 160_000  # bits a second


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
        import av

        self.container, self.sound = container, sound
        with av.open(str(sound.path)) as source:
            rate = source.streams.audio[0].rate
        self.stream = container.add_stream("aac", rate=rate, layout="stereo", bit_rate=BIT_RATE)
        self.rate = rate

    def write(self, seconds: float) -> None:
        """Encode so many seconds, fewer where the sound ends before."""
        import av

        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=self.rate)
        first, last = round(self.sound.start * self.rate), round((self.sound.start + seconds) * self.rate)
        done = 0  # samples written
        for frame in self._decoded():
            for piece in resampler.resample(frame):
                begin = round(float(piece.pts * piece.time_base) * self.rate) if piece.pts is not None else first + done
                kept = piece.to_ndarray()[:, max(first + done - begin, 0) : max(last - begin, 0)]
                if kept.shape[1] == 0:
                    continue
                out = av.AudioFrame.from_ndarray(kept.copy(), format="fltp", layout="stereo")
                out.rate, out.pts, out.time_base = self.rate, done, self.stream.codec_context.time_base
                done += kept.shape[1]
                self.container.mux(self.stream.encode(out))
        self.container.mux(self.stream.encode())

    def _decoded(self) -> Iterator[AudioFrame]:
        import av

        with av.open(str(self.sound.path)) as source:
            yield from source.decode(audio=0)
