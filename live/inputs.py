"""Where signals come from: frames of a video or camera, Live Link Face's CSV, lines of JSON, OSC by UDP.

Each is an iterator of `Moment`s in the pace at which they come. What cannot be read raises ValueError for the one
moment (`Moment.error`), and the next goes on.
"""

from __future__ import annotations

import csv
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from visa.live.blendshapes import Blendshapes
from visa.live.signal import Signal, named_signal
from visa.tools.track.read import read_frames, timing

TIMECODE_RATE = 60.0  # frames a second that Live Link Face counts in
UDP_PACKETS = 256  # that wait; older ones are dropped


@dataclass(frozen=True)
class Moment:
    """What has come at one moment.

    Attributes:
        arrived: s, by `time.monotonic`.
        time: s, of the source's own clock.
        frame: `[H,W,3]` RGB, of a video or camera.
        signal: of the other sources.
        error: why there is neither.
    """

    arrived: float
    time: float
    frame: NDArray[np.uint8] | None = None
    signal: Signal | None = None
    error: str | None = None


def _moment(at: float, make: Callable[[], Signal]) -> Moment:
    """A signal, or why it is none."""
    try:
        return Moment(time.monotonic(), at, signal=make())
    except (ValueError, TypeError) as error:
        return Moment(time.monotonic(), at, error=str(error))


def paced(items: Iterable[tuple[float, Callable[[], Moment]]]) -> Iterator[Moment]:
    """Moments at their time of day, counted from the first; one that is late comes at once."""
    begin: float | None = None
    for at, make in items:
        begin = time.monotonic() - at if begin is None else begin
        time.sleep(max(0.0, begin + at - time.monotonic()))
        yield make()


def video_moments(path: Path) -> Iterator[Moment]:
    """Frames of a video as a camera would give them: each in its time, whoever is ready."""
    rate = timing(path).rate

    def came(time_in_video: float, frame: NDArray[np.uint8]) -> Moment:
        return Moment(time.monotonic(), time_in_video, frame)

    return paced((n / rate, partial(came, n / rate, frame)) for n, frame in enumerate(read_frames(path)))


def camera_moments(number: int) -> Iterator[Moment]:
    """Frames of a camera; ValueError where there is none."""
    import cv2

    device = cv2.VideoCapture(number)
    if not device.isOpened():
        raise ValueError(f"no camera {number}: give --camera another number, or --video")
    try:
        begin = time.monotonic()
        while True:
            is_read, picture = device.read()
            if not is_read:
                return
            now = time.monotonic()
            yield Moment(now, now - begin, np.ascontiguousarray(picture[..., ::-1]))
    finally:
        device.release()


def timecode(text: str) -> float:
    """Seconds of Live Link Face's `hh:mm:ss:ff.fff`; ValueError for another text."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ValueError(f"{text!r} is no timecode hh:mm:ss:ff.fff")
    hours, minutes, seconds, frames = map(float, parts)
    return 3600 * hours + 60 * minutes + seconds + frames / TIMECODE_RATE


def csv_moments(path: Path, shapes: Blendshapes) -> Iterator[Moment]:
    """Rows of a Live Link Face recording in its own time; ValueError where it is none."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "Timecode" not in columns or "JawOpen" not in columns:
            raise ValueError(f"{path} is no recording of Live Link Face: its first line names Timecode and JawOpen")
        rows = list(reader)
    if not rows:
        raise ValueError(f"{path} holds no row: record again")
    times = [timecode(row["Timecode"]) for row in rows]

    def one(at: float, row: Mapping[str, str]) -> Moment:
        named = {
            name: value for name, value in row.items() if name not in ("Timecode", "BlendShapeCount", "BlendshapeCount")
        }
        return _moment(at, lambda: named_signal(shapes, {n: float(v) for n, v in named.items() if v not in (None, "")}))

    first = times[0]
    pairs = zip(times, rows, strict=True)
    return paced((at - first, partial(one, at - first, row)) for at, row in pairs)


def json_signal(line: str, shapes: Blendshapes) -> Signal:
    """Of one line such as `{"jawOpen": 0.3, "HeadYaw": 0.1}`; ValueError for another."""
    try:
        given = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"a line is no JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError("a line is no JSON object: give names and values")
    if wrong := [
        name for name, value in given.items() if isinstance(value, bool) or not isinstance(value, int | float)
    ]:
        raise ValueError(f"{wrong[0]} is no number")
    return named_signal(shapes, given)


def json_moments(lines: TextIO, shapes: Blendshapes) -> Iterator[Moment]:
    """Lines of JSON as they come."""
    begin = time.monotonic()
    for line in lines:
        if line.strip():
            yield _moment(time.monotonic() - begin, partial(json_signal, line, shapes))


class OscReceiver:
    """Blendshapes by OSC/UDP: `/jawOpen 0.3`, `/HeadYaw 0.1`, or the VMC protocol's `/VMC/Ext/Blend/Val jawOpen 0.3`.

    Values stand until another comes. A moment is a packet's last message, or VMC's `/VMC/Ext/Blend/Apply`.

    Args:
        port: to listen on; 0 takes any.
        shapes: of the body.
        host: address to listen on.

    Raises:
        ValueError: the extra `live` is not installed, or the port is taken.
    """

    def __init__(self, port: int, shapes: Blendshapes, host: str = "127.0.0.1") -> None:
        try:
            from pythonosc.dispatcher import Dispatcher
            from pythonosc.osc_server import ThreadingOSCUDPServer
        except ImportError as error:
            raise ValueError("--osc needs the package python-osc: run `pip install '.[live]'`") from error
        self.shapes, self._begin = shapes, time.monotonic()
        self._values: dict[str, float] = {}
        self._lock = threading.Lock()
        self._moments: queue.Queue[Moment] = queue.Queue(UDP_PACKETS)
        dispatcher = Dispatcher()
        dispatcher.set_default_handler(self._take)
        try:
            self._server = ThreadingOSCUDPServer((host, port), dispatcher)
        except OSError as error:
            raise ValueError(f"--osc {port}: {error.strerror}: give another port") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="osc")
        self._thread.start()

    def _take(self, address: str, *given: Any) -> None:
        """One message; what is wrong in it is a moment with an error, and the values before it stand."""
        at = time.monotonic() - self._begin
        is_vmc = address == "/VMC/Ext/Blend/Val" and len(given) == 2
        name, value = (str(given[0]), given[1]) if is_vmc else (address.rsplit("/", 1)[-1], (*given, "nothing")[0])
        with self._lock:
            if address != "/VMC/Ext/Blend/Apply":
                checked = _moment(at, lambda: named_signal(self.shapes, {name: float(value)}))
                if checked.error is not None:
                    self._put(checked)
                    return
                self._values[name] = float(value)  # it was checked
                if is_vmc:
                    return
            self._put(_moment(at, lambda: named_signal(self.shapes, self._values)))

    def _put(self, moment: Moment) -> None:
        while True:
            try:
                self._moments.put_nowait(moment)
                return
            except queue.Full:
                try:
                    self._moments.get_nowait()
                except queue.Empty:
                    continue

    def __iter__(self) -> Iterator[Moment]:
        while True:
            yield self._moments.get()

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown()
        self._server.server_close()
