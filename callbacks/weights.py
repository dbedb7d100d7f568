"""The result of a fit as one safetensors file."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from visa.artifacts.files import atomic_path
from visa.artifacts.provenance import git_commit
from visa.callbacks.ema import ExponentialMovingAverage


@runtime_checkable
class Exporting(Protocol):
    """A module whose network can be written to a file."""

    def export_weights(self, path: Path, metadata: dict[str, str]) -> object:
        """Write the network to `path`, `metadata` in its header."""


class SaveWeights(Callback):
    """Writes `weights.safetensors` into the run's folder when a fit has ended by itself, whole or not at all.

    The module's `export_weights(path: Path, metadata: dict[str, str])` writes its network; moving averages are in place
    while it does. Metadata are `config` (text of the run's config.yaml), `commit`, `batch` (those done when the weights
    were taken), and one entry for each of the trainer's last metrics. An interrupted or failed fit writes no such file,
    so that it marks a complete run.

    Args:
        filename: in the run's folder.
        monitor: a validation metric, less is better: the weights are those of its best validation, kept beside
            (`best-` + filename) until the fit has ended; of several ranks the first decides. None takes the end of the
            fit.
    """

    def __init__(self, filename: str = "weights.safetensors", monitor: str | None = None) -> None:
        if not filename.endswith(".safetensors"):
            raise ValueError(f"weights file {filename!r} must end in .safetensors")
        self.filename, self.monitor = filename, monitor
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, Exporting):
            raise ValueError(f"SaveWeights: {type(pl_module).__name__} has no method export_weights(path, metadata)")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"SaveWeights: no metric '{self.monitor}' to monitor: choose from {known}")
        folder = trainer.log_dir  # a broadcast: every rank has to ask, whatever its own metric says
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best:
            self.best = value
            self._write(trainer, pl_module, folder, f"best-{self.filename}")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # as above
        if trainer.interrupted or not trainer.is_global_zero or folder is None:
            return
        best = Path(folder) / f"best-{self.filename}"
        if best.is_file():
            best.replace(Path(folder) / self.filename)
        elif not (math.isfinite(self.best) and (Path(folder) / self.filename).is_file()):
            # Else a finished run was resumed for longer and found nothing better than what it already holds.
            self._write(trainer, pl_module, folder, self.filename)

    def _write(self, trainer: Trainer, pl_module: LightningModule, folder: str | None, filename: str) -> None:
        # Lightning sets both attributes from outside of the class.
        is_dry, callbacks = trainer.fast_dev_run, trainer.callbacks  # type: ignore[attr-defined]
        if not trainer.is_global_zero or is_dry or folder is None:
            return
        assert isinstance(pl_module, Exporting)  # `setup` has asked
        averages = [callback for callback in callbacks if isinstance(callback, ExponentialMovingAverage)]
        with ExitStack() as stack, atomic_path(Path(folder) / filename) as scratch:
            for average in averages:
                stack.enter_context(average.averaged(pl_module))
            pl_module.export_weights(scratch, self._metadata(trainer, Path(folder)))

    def _metadata(self, trainer: Trainer, folder: Path) -> dict[str, str]:
        configs = sorted(folder.glob("config*.yaml"), key=lambda path: path.stat().st_mtime)  # a resumed run has more
        metrics = {
            name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items() if value.numel() == 1
        }
        return {
            **metrics,
            "config": configs[-1].read_text() if configs else "",
            "commit": git_commit(),
            "batch": str(trainer.fit_loop.total_batch_idx + 1),
            "global_step": str(trainer.global_step),
        }
