"""Jumps of losses and gradients: written down, and warned of once."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

WATCHED = ("loss/", "gradient_norm/")


@runtime_checkable
class Traced(Protocol):
    """A batch that knows where it comes from."""

    def origin(self) -> str:
        """Clips and frames, in one line."""


class SpikeWarning(Callback):
    """Compares each `loss/NAME` and `gradient_norm/NAME` with its running median.

    A value that is `factor` times the median or more is written to the loggers as `spike/NAME`, value over median; the
    first one of each name is also a warning that names step, value, median and clips. Values are read one batch later,
    so that no device is waited for; what a batch does not log is not judged again. The windows are part of the
    checkpoint.

    Args:
        factor: of the median.
        window: values of a name that the median is of; none is judged before a quarter of them is there.
    """

    def __init__(self, factor: float = 10.0, window: int = 100) -> None:
        if not factor > 1 or window < 4:
            raise ValueError(f"spikes: give a factor above 1 and a window of 4 or more, got {factor} and {window}")
        self.factor, self.window = factor, window
        self.values: dict[str, deque[float]] = {}
        self.warned: set[str] = set()
        self._waiting: _Values | None = None
        self._seen: dict[str, Tensor] = {}  # held, so that no newer value can lie at the same address

    def state_dict(self) -> dict[str, Any]:
        self._judge()
        return {"values": {name: list(held) for name, held in self.values.items()}, "warned": sorted(self.warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {name: deque(held, self.window) for name, held in state_dict["values"].items()}
        self.warned = set(state_dict["warned"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._judge()
        metrics = trainer.callback_metrics
        watched = {name: value for name, value in metrics.items() if name.startswith(WATCHED) and value.numel() == 1}
        # Lightning gives the last value of each name, of whatever batch.
        names = sorted(
            name
            for name, value in watched.items()
            if name not in self._seen or value.data_ptr() != self._seen[name].data_ptr()
        )
        self._seen = watched
        if names:
            stacked = torch.stack([metrics[name].detach().float().reshape(()) for name in names])
            origin = f" ({batch.origin()})" if isinstance(batch, Traced) else ""
            where = f"batch {batch_idx}{origin}"
            self._waiting = _Values(names, stacked, where, trainer.global_step, trainer.loggers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._judge()

    def _judge(self) -> None:
        """Look at the values of the batch before."""
        batch, self._waiting = self._waiting, None
        if batch is None:
            return
        for name, value in zip(batch.names, map(abs, batch.values.tolist()), strict=True):
            held = self.values.setdefault(name, deque(maxlen=self.window))
            median = statistics.median(held) if len(held) >= self.window // 4 else 0.0
            if median > 0 and value >= self.factor * median:
                self._tell(name, value, median, batch)
            if math.isfinite(value):
                held.append(value)

    def _tell(self, name: str, value: float, median: float, batch: _Values) -> None:
        for logger in batch.loggers:
            logger.log_metrics({f"spike/{name}": value / median}, step=batch.global_step)
        if name not in self.warned:
            self.warned.add(name)
            rank_zero_warn(
                f"{name} is {value:.3g} in {batch.where}, {value / median:.0f} times its median {median:.3g}; "
                f"further jumps of it are in the logger's curve spike/{name}"
            )


@dataclass(frozen=True)
class _Values:
    """What a batch logged: names, values `[N]` on their device, and where they come from."""

    names: list[str]
    values: Tensor
    where: str
    global_step: int
    loggers: list[Logger]
