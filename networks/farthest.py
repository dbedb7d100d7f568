"""Farthest-point sampling: a few of many points, far from each other (Gonzalez, "Clustering to minimize the maximum
intercluster distance", 1985).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def farthest_first(distances: Callable[[int], Tensor], count: int, first: int, enough: float = 0.0) -> list[int]:
    """Choose greedily, each the farthest from those before; of equally far ones the earliest, none twice.

    Args:
        distances: from an index, the distance `[n]` of every point to that one; may be infinite.
        count: how many; all points where there are fewer.
        first: index of the first.
        enough: no more are chosen once each point lies nearer than this to one of the chosen.

    Returns:
        indices in the order of choice.
    """
    chosen, nearest = [first], distances(first).clone()
    while len(chosen) < min(count, len(nearest)):
        nearest[chosen] = -1.0
        if nearest.max() < enough:
            break
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances(chosen[-1]))
    return chosen


def farthest_points(points: Tensor, count: int, first: int = 0) -> list[int]:
    """`farthest_first` by the Euclidean distance of `points [n,D]`."""
    return farthest_first(lambda index: (points - points[index]).norm(dim=1), count, first)
