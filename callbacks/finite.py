"""Stops a run at the first loss that is not finite, before it reaches the weights."""

# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from collections.abc import Mapping

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


def check_finite(terms: Mapping[str, Tensor], step: int) -> None:
    """Raises a one-line ValueError that names each term (any shape) holding a NaN or an infinity.

    All terms are tested in one reduction, so that a device is waited for once.
    """
    totals = torch.stack([term.detach().float().abs().sum() for term in terms.values()])
    # A sum may overflow where its parts do not: the parts are asked before a run is stopped.
    if not torch.isfinite(totals).all():
        bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
        if bad:
            raise ValueError(_message(bad, step))


def _message(names: list[str], step: int) -> str:
    return (
        f"loss is not finite at step {step} (in {', '.join(names)}): stopped before the optimizer step; "
        "resume from the last checkpoint with a lower learning rate, or look at this step's clips"
    )


class StopOnNonFinite(Callback):
    """Checks each loss before its backward pass, under automatic and manual optimization.

    The terms that it names are those that the module logged in this step under names that hold `train`; where none of
    them is at fault, or the module logs after the backward pass, it names the total. Costs one device synchronisation
    a loss.
    """

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if torch.isfinite(loss).all():
            return
        logged = {name: value for name, value in trainer.callback_metrics.items() if "train" in name}
        bad = sorted(name for name, value in logged.items() if not torch.isfinite(value).all())
        raise ValueError(_message(bad or ["total"], trainer.global_step))
