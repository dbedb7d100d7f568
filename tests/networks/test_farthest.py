"""Farthest-point sampling against a search through all distances."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from visa.networks.farthest import farthest_first, farthest_points


def searched(distance: np.ndarray, count: int, first: int) -> list[int]:
    """By brute force over the matrix of distances `[n,n]`."""
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(np.argmax(distance[:, chosen].min(axis=1))))
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("first", [0, 7])
def test_points_are_chosen_far_from_each_other(first: int, dtype: torch.dtype) -> None:
    points = torch.randn(40, 5, generator=torch.Generator().manual_seed(first), dtype=dtype)
    assert farthest_points(points, 12, first) == searched(cdist(points, points), 12, first)


def test_all_points_where_there_are_fewer_and_equal_ones_once() -> None:
    points = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    assert sorted(farthest_points(points, 9, 2)) == [0, 1, 2, 3]
    assert farthest_points(torch.zeros(5, 2), 3, 1) == [1, 0, 2]  # of equally far ones the earliest
    assert farthest_points(points, 1, 3) == [3]


def test_infinite_distances_come_first_and_enough_is_enough() -> None:
    points = np.random.default_rng(0).random((60, 2))
    group = np.repeat([0, 1, 2], 20)
    distance = cdist(points, points)
    distance[group[:, None] != group] = np.inf
    before = distance.copy()
    rows = torch.from_numpy(distance)
    chosen = farthest_first(lambda index: rows[index], 60, 5, enough=0.3)
    assert chosen == searched(distance, len(chosen), 5)
    assert set(group[chosen[:3]]) == {0, 1, 2}
    assert distance[:, chosen].min(axis=1).max() < 0.3  # enough
    assert distance[:, chosen[:-1]].min(axis=1).max() >= 0.3  # and no more
    assert (distance == before).all()
