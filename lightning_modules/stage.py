"""What the four stages have in common: own step counter, reproducible noise, light checkpoints."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from visa.artifacts.provenance import git_commit
from visa.artifacts.weights import load_weights, save_weights
from visa.datamodules.batch import VideoBatch
from visa.datamodules.video import VideoDataModule
from visa.evaluation.report import TestReport
from visa.losses.finite import check_finite, check_finite_gradients
from visa.runtime.shipped import COMMANDS

if TYPE_CHECKING:
    from visa.evaluation.faces import FacePoints


class Stage(lightning.LightningModule):
    """Base of the stages.

    `step` counts training batches (`global_step` counts every optimizer's steps). Noise is drawn from (seed, rank,
    step, name), so that a resumed run repeats the run that was cut off, bit for bit.

    Attributes:
        stage: name of the stage and of its runs' folder.
        shipped: file of the shipped weights; None where none are shipped.
        network: attribute of the network whose weights the next stage starts from.
        frozen: prefixes of state that checkpoints leave out.
        face_points: finds faces in the frames that `test` measures; the command line sets it where the extra `track`
            is installed.
        loaded: the file whose weights `load_exported` has taken.
    """

    stage: str
    shipped: str | None = None
    network: str
    frozen: tuple[str, ...] = ()
    face_points: FacePoints | None = None
    loaded: str | None = None

    def __init__(self, num_steps: int, seed: int) -> None:
        super().__init__()
        self.num_steps, self.seed, self.step = num_steps, seed, 0
        self._batch: VideoBatch | None = None

    def on_train_batch_start(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Hold the batch, which an error names."""
        self._batch = batch

    def on_train_batch_end(self, outputs: Any, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Let the batch go."""
        self._batch = None

    @property
    def origin(self) -> str:
        """Clips and frames of the batch that is being trained on; empty outside of training."""
        return "" if self._batch is None else self._batch.origin()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop at a gradient that is not finite; a stage that steps its optimizers itself has looked already."""
        # Under float16 the scaler skips such steps, which are part of how it finds its scale.
        if self.automatic_optimization and getattr(self.trainer.precision_plugin, "scaler", None) is None:
            stepped = {id(one) for group in optimizer.param_groups for one in group["params"]}
            named = ((name, one) for name, one in self.named_parameters() if id(one) in stepped)
            check_finite_gradients(named, self.step - 1, self.origin)  # `training_step` has counted its batch

    def generator(self, name: str, index: int = 0, rank: int | None = None) -> torch.Generator:
        """A CPU generator of this step; other names and other indices are other, independent streams.

        Args:
            name: what is drawn.
            index: tells draws of one name in one step apart.
            rank: None for this process's own stream; a number for one that all processes share.
        """
        place = self.global_rank if rank is None else rank
        entropy = (self.seed, self.step, place, zlib.crc32(name.encode()), index)
        return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def learning_rate_factor(self, step: int, warmup: int = 20) -> float:
        """Linear warm-up, then half a cosine down to a twentieth at `num_steps`."""
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(self.num_steps - warmup, 1), 1.0)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))

    def schedule(self, optimizer: torch.optim.Optimizer, updates: int = 1) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning rate of an optimizer that steps `updates` times a batch, see `learning_rate_factor`."""
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: self.learning_rate_factor(done // updates))

    def weighted_sum(self, terms: dict[str, torch.Tensor], weights: dict[str, float]) -> torch.Tensor:
        """Sum of the terms by weight (1 where none is given); logs each raw term, stops on one not finite."""
        check_finite(terms, self.step, self.origin)
        for name, value in terms.items():
            self.log(f"loss/{name}", value.detach(), prog_bar=name == next(iter(terms)))
        return torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the step; leave frozen networks out, their own files hold them."""
        checkpoint["step"] = self.step
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(self.frozen)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the step; frozen networks keep the values of their own files, all else is loaded strictly."""
        self.step = int(checkpoint["step"])
        own = {name: value for name, value in self.state_dict().items() if name.startswith(self.frozen)}
        checkpoint["state_dict"] = {**own, **checkpoint["state_dict"]}

    def data(self) -> VideoDataModule:
        """The trainer's data module."""
        module = getattr(self.trainer, "datamodule", None)  # Lightning sets it outside of its class
        assert isinstance(module, VideoDataModule)
        return module

    def open_report(self, protocol: str) -> TestReport:
        """An empty report of a test of this stage; `protocol` as in `TestReport`."""
        directory = Path(self.trainer.log_dir or ".")
        return TestReport(self.data(), directory, protocol, self.stage, self.seed, self.device, self.face_points)

    def exported(self) -> nn.Module:
        """The network whose weights the next stage starts from."""
        return self.get_submodule(self.network)

    def load_exported(self, choice: str | None, runs: Path) -> None:
        """Load the network that validate, test and predict look at.

        Args:
            choice: a file; `shipped` for the one under assets; None for the newest complete fit run's, else the shipped
                one.
            runs: folder of the runs; a fit run is complete when its folder holds `weights.safetensors`.

        Raises:
            FileNotFoundError: no such file, or none is shipped; names the command that makes one.
        """
        found = sorted((runs / self.stage).glob("version_*/weights.safetensors"), key=lambda path: path.stat().st_mtime)
        if choice is None and found:
            path = found[-1]
        elif choice is not None and choice != "shipped":
            path = Path(choice)
        elif self.shipped is not None:
            path = Path(self.shipped)
        else:
            raise FileNotFoundError(
                f"no weights of the stage {self.stage} are shipped: "
                f"make them with `{COMMANDS[self.stage]}`, or name a file with --weights"
            )
        load_weights(self.exported(), path, COMMANDS[self.stage])
        self.loaded = str(path)
        rank_zero_info(f"{self.stage}: weights of {path}")

    def export_weights(self, path: Path, metadata: dict[str, Any]) -> None:
        """Write the network that the next stage starts from."""
        save_weights(
            path,
            self.exported().state_dict(),
            {"stage": self.stage, "steps": self.step, "commit": git_commit(), **metadata},
        )
