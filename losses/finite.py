"""Stops at the first loss or gradient that is not finite, before it reaches the weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def check_finite(terms: Mapping[str, Tensor], step: int, origin: str = "") -> None:
    """Raises a one-line ValueError that names each term (any shape) holding a NaN or an infinity.

    All terms are tested in one reduction, so that a device is waited for once.

    Args:
        terms: raw losses by name.
        step: training batch, for the message.
        origin: clips and frames of the batch, for the message.
    """
    totals = torch.stack([term.detach().float().abs().sum() for term in terms.values()])
    # A sum may overflow where its parts do not: the parts are asked before a run is stopped.
    if not torch.isfinite(totals).all():
        bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
        if bad:
            raise ValueError(_message("loss", bad, step, origin))


def check_finite_gradients(parameters: Iterable[tuple[str, nn.Parameter]], step: int, origin: str = "") -> None:
    """Raises a one-line ValueError that names the first parameters whose gradient holds a NaN or an infinity.

    Args:
        parameters: with their names; those without a gradient are passed over.
        step, origin: as in `check_finite`.
    """
    gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    # The largest number, not the 2-norm: squares overflow where the gradient does not.
    if not torch.isfinite(get_total_norm(gradients.values(), norm_type=float("inf"))).all():
        bad = [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()]
        more = [f"{len(bad) - 3} more parameters"] if len(bad) > 3 else []
        raise ValueError(_message("gradient", [*bad[:3], *more], step, origin))


def _message(what: str, names: list[str], step: int, origin: str) -> str:
    seen = f"; batch: {origin}" if origin else ""
    return (
        f"{what} is not finite at step {step} (in {', '.join(names)}{seen}): stopped before the optimizer step; "
        "resume from the last checkpoint with a lower learning rate, or look at this step's clips"
    )
