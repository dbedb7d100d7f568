"""How fast training is, and whether it waits for data."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

import time
from collections import deque
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs `throughput/frames_per_second`, `throughput/step_ms` and `throughput/data_share` over the last batches.

    data_share is the share of time between two batches' ends that passed before the batch was there. Times are
    wall-clock without a device synchronisation: over a window of batches the queue of the device is full, and the mean
    is right.

    Args:
        frames: name of the batch's attribute (or key) that holds the clips, [B, T, ...].
        window: number of batches that are averaged over.
    """

    def __init__(self, frames: str = "frames", window: int = 20) -> None:
        if window < 1:
            raise ValueError(f"throughput window must be at least 1 batch, got {window}")
        self.frames = frames
        self._batches: deque[tuple[float, float, int]] = deque(maxlen=window)  # (seconds, seconds for data, frames)
        self._previous_end: float | None = None
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        end = time.perf_counter()
        # The first batch after a start or a validation would count that as waiting for data.
        if self._previous_end is not None:
            self._batches.append((end - self._previous_end, self._start - self._previous_end, self._num_frames(batch)))
            seconds, waiting, frames = (sum(column) for column in zip(*self._batches, strict=True))
            pl_module.log_dict(
                {
                    "throughput/frames_per_second": frames / seconds,
                    "throughput/step_ms": 1000 * seconds / len(self._batches),
                    "throughput/data_share": waiting / seconds,
                },
                batch_size=1,
            )
        self._previous_end = end

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._previous_end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._previous_end = None

    def _num_frames(self, batch: Any) -> int:
        clips = batch.get(self.frames) if isinstance(batch, dict) else getattr(batch, self.frames, None)
        if clips is None:
            raise ValueError(f"throughput: the batch has no {self.frames!r}; set the callback's `frames` to its clips")
        return clips.shape[0] * clips.shape[1]
