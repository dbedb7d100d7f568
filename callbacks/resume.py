"""Checkpoints for exact resume, by the stage's own step counter."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from visa.artifacts.files import replace_path


class ResumeCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` into the run's folder, whole or not at all; `--ckpt_path last` goes on from it.

    Being a `Checkpoint`, it runs after every other callback, so that moving averages are up to date when it writes.
    `ModelCheckpoint` counts `global_step`, which is every optimizer's steps; this counts training batches.

    Args:
        every: training batches between checkpoints.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"resume checkpoint: every must be at least 1 batch, got {every}")
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % self.every == 0:
            self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    @staticmethod
    def _write(trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # Lightning sets it from outside of the class
            return
        path = Path(trainer.log_dir or ".") / "checkpoints" / "last.ckpt"
        # One name on all ranks, who write together, or wait for the first one; a run has its folder for itself.
        scratch = path.with_name(".last.partial.ckpt")
        trainer.save_checkpoint(scratch, weights_only=False)
        trainer.strategy.barrier("checkpoint is whole")
        if trainer.is_global_zero:
            replace_path(scratch, path)
        trainer.strategy.barrier("checkpoint is in place")
