"""Stops at the first loss that is not finite, before it reaches the weights."""

from collections.abc import Mapping

import torch
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
