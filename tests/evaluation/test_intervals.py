"""Intervals and tests over people against scipy."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from visa.evaluation.intervals import bootstrap_interval, sign_test


def test_the_bootstrap_interval_is_scipys() -> None:
    values = np.random.default_rng(3).normal(25, 4, 14).tolist()
    low, high = bootstrap_interval(values)
    reference = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert low == pytest.approx(reference.low, abs=0.1)
    assert high == pytest.approx(reference.high, abs=0.1)
    assert (low, high) == bootstrap_interval(values)  # the seed is fixed
    assert bootstrap_interval(values, confidence=0.5)[0] > low
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="needs 2 of them, got 1"):
        bootstrap_interval([1.0])


@pytest.mark.parametrize("signs", [(14, 0), (13, 1), (7, 7), (3, 9), (1, 0)])
def test_the_sign_test_is_scipys_binomial_test(signs: tuple[int, int]) -> None:
    differences = [0.5] * signs[0] + [-2.0] * signs[1] + [0.0] * 3
    assert sign_test(differences) == pytest.approx(binomtest(signs[0], sum(signs), 0.5).pvalue)


def test_no_difference_has_no_sign() -> None:
    assert sign_test([]) == sign_test([0.0, 0.0]) == 1.0
