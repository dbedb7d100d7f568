"""Jumps are judged against the running median, written each time, warned of once, and the same after a resume."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from visa.callbacks.spikes import SpikeWarning

JUMPS = {9: 30.0, 12: 1000.0, 14: float("nan")}


class Jumpy(LightningModule):
    """Its loss is 1 to 1.4, but where JUMPS says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:  # noqa: ARG002
        value = JUMPS.get(batch_idx, 1 + 0.1 * (batch_idx % 5))
        self.log("loss/flow", value)
        self.log("loss/nothing", 0.0)
        if batch_idx % 3 == 0:
            self.log("loss/seldom", 1.0 + batch_idx)
        self.log("other", 1000.0 * value)
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 16, "accelerator": "cpu", "logger": CSVLogger(folder, name="", version=""), "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **(defaults | options))


def data() -> DataLoader[Tensor]:
    return DataLoader(torch.zeros(16, 1))  # type: ignore[arg-type]


def test_a_jump_is_written_each_time_and_warned_of_once(tmp_path: Path) -> None:
    class Loud(CSVLogger):
        def __init__(self) -> None:
            super().__init__(tmp_path, name="", version="")
            self.spikes: dict[int, dict[str, float]] = {}

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
            found = {name: float(value) for name, value in metrics.items() if name.startswith("spike/")}
            if found:
                assert step is not None
                self.spikes[step] = found

    logger = Loud()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, SpikeWarning(window=20), logger=logger).fit(Jumpy(), data())
    told = [str(one.message) for one in caught if "times its median" in str(one.message)]
    assert len(told) == 1
    assert told[0].startswith("loss/flow is 30 in batch 9, 25 times its median 1.2;")
    before = [JUMPS.get(step, 1 + 0.1 * (step % 5)) for step in range(12)]  # the first jump is among them
    expected = {10: 30 / np.median(before[:9]), 13: 1000 / np.median(before)}
    assert logger.spikes == {step: {"spike/loss/flow": pytest.approx(ratio)} for step, ratio in expected.items()}


def test_a_resumed_run_goes_on_with_its_windows(tmp_path: Path) -> None:
    class Keep(Checkpoint):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=False)

    whole, resumed = SpikeWarning(window=20), SpikeWarning(window=20)
    trainer(tmp_path / "whole", whole, Keep(), enable_checkpointing=True).fit(Jumpy(), data())
    held = torch.load(tmp_path / "11.ckpt", weights_only=True)["callbacks"]
    (state,) = [value for name, value in held.items() if "SpikeWarning" in name]
    assert state["warned"] == ["loss/flow"]
    resumed.load_state_dict(state)
    assert list(resumed.values["loss/flow"]) == list(whole.values["loss/flow"])[:11]
    assert list(whole.values["loss/seldom"]) == [1.0, 4.0, 7.0, 10.0, 13.0, 16.0]


def test_options_that_judge_nothing_are_errors() -> None:
    for options in ({"factor": 1.0}, {"factor": float("nan")}, {"window": 3}):
        with pytest.raises(ValueError, match="a factor above 1 and a window of 4 or more"):
            SpikeWarning(**options)
