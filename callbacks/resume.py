"""Checkpoints for exact resume, by the stage's own step counter."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.nn.utils import get_total_norm

from visa.artifacts.checkpoints import CheckpointFile
from visa.artifacts.files import replace_path


class ResumeCheckpoint(Checkpoint):
    """Writes `checkpoints/last.ckpt` into the run's folder, whole or not at all; `--ckpt_path last` goes on from it.
    Weights that are not finite are an error, and the checkpoint before them stays. A run that is told to end (SIGTERM)
    writes one after the batch that it is at. Where a validation follows a batch, the checkpoint follows the validation.

    Being a `Checkpoint`, it runs after every other callback, so that moving averages are up to date when it writes.
    `ModelCheckpoint` counts `global_step`, which is every optimizer's steps; this counts training batches.

    Args:
        every: training batches between checkpoints.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"resume checkpoint: every must be at least 1 batch, got {every}")
        self.every = every
        self._has_started = self._is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # nobody has chosen another
            trainer.strategy.checkpoint_io = CheckpointFile()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_started = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException):
            return
        # Before the start of training the checkpoint that it goes on from may not be loaded yet. In the middle of a
        # validation the one before it stays: half a validation would choose other weights than a whole one.
        if self._has_started and not trainer.validating:
            self._write(trainer, pl_module)
        rank_zero_info("told to end (SIGTERM): go on with --ckpt_path last, from the last checkpoint")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        interval = trainer.val_check_batch or 0  # batches; 0 before any validation is set up
        is_validated = trainer.enable_validation and interval > 0 and (batch_idx + 1) % interval == 0
        self._is_due = self._is_due or (batch_idx + 1) % self.every == 0
        if self._is_due and not is_validated:
            self._write_due(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before it: a run that goes on from there would leave the validation out.
        if self._is_due and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            self._write_due(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    def _write_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = False
        self._write(trainer, pl_module)

    @staticmethod
    def _write(trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined] # Lightning sets it from outside of the class
            return
        # Gradients may be finite, and a step of the optimizer may still not be: what was good before stays.
        trained = {name: one for name, one in pl_module.named_parameters() if one.requires_grad}
        largest = get_total_norm(trained.values(), norm_type=float("inf"))
        if not torch.isfinite(largest):
            bad = next(name for name, one in trained.items() if not torch.isfinite(one).all())
            raise ValueError(f"{bad} is no longer finite: no checkpoint is written; resume from the last one")
        path = Path(trainer.log_dir or ".") / "checkpoints" / "last.ckpt"
        # One name on all ranks, who write together, or wait for the first one; a run has its folder for itself.
        scratch = path.with_name(".last.partial.ckpt")
        trainer.save_checkpoint(scratch, weights_only=False)
        trainer.strategy.barrier("checkpoint is whole")
        if trainer.is_global_zero:
            replace_path(scratch, path)
        trainer.strategy.barrier("checkpoint is in place")
