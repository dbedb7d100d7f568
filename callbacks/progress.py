"""How far a fit is, in lines: where no terminal is (nohup, CI, a batch system), no progress bar is drawn."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ProgressLines(Callback):
    """Says every so often on standard error which batch training is at, and about how long it still takes.

    Args:
        seconds: between two lines at least.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if seconds < 0:
            raise ValueError(f"progress lines every {seconds} seconds: give 0 or more")
        self.seconds = seconds
        self._begin = self._said = self._trained_from = time.monotonic()
        self._num_done = self._first = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._begin = self._said = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained_from = time.monotonic()  # a first validation lies before it
        self._num_done = self._first = trainer.fit_loop.total_batch_idx + 1  # a resumed fit has done some

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._num_done += 1
        self._say(trainer, f"batch {self._num_done} of {trainer.num_training_batches}{self._rest(trainer)}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._say(trainer, f"validation after batch {self._num_done}, window {batch_idx + 1}")

    def _rest(self, trainer: Trainer) -> str:
        each = (time.monotonic() - self._trained_from) / (self._num_done - self._first)
        left = each * (float(trainer.num_training_batches) - self._num_done)
        return f", {each:.1f} s each, {left / 60:.0f} min left"

    def _say(self, trainer: Trainer, text: str) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or sys.stderr.isatty() or now - self._said < self.seconds:
            return
        self._said = now
        print(f"[{now - self._begin:5.0f} s] {text}", file=sys.stderr, flush=True)
