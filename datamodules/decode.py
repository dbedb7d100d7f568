"""Frames of a video by number, exactly those that PyAV decodes in order: whole, streamed, or a few out of a long file.

Nothing here is shared between processes: a reader is opened in the process that reads, and closed before that process
forks. Loader workers read colour with decord; a training process never imports it: loaded before torchvision or OpenCV
it breaks their PNG reading, and its readers hang workers that are forked later. Grey pictures (masks) are read by PyAV
everywhere: decord returns RGB only, and grey of RGB is off by one level in 2 % of the pixels of our masks.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

Frames = NDArray[np.uint8]
Window = tuple[slice, slice]
# What PyAV makes of broken files beside its own errors: no stream, none with a codec that it knows, text that is none.
BREAKS = (AttributeError, IndexError, OSError, ValueError)
WHOLE: Window = (slice(None), slice(None))
OPEN_READERS = 16  # a process; a reader holds a decoder with its reference pictures


class BrokenVideo(ValueError):
    """A video file that is cut off or damaged. A data set goes on without it."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's index says, without decoding."""

    num_frames: int
    height: int
    width: int


def video_info(path: Path) -> VideoInfo:
    """Number and size of the frames by the file's index.

    Raises:
        BrokenVideo: not a video, or cut off before the data that its index promises.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            entries = list(stream.index_entries) if "mp4" in container.format.name else []
            end, size = max((entry.pos + entry.size for entry in entries), default=0), path.stat().st_size
            if end > size:
                raise BrokenVideo(f"{path} cannot be decoded to its end: it is cut off, {size:,} of {end:,} bytes")
            # Other containers index their key frames only: count packets.
            num_frames = sum(not entry.is_discard for entry in entries) or len(_time_stamps(container)[0])
            return VideoInfo(num_frames, stream.codec_context.height, stream.codec_context.width)
    except BrokenVideo:
        raise
    except (av.FFmpegError, *BREAKS) as error:
        raise _undecodable(path, error) from error


def stream_frames(path: Path, gray: bool, window: Window = WHOLE, keyframes_only: bool = False) -> Iterator[Frames]:
    """Decode in order: `[h,w,3]`, or `[h,w]` where `gray`, each cut to `window`.

    Raises:
        BrokenVideo: at the first frame that cannot be decoded, or where there is none.
    """
    import av

    count = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if keyframes_only:
                stream.codec_context.skip_frame = "NONKEY"
            for frame in container.decode(stream):
                yield _pixels(frame, "gray" if gray else "rgb24", window)
                count += 1
    except BrokenVideo:
        raise
    except (av.FFmpegError, *BREAKS) as error:
        raise _undecodable(path, error) from error
    if not count:
        raise BrokenVideo(f"{path} holds no video frames: re-encode it, for example to H.264 mp4")


def read_all(path: Path, gray: bool, num_frames: int, window: Window = WHOLE) -> Frames:
    """The whole video `[T,h,w,3 or 1]`, each frame cut to `window`.

    Raises:
        BrokenVideo: other than `num_frames` frames could be decoded.
    """
    result: Frames | None = None
    count = 0
    for frame in stream_frames(path, gray, window):
        if result is None:  # one block, filled in place: stacking a list would hold everything twice
            result = np.empty((num_frames, *frame.shape), dtype=np.uint8)
        if count < num_frames:
            result[count] = frame
        count += 1
    if result is None or count != num_frames:
        raise BrokenVideo(f"{path} is damaged: {count} of {num_frames} frames can be decoded; re-encode it")
    return result[..., None] if gray else result


def read_frames(path: Path, gray: bool, numbers: NDArray[np.int64], window: Window = WHOLE) -> Frames:
    """Frames by number, in the order asked for and as often: `[n,h,w,3 or 1]`.

    Raises:
        BrokenVideo: the file cannot be decoded there.
    """
    wanted, place = np.unique(np.asarray(numbers), return_inverse=True)
    frames = _reader(Path(path), gray, os.stat(path).st_mtime_ns).read(wanted, window)
    return (frames[..., None] if gray else frames)[place.reshape(-1)]


class _Reader(Protocol):
    def read(self, numbers: NDArray[np.int64], window: Window) -> Frames:
        """Frames of ascending `numbers`."""


@lru_cache(maxsize=OPEN_READERS)
def _reader(path: Path, gray: bool, written: int) -> _Reader:  # noqa: ARG001 (a file written anew is opened anew)
    seeking = SeekingReader(path, gray)
    if gray or get_worker_info() is None:
        return seeking
    try:
        import decord  # noqa: F401
    except ImportError:  # it has wheels for x86-64 Linux only
        return seeking
    reader = DecordReader(path)
    return reader if len(reader) == len(seeking.times) else seeking


def _drop_codecs() -> None:
    """Close codecs before a fork: their threads are missing in the child, which would wait for them for ever as soon as
    its garbage collector closes one.
    """
    _reader.cache_clear()
    gc.collect()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_drop_codecs)


class DecordReader:
    """Colour frames by decord. Opened, and decord imported, in the process that reads."""

    def __init__(self, path: Path) -> None:
        import decord

        self.path, self.error = path, decord.DECORDError
        try:
            self.reader = decord.VideoReader(str(path), num_threads=1)
        except self.error as error:
            raise _undecodable(path, error) from error

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, numbers: NDArray[np.int64], window: Window) -> Frames:
        """Frames of ascending `numbers`, `[n,h,w,3]`."""
        try:
            return self.reader.get_batch(numbers.tolist()).asnumpy()[(slice(None), *window)]
        except self.error as error:
            raise _undecodable(self.path, error) from error


class SeekingReader:
    """Frames by PyAV: seeks to the key frame before, and knows each frame by its time stamp."""

    def __init__(self, path: Path, gray: bool) -> None:
        import av

        self.path, self.form, self.errors = path, "gray" if gray else "rgb24", (av.FFmpegError, OSError)
        try:
            self.container = av.open(str(path))
            self.times, self.keys = _time_stamps(self.container)
        except (*self.errors, *BREAKS) as error:
            raise _undecodable(path, error) from error
        if len(np.unique(self.times)) < len(self.times) or not len(self.keys):
            raise ValueError(f"{path}: frames without time stamps cannot be told apart; re-encode it to H.264 mp4")
        self.stream = self.container.streams.video[0]
        if get_worker_info() is not None:
            self.stream.codec_context.thread_count = 1
        self.decoded: Iterator[VideoFrame] = iter(())
        self.next_number = len(self.times)  # of the frame that `decoded` gives next

    def read(self, numbers: NDArray[np.int64], window: Window) -> Frames:
        """Frames of ascending `numbers`, `[n,h,w,3]`, or `[n,h,w]` where gray."""
        try:
            return np.stack([_pixels(self._frame(int(number)), self.form, window) for number in numbers])
        except (*self.errors, StopIteration) as error:
            self.next_number = len(self.times)
            raise _undecodable(self.path, error) from error

    def _frame(self, number: int) -> VideoFrame:
        key = int(np.searchsorted(self.keys, self.times[number], side="right")) - 1
        key_number = int(np.searchsorted(self.times, self.keys[max(key, 0)]))
        if not key_number <= self.next_number <= number:
            self._seek(int(self.keys[max(key, 0)]))
        from_start = False
        while True:
            frame = next(self.decoded)
            found = int(np.searchsorted(self.times, -1 if frame.pts is None else frame.pts))  # as in `_time_stamps`
            self.next_number = found + 1
            if found == number:
                return frame
            if found > number:
                if from_start:
                    raise BrokenVideo(f"{self.path} is damaged: frame {number} is missing; re-encode it")
                from_start = True  # some muxers flag frames as key that are not: decode from the beginning
                self._seek(int(self.times[0]))

    def _seek(self, time: int) -> None:
        self.container.seek(time, stream=self.stream, backward=True)
        self.decoded = self.container.decode(self.stream)


def _pixels(frame: VideoFrame, form: str, window: Window) -> Frames:
    return np.asarray(frame.to_ndarray(format=form)[window], dtype=np.uint8)


def _time_stamps(container: InputContainer) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Time stamps of all frames and of the key frames, ascending; the container stands at its end afterwards."""
    packets = [packet for packet in container.demux(video=0) if packet.size and not packet.is_discard]
    times = [(-1 if packet.pts is None else packet.pts, packet.is_keyframe) for packet in packets]
    return (
        np.array(sorted(time for time, _ in times), dtype=np.int64),
        np.array(sorted(time for time, is_key in times if is_key), dtype=np.int64),
    )


def _undecodable(path: Path, error: BaseException) -> BrokenVideo:
    reason = " ".join(str(error).split()) or type(error).__name__
    return BrokenVideo(f"{path} cannot be decoded as video ({reason}): re-encode it, for example to H.264 mp4")
