"""Losses and gradients that are not finite are named, and nothing else is."""

import pytest
import torch
from torch import nn

from visa.losses.finite import check_finite, check_finite_gradients


def test_every_bad_term_is_named() -> None:
    good, bad = torch.ones(3), torch.tensor([0.0, torch.nan])
    check_finite({"l1": good}, 0)
    check_finite({"huge": torch.full((4,), 3e38)}, 0)  # its sum overflows, it does not
    with pytest.raises(ValueError, match=r"loss is not finite at step 7 \(in mask, scale\)"):
        check_finite({"l1": good, "mask": bad, "scale": torch.tensor(torch.inf)}, 7)
    with pytest.raises(ValueError, match=r"\(in mask; batch: anna frames 3 to 5, photo 40\): stopped before"):
        check_finite({"mask": bad}, 7, "anna frames 3 to 5, photo 40")


def parameters(*gradients: list[float] | None) -> list[tuple[str, nn.Parameter]]:
    named = []
    for number, gradient in enumerate(gradients):
        parameter = nn.Parameter(torch.zeros(0 if gradient is None else len(gradient)))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        named.append((f"layer{number}.weight", parameter))
    return named


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(
        ValueError, match=r"gradient is not finite at step 3 \(in layer1\.weight; batch: anna\)"
    ) as caught:
        check_finite_gradients(parameters([1.0], [0.0, value], None), 3, "anna")
    assert "\n" not in str(caught.value)


def test_finite_gradients_pass_and_many_bad_ones_are_counted() -> None:
    check_finite_gradients(parameters([1.0], None, [3e38, 3e38]), 0)  # their 2-norm overflows, they do not
    check_finite_gradients(parameters(None), 0)
    with pytest.raises(ValueError, match=r"\(in layer0\.weight, layer1\.weight, layer2\.weight, 2 more parameters\)"):
        check_finite_gradients(parameters(*[[float("nan")]] * 5), 0)
