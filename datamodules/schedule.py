"""Progressive training: resolution, clip length and batch size as a function of the batch's own index.

Everything here is a pure function of (seed, step, rank, world size): a resumed run repeats and skips nothing, and all
ranks change size at the same step, also behind prefetching workers that cannot see the trainer's counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass
class Phase:
    """From batch index `start` on, batches have this size.

    Attributes:
        start: first batch index of the phase.
        resolution: side of the pictures in pixels.
        num_frames: T of each window.
        batch_size: windows a batch on each rank.
    """

    start: int = 0
    resolution: int = 128
    num_frames: int = 9
    batch_size: int = 2


def check_phases(phases: Sequence[Phase]) -> list[Phase]:
    """Sort the phases and check that they cover step 0 and hold positive sizes."""
    if not phases:
        raise ValueError("data.schedule is empty: give at least one phase with start 0")
    ordered = sorted(phases, key=lambda phase: phase.start)
    if ordered[0].start != 0:
        raise ValueError(f"data.schedule starts at step {ordered[0].start}: its first phase needs start 0")
    for phase in ordered:
        if min(phase.resolution, phase.num_frames, phase.batch_size) < 1:
            raise ValueError(
                f"data.schedule phase at {phase.start}: resolution, num_frames and batch_size must be at least 1"
            )
    return ordered


def describe(phase: Phase) -> str:
    """The sizes of a phase in words."""
    size = f"{phase.resolution} px, {phase.num_frames} frames"
    return f"{size}, {phase.batch_size} windows a batch on each rank"


def phase_at(phases: Sequence[Phase], step: int) -> Phase:
    """The phase in force at a batch index; `phases` as `check_phases` returns them."""
    return [phase for phase in phases if phase.start <= step][-1]


def step_generator(seed: int, step: int, rank: int, stream: int = 0) -> np.random.Generator:
    """Random numbers of one step on one rank; `stream` separates uses that must not share numbers."""
    return np.random.default_rng([seed, step, rank, stream])


def start_of_rank(num_starts: int, step: int, rank: int, world_size: int, rng: np.random.Generator) -> int:
    """One of `num_starts` places for a window, drawn from those that are this rank's at this step.

    Ranks share the places out by remainder, so that no two of them draw the same window at a step; who has which
    remainder turns with the step. With fewer places than ranks all draw from all.
    """
    if num_starts < world_size:
        return int(rng.integers(num_starts))
    first = (rank + step) % world_size
    return first + world_size * int(rng.integers((num_starts - first - 1) // world_size + 1))


class StepSampler(Sampler[int]):
    """Yields batch indices from `start` to `num_steps`: the data position of a resumed run."""

    def __init__(self, num_steps: int, start: int = 0) -> None:
        self.num_steps, self.start = num_steps, start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.num_steps))

    def __len__(self) -> int:
        return self.num_steps
