"""What a mean over people is worth: its bootstrap interval, and the sign test of a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, num_resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    People are drawn anew, not frames: frames of one person are not independent.

    Args:
        values: one a person.
        confidence: share of the resampled means within the interval.
        num_resamples: sets of people that are drawn, each as large as `values`.
        seed: of the drawing; the same values give the same interval.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval over people needs 2 of them, got {len(values)}")
    drawn = np.random.default_rng(seed).integers(len(values), size=(num_resamples, len(values)))
    means = np.asarray(values, float)[drawn].mean(axis=1)
    rest = (1 - confidence) / 2
    low, high = np.quantile(means, [rest, 1 - rest])
    return float(low), float(high)


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign test: how likely so uneven a split of signs is if either sign is as likely.

    Zeros are left out (Conover 1999, section 3.4); 1 where nothing is left.
    """
    positive = sum(value > 0 for value in differences)
    count = positive + sum(value < 0 for value in differences)
    tail = sum(math.comb(count, k) for k in range(min(positive, count - positive) + 1)) / 2**count
    return min(1.0, 2 * tail)
