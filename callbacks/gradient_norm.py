"""Norms of the gradients by network."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs `gradient_norm/NAME`, the 2-norm of the gradients of each named submodule, of a batch's last optimizer step.

    It sees what the optimizer is about to use: before clipping under automatic optimization (the trainer clips later),
    after clipping under manual optimization where the module has clipped. With two optimizers, each step logs only its
    own parameters.

    Args:
        modules: attribute paths of submodules, e.g. `[student, critic]`. Default: every direct child that is trained.
    """

    def __init__(self, modules: list[str] | None = None) -> None:
        self.modules = modules
        self._norms: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name in self._names(pl_module):
            parameters = pl_module.get_submodule(name).parameters()
            gradients = [p.grad for p in parameters if p.grad is not None and id(p) in stepped]
            if gradients:
                with torch.no_grad():
                    self._norms[f"gradient_norm/{name}"] = get_total_norm(gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not while the optimizers step: where another hook logs between two values of a process's first batch,
        # Lightning drops the first, and a resumed run would differ from an unbroken one.
        norms, self._norms = self._norms, {}
        for name, value in norms.items():
            pl_module.log(name, value, batch_size=1)

    def _names(self, pl_module: LightningModule) -> list[str]:
        if self.modules is None:
            return [name for name, _ in pl_module.named_children()]
        known = {name for name, _ in pl_module.named_modules()}
        if missing := [name for name in self.modules if name not in known]:
            raise ValueError(f"gradient norm: {type(pl_module).__name__} has no submodule {missing[0]!r}")
        return self.modules
