"""An mp4 of what was shown live, in the time in which it was shown."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.artifacts.media import write_video

RATE = 25.0  # pictures a second of the file
MOST_WAITING = 50  # pictures that the encoder may be behind; further ones are left out


class Recorder:
    """Takes pictures at any time; each stands in the file until the next one came.

    Args:
        path: of the mp4, written whole or not at all, at `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pictures: queue.Queue[tuple[float, NDArray[np.uint8]] | None] = queue.Queue(MOST_WAITING)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, daemon=True, name="recorder")
        self._thread.start()

    def show(self, picture: NDArray[np.uint8]) -> None:
        """The picture of this moment, `[H,W,3]` RGB."""
        if not self._pictures.full():
            self._pictures.put((time.monotonic(), picture))

    def _frames(self) -> Iterator[Tensor]:
        begin: float | None = None
        count, held = 0, None
        while (item := self._pictures.get()) is not None:
            at, picture = item
            begin = at if begin is None else begin
            while held is not None and count < round((at - begin) * RATE):
                yield held
                count += 1
            held = torch.from_numpy(picture).permute(2, 0, 1) / 255
        if held is not None:
            yield held

    def _write(self) -> None:
        try:
            write_video(self.path, self._frames(), RATE)
        except (ValueError, OSError) as error:
            self._failure = error

    def close(self) -> None:
        """Write the end; ValueError or OSError where the file cannot be written."""
        self._pictures.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
