"""Speed of the data loader against each stage's training step: `python -m visa.benchmarks.dataloader [--json]`.

The loader runs alone, with two workers, on the sizes of a stage's last phase; then the stage trains a few batches of
that size, and the time inside its steps says how many frames a second it consumes. Last, one loader reads 2,000
batches, and the memory of process and workers (shared pages counted once) is compared at their tenth and at their end.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from visa import cli as train
from visa.benchmarks.command import Figure, command_line, print_json, run, say
from visa.datamodules.schedule import Phase
from visa.datamodules.video import VideoDataModule

STAGES = {
    "reconstruction": ["-c", "configs/reconstruction.yaml"],
    "teacher": ["-c", "configs/teacher.yaml"],
    "student_start": ["-c", "configs/shader_ode.yaml"],
    "student": ["-c", "configs/shader.yaml"],
    "adversarial": ["-c", "configs/adversarial.yaml"],
}


class StepTimes(lightning.Callback):
    """Seconds inside each training step, without the wait for its batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begin = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        self.begin = time.perf_counter()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begin)


def memory_mb(processes: list[int]) -> float:
    """Proportional memory of processes in MB: a page that several share counts once in all."""
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def loader_fps(data: VideoDataModule, phase: Phase, seconds: float, warm_up: int = 10) -> float:
    """Frames a second of the loader alone, the reference photos not counted."""
    begin, count = 0.0, 0
    for index, _ in enumerate(data.train_dataloader()):
        if index == warm_up:  # workers are up and the first batches, which they made meanwhile, are out
            begin = time.perf_counter()
        elif index > warm_up:
            count += 1
            if time.perf_counter() - begin > seconds:
                break
    return count * phase.num_frames * phase.batch_size / (time.perf_counter() - begin)


def stage_fps(arguments: list[str], phase: Phase, num_steps: int) -> float:
    """Frames a second inside the stage's training steps (median step, the first left out)."""
    schedule = [asdict(replace(phase, start=0))]
    options = [
        f"--data.schedule={json.dumps(schedule)}",
        f"--data.num_steps={num_steps}",
        f"--trainer.val_check_interval={num_steps + 1}",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.callbacks+=visa.benchmarks.dataloader.StepTimes",
    ]
    cli = train.main(["fit", *arguments, *options])
    # Not by class: run as a program, this module is not the one that the parser imported.
    callbacks: list[Any] = vars(cli.trainer)["callbacks"]  # which lightning sets and does not declare
    times = next(callback.seconds for callback in callbacks if type(callback).__name__ == "StepTimes")
    return phase.num_frames * phase.batch_size / float(np.median(times[1:]))


def flatness(data: VideoDataModule, num_batches: int) -> dict[str, float]:
    """Memory of the process and its workers after a tenth of the batches and after all of them, in MB."""
    iterator = iter(data.train_dataloader())
    marks = {}
    for index in range(num_batches):
        next(iterator)
        if index + 1 in (num_batches // 10, num_batches):
            workers = [worker.pid for worker in getattr(iterator, "_workers", [])]
            marks[index + 1] = memory_mb([os.getpid(), *workers])
    early, late = marks[num_batches // 10], marks[num_batches]
    return {"memory_early_mb": early, "memory_late_mb": late, "memory_growth_percent": 100 * (late / early - 1)}


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=6, help="training steps that are timed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each loader runs (default: %(default)s)")
    parser.add_argument("--batches", type=int, default=2000, help="of the memory run (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="by default all")
    options = parser.parse_args()
    with contextlib.redirect_stdout(sys.stderr):  # training prints; standard output is for the JSON object alone
        result = measure(options)
    print_json(result, options.json, digits=2)


def measure(options: argparse.Namespace) -> dict[str, Figure]:
    """All figures."""
    result: dict[str, Figure] = {
        "workers": options.workers,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    say(f"{'stage':>15} {'size':>14} {'loader':>9} {'step':>9} {'times':>7}   (frames a second)")
    with tempfile.TemporaryDirectory() as folder:
        train.RUNS = Path(folder)
        for name in options.stages:
            cli = train.main(["fit", *STAGES[name]], cli=train.BuildOnly)
            data, phase = cli.datamodule, replace(cli.datamodule.phases[-1], start=0)
            data.phases, data.num_steps, data.num_workers = [phase], 100_000, options.workers
            data.setup("fit")
            loader = loader_fps(data, phase, options.seconds)
            step = stage_fps(STAGES[name], phase, options.steps)
            figures = {"loader_fps": loader, "step_fps": step, "loader_times": loader / step}
            result |= {f"{key}_{name}": value for key, value in figures.items()}
            size = f"{phase.batch_size}x{phase.num_frames}x{phase.resolution}px"
            say(f"{name:>15} {size:>14} {loader:9.1f} {step:9.1f} {loader / step:6.1f}x")
    phase = Phase(0, 64, 2, 1)
    data = VideoDataModule(schedule=[phase], num_steps=options.batches, num_workers=options.workers, cache_gb=1.0)
    data.setup("fit")
    memory = flatness(data, options.batches)
    say(
        f"memory after {options.batches // 10} and {options.batches} batches: {memory['memory_early_mb']:.0f} and "
        f"{memory['memory_late_mb']:.0f} MB ({memory['memory_growth_percent']:+.1f} %)"
    )
    return result | {"batches": options.batches} | memory


if __name__ == "__main__":
    run(main)
