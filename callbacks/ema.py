"""Exponential moving average of one network's trainable parameters."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class ExponentialMovingAverage(Callback):
    """Averages the trainable parameters of one submodule, and puts the average in its place for validation and test.

    Only these parameters are copied, never a frozen teacher or the critic. The average is saved in the checkpoint as
    plain tensors, and resuming continues it bit for bit.

    Args:
        module: attribute path of the submodule in the LightningModule, e.g. `student`.
        decay: of the average; the first updates use min(decay, (1 + n) / (10 + n)), so that a short run is not
        dominated by
            its start.
        counter: name of an int attribute of the LightningModule that counts updates of the submodule. The average moves
            when it has changed at a batch's end. Needed under manual optimization, where `trainer.global_step` counts
            the steps of every optimizer. Default: `trainer.global_step`, which also respects gradient accumulation.
    """

    def __init__(self, module: str, decay: float = 0.999, counter: str | None = None) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay of the moving average must be in [0, 1), got {decay}")
        self.module = module
        self.decay = decay
        self.counter = counter
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._last_count = 0
        self._replaced: list[tuple[torch.nn.Parameter, Tensor]] = []

    @property
    def state_key(self) -> str:
        return self._generate_state_key(module=self.module)

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self.num_updates, "average": dict(self.average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_updates = state_dict["num_updates"]
        self.average = dict(state_dict["average"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parameters = self._parameters(pl_module)
        if not self.average:
            self.average = {name: p.detach().clone().float() for name, p in parameters.items()}
        self._check_names(parameters)
        self.average = {name: self.average[name].to(parameters[name].device) for name in parameters}
        self._last_count = self._count(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        count = self._count(trainer, pl_module)
        if count != self._last_count:
            self._last_count = count
            self.update(pl_module)

    @torch.no_grad()
    def update(self, pl_module: LightningModule) -> None:
        """Moves the average towards the parameters as they are now."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = [p.detach().float() for p in self._parameters(pl_module).values()]
        get_ema_multi_avg_fn(decay)(list(self.average.values()), parameters, None)
        self.num_updates += 1

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """The submodule holds the average inside the block; nothing happens before training has started."""
        self._put_average(pl_module)
        try:
            yield
        finally:
            self._put_back()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_average(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_average(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._put_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # A checkpoint written while the run comes down must hold the live parameters.
        self._put_back()

    def _put_average(self, pl_module: LightningModule) -> None:
        if not self.average or self._replaced:
            return
        parameters = self._parameters(pl_module)
        self._check_names(parameters)
        # Validation may run in inference mode, whose tensors cannot be parameters that are trained on afterwards.
        with torch.inference_mode(False), torch.no_grad():
            for name, parameter in parameters.items():
                self._replaced.append((parameter, parameter.data))
                parameter.data = self.average[name].to(parameter.device, parameter.dtype)

    def _put_back(self) -> None:
        for parameter, data in self._replaced:
            parameter.data = data
        self._replaced = []

    def _parameters(self, pl_module: LightningModule) -> dict[str, torch.nn.Parameter]:
        try:
            submodule = pl_module.get_submodule(self.module)
        except AttributeError:
            raise ValueError(f"moving average: {type(pl_module).__name__} has no submodule {self.module!r}") from None
        return {name: p for name, p in submodule.named_parameters() if p.requires_grad}

    def _check_names(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        if different := sorted(set(parameters) ^ set(self.average)):
            raise ValueError(
                f"moving average of {self.module!r}: the checkpoint does not fit the network, e.g. {different[0]!r}; "
                "resume with the config of the run that wrote it"
            )

    def _count(self, trainer: Trainer, pl_module: LightningModule) -> int:
        if self.counter is None:
            return trainer.global_step
        if not hasattr(pl_module, self.counter):
            raise ValueError(f"moving average: {type(pl_module).__name__} has no update counter {self.counter!r}")
        return int(getattr(pl_module, self.counter))
