"""Frames of any video or photo as the tracker takes them: upright, square pixels, SDR colours, constant frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visa.artifacts.photos import is_image, read_photo

Frame = NDArray[np.uint8]
STILL_RATE = 25.0  # frames a second of a photo, and of a video that does not say
UNEVEN = 0.5  # share of the usual interval by which one may differ before the frame rate counts as variable
HDR_CURVES = (16, 18)  # ITU-T H.273 transfer characteristics: PQ and HLG
WIDE_PRIMARIES = 9  # H.273 colour primaries: BT.2020


@dataclass(frozen=True)
class Timing:
    """When a video's frames are shown.

    Attributes:
        rate: frames a second, the mean where it varies.
        num_frames: that the container tells of; 0 where it does not. Of a variable rate: those of `rate`.
        is_variable: whether the frames are unevenly spaced in time.
    """

    rate: float
    num_frames: int
    is_variable: bool


def timing(path: Path) -> Timing:
    """Frame rate and number of frames, from the file's index; ValueError where it is no video."""
    return _timing(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _timing(path: Path, written: int) -> Timing:  # noqa: ARG001 (a file written anew is read anew)
    if is_image(path):
        return Timing(STILL_RATE, 1, False)
    import av

    try:
        with av.open(_url(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or STILL_RATE)
            packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_discard]
            stamps, unit = [packet.pts for packet in packets if packet.pts is not None], stream.time_base
            if len(stamps) < len(packets) or unit is None:
                return Timing(rate, stream.frames, False)
            times = np.sort([float(stamp * unit) for stamp in stamps])
            steps = np.diff(times)
            usual = float(np.median(steps)) if len(steps) else 0.0
            is_variable = bool(usual > 0 and (np.abs(steps - usual) > UNEVEN * usual).any())
            if not is_variable:
                return Timing(rate, stream.frames, False)
            rate = (len(times) - 1) / float(times[-1] - times[0])
            return Timing(rate, len(times), True)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: not a readable video: give a video file such as mp4") from error


def read_frames(path: Path) -> Iterator[Frame]:
    """RGB frames `[H,W,3]` of a video, of even size, or of a photo.

    Turned pictures are set upright, oblong pixels widened to squares, HDR and BT.2020 turned into BT.709; a variable
    frame rate becomes its mean, each moment with the frame that is shown then. ValueError if nothing can be decoded.
    """
    if is_image(path):
        yield read_photo(path)
        return
    pictures = _decoded(path)
    if timing(path).is_variable:
        pictures = _resampled(pictures, timing(path).rate)
    for picture, _ in pictures:
        yield picture


def even(picture: Frame) -> Frame:
    """Without the last row and column where they are odd: video is coded in pairs."""
    return np.ascontiguousarray(picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2])


def rotation(frame: Any) -> int:
    """Counter-clockwise turn in degrees (a multiple of 90) that sets a decoded frame upright."""
    return round(getattr(frame, "rotation", 0) / 90) * 90 % 360


def is_plain(path: Path) -> bool:
    """Whether a video's pictures are upright, of square pixels, even size, 8-bit SDR H.264 and of constant rate."""
    import av

    with av.open(_url(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(video=0))
        is_even = stream.width % 2 == 0 and stream.height % 2 == 0
        is_coded = stream.codec_context.name == "h264" and frame.format.name == "yuv420p"
        is_upright = rotation(frame) == 0 and _pixel_aspect(stream) == 1
        return is_coded and is_even and is_upright and not _is_wide(frame) and not timing(path).is_variable


def _url(path: Path) -> str:
    """A name with a colon is no protocol."""
    return f"file:{path}"


def _decoded(path: Path) -> Iterator[tuple[Frame, float]]:
    """Pictures with their time in seconds."""
    import av

    count = 0
    try:
        with av.open(_url(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video stream: give a video file such as mp4")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            aspect, mapping = _pixel_aspect(stream), _ToneMapping()
            for frame in container.decode(video=0):
                colours = mapping(frame) if _is_wide(frame) else frame.to_ndarray(format="rgb24")
                if aspect != 1:
                    width = round(colours.shape[1] * aspect)
                    colours = np.asarray(
                        Image.fromarray(colours).resize((width, len(colours)), Image.Resampling.LANCZOS)
                    )
                yield even(np.rot90(colours, k=rotation(frame) // 90)), float(frame.time or 0.0)
                count += 1
    except av.FFmpegError as error:
        if count == 0:
            raise ValueError(
                f"{path}: not a readable video ({error.strerror}): give a video file such as mp4"
            ) from error
        print(f"warning: {path}: broken after frame {count}; the frames before it are used")
    if count == 0:
        raise ValueError(f"{path}: holds no frame that can be decoded: give a video file such as mp4")


def _resampled(pictures: Iterator[tuple[Frame, float]], rate: float) -> Iterator[tuple[Frame, float]]:
    """One picture each 1 / rate seconds from the first on: the one shown at that moment."""
    held, start, number = None, 0.0, 0
    for picture, time in pictures:
        if held is None:
            start = time
        # A frame is shown until the next one comes; half an interval of rounding lets an even video pass unchanged.
        while held is not None and start + (number + 0.5) / rate < time + 1e-6:
            yield held, start + number / rate
            number += 1
        held = picture
    if held is not None:
        yield held, start + number / rate


def _pixel_aspect(stream: Any) -> float:
    """Width of a pixel over its height."""
    return float(stream.sample_aspect_ratio or 1)


def _is_wide(frame: Any) -> bool:
    return int(frame.color_trc) in HDR_CURVES or int(frame.color_primaries) == WIDE_PRIMARIES


class _ToneMapping:
    """HDR or BT.2020 frames -> RGB of BT.709, by FFmpeg's scaler."""

    def __init__(self) -> None:
        self.graph: Any = None

    def __call__(self, frame: Any) -> Frame:
        if self.graph is None:
            import av.filter

            self.graph = av.filter.Graph()
            links = [
                self.graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
                ),
                self.graph.add("scale", "out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:out_range=pc"),
                self.graph.add("format", "pix_fmts=rgb24"),
                self.graph.add("buffersink"),
            ]
            for source, sink in pairwise(links):
                source.link_to(sink)
            self.graph.configure()
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()
