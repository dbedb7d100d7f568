"""Live driving: source -> signal -> picture, each on a thread of its own, the newest always first.

What comes faster than it can be drawn is dropped before it costs anything: a thread takes the newest that is there.
Latency is from the moment at which a frame or message came in to the moment at which its picture is out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from visa.artifacts.media import to_uint8
from visa.live.blendshapes import Blendshapes
from visa.live.inputs import Moment
from visa.live.performer import Look, Performer
from visa.live.signal import Signal
from visa.networks.body import BodyParams
from visa.person import Person

Item = TypeVar("Item")
Capture = Callable[[NDArray[np.uint8], float], Signal | None]
TRIALS = 5  # pictures by which a machine is judged


class Newest(Generic[Item]):
    """Room for one item between two threads: a new one takes the place of one that nobody has taken."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._item: Item | None = None
        self._is_over = False
        self.num_dropped = 0

    def put(self, item: Item) -> None:
        """Leave it there."""
        with self._news:
            self.num_dropped += self._item is not None
            self._item = item
            self._news.notify()

    def end(self) -> None:
        """No more will come."""
        with self._news:
            self._is_over = True
            self._news.notify()

    def take(self) -> Item | None:
        """Wait for one; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._item is not None or self._is_over)
            item, self._item = self._item, None
            return item


@dataclass
class Figures:
    """What a run was like; times in ms.

    Attributes:
        latency: of each picture.
        tracking: of each frame that was looked at.
        drawing: of each picture.
        errors: why moments were refused.
        num_moments: that came in.
        num_lost: frames without a face.
        num_dropped: moments that newer ones took the place of.
        seconds: from the first picture to the last.
    """

    latency: list[float] = field(default_factory=list)
    tracking: list[float] = field(default_factory=list)
    drawing: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    num_moments: int = 0
    num_lost: int = 0
    num_dropped: int = 0
    seconds: float = 0.0

    def flat(self) -> dict[str, float | int]:
        """For people and `--json`."""
        found: dict[str, float | int] = {"pictures": len(self.latency), "moments": self.num_moments}
        found |= {"dropped": self.num_dropped, "lost": self.num_lost, "refused": len(self.errors)}
        found["fps"] = (len(self.latency) - 1) / self.seconds if self.seconds > 0 else 0.0
        for name in ("latency", "tracking", "drawing"):
            values = getattr(self, name)
            for percent in (50, 99):
                found[f"{name}_p{percent}_ms"] = float(np.percentile(values, percent)) if values else 0.0
        return found


def fastest_look(person: Person, size: int, rate: float, poses: BodyParams) -> tuple[Look, int, str]:
    """The dearest look without a shader that this machine draws `rate` times a second, the px at which its geometry is
    drawn, and what to say of it.
    """
    typical = 0.0
    for geometry in dict.fromkeys((person.resolution, person.quick_resolution)):
        typical = _picture_seconds(Performer(person, "textured", size, geometry=geometry), poses)
        if typical * rate <= 1:
            return "textured", geometry, ""
    note = f"this machine takes {1000 * typical:.0f} ms a picture: the Gaussians alone are drawn"
    return "splat", person.quick_resolution, note


@torch.no_grad()
def _picture_seconds(performer: Performer, pose: BodyParams) -> float:
    """Median of some, after a first one."""
    times = []
    for _ in range(TRIALS + 1):
        begin = time.perf_counter()
        performer.push(pose)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


class Driver:
    """A person moved by a source.

    Args:
        performer: draws who is moved; the pose of their first photo is the neutral one.
        capture: frames to signals, for a video or camera.
        show: takes each picture `[P,P,3]` RGB.
    """

    def __init__(
        self,
        performer: Performer,
        capture: Capture | None,
        show: Callable[[NDArray[np.uint8]], None],
    ) -> None:
        self.performer, person = performer, performer.person
        self.neutral, self.shapes = person.photos[0].body, Blendshapes(person.body)
        self.capture, self.show, self.figures = capture, show, Figures()
        self._failure: BaseException | None = None
        self._is_stopped = threading.Event()

    def stop(self) -> None:
        """End a run from another thread, at the source's next moment."""
        self._is_stopped.set()

    def run(self, source: Iterable[Moment], seconds: float | None = None) -> Figures:
        """Until the source ends, or for so many seconds; an error of a thread is raised here."""
        moments: Newest[Moment] = Newest()
        signals: Newest[tuple[Moment, Signal]] = Newest()
        begin = time.monotonic()

        def read() -> None:
            for moment in source:
                if self._is_stopped.is_set() or (seconds is not None and time.monotonic() - begin > seconds):
                    return
                self.figures.num_moments += 1
                moments.put(moment)

        def track() -> None:
            while (moment := moments.take()) is not None:
                signal = self._signal(moment)
                if signal is not None:
                    signals.put((moment, signal))

        def draw() -> None:
            self._draw(signals)

        threads = [
            self._thread(read, moments.end), self._thread(track, signals.end), self._thread(draw, self._is_stopped.set),
        ]  # fmt: skip
        for thread in threads:
            thread.join()
        self.figures.num_dropped = moments.num_dropped + signals.num_dropped
        if self._failure is not None:
            raise self._failure
        return self.figures

    def _thread(self, work: Callable[[], None], after: Callable[[], None]) -> threading.Thread:
        """Started; `after` runs however it ends."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # told to `run`'s caller
                self._failure = self._failure or error
                self._is_stopped.set()
            finally:
                after()

        thread = threading.Thread(target=guarded, daemon=True, name=work.__name__)
        thread.start()
        return thread

    def _signal(self, moment: Moment) -> Signal | None:
        if moment.error is not None:
            self.figures.errors.append(moment.error)
            return None
        if moment.frame is None or self.capture is None:
            return moment.signal
        begin = time.perf_counter()
        signal = self.capture(moment.frame, moment.time)
        self.figures.tracking.append(1000 * (time.perf_counter() - begin))
        self.figures.num_lost += signal is None
        return signal

    def _draw(self, signals: Newest[tuple[Moment, Signal]]) -> None:
        figures, waiting = self.figures, list[Moment]()
        first: float | None = None
        while (item := signals.take()) is not None:
            moment, signal = item
            begin = time.perf_counter()
            try:
                pictures = self.performer.push(signal.posed(self.neutral, self.shapes))
            except ValueError as error:  # the pose is left out, the stream goes on
                figures.errors.append(str(error))
                continue
            waiting.append(moment)
            if len(pictures) == 0:
                continue
            figures.drawing.append(1000 * (time.perf_counter() - begin) / len(pictures))
            for picture in to_uint8(pictures):
                self.show(picture)
                now = time.monotonic()
                figures.latency.append(1000 * (now - waiting.pop(0).arrived))
                first = now if first is None else first
                figures.seconds = now - first
