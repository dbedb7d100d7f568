"""The result of a fit as one safetensors file."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from contextlib import ExitStack
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.ema import ExponentialMovingAverage
from runtime.files import atomic_path
from runtime.provenance import git_commit


class SaveWeights(Callback):
    """Writes `weights.safetensors` into the run's folder when a fit has ended by itself, whole or not at all.

    The module's `export_weights(path: Path, metadata: dict[str, str])` writes its network; moving averages are in place
    while it does. Metadata are `config` (text of the run's config.yaml), `commit`, and one entry for each of the
    trainer's last metrics. An interrupted or failed fit writes nothing, so that the file marks a complete run.
    """

    def __init__(self, filename: str = "weights.safetensors") -> None:
        if not filename.endswith(".safetensors"):
            raise ValueError(f"weights file {filename!r} must end in .safetensors")
        self.filename = filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not callable(getattr(pl_module, "export_weights", None)):
            raise ValueError(f"SaveWeights: {type(pl_module).__name__} has no method export_weights(path, metadata)")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # a broadcast: every rank has to ask
        if not trainer.is_global_zero or trainer.interrupted or trainer.fast_dev_run or folder is None:
            return
        averages = [c for c in trainer.callbacks if isinstance(c, ExponentialMovingAverage)]
        with ExitStack() as stack, atomic_path(Path(folder) / self.filename) as scratch:
            for average in averages:
                stack.enter_context(average.averaged(pl_module))
            pl_module.export_weights(scratch, self._metadata(trainer, Path(folder)))

    def _metadata(self, trainer: Trainer, folder: Path) -> dict[str, str]:
        config = folder / "config.yaml"
        metrics = {
            name: f"{float(value):.6g}" for name, value in trainer.callback_metrics.items() if value.numel() == 1
        }
        return {
            **metrics,
            "config": config.read_text() if config.is_file() else "",
            "commit": git_commit(),
            "global_step": str(trainer.global_step),
        }
