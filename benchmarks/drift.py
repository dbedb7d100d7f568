"""Does a long rollout drift? `python -m visa.benchmarks.drift [--seconds 60] [--weights FILE] [--json]`.

Plays five seconds of the shipped clip's validation block forth and back, in one unbroken rollout from the photo alone,
and compares each pass with the true frames: the same frames every time, so that what changes from the first pass to
the last is the rollout's own doing. Memory of the frames aside, nothing depends on the length.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from visa import cli as train
from visa.artifacts.media import sheet, write_image
from visa.artifacts.provenance import device_name, git_commit
from visa.benchmarks.command import Figure, command_line, print_json, run, say_figures
from visa.benchmarks.shader import bounce
from visa.datamodules.batch import VideoBatch
from visa.datamodules.video import VideoDataModule
from visa.datamodules.windows import FixedWindows
from visa.evaluation.image import psnr
from visa.evaluation.perceptual import metric_network, perceptual_measures
from visa.lightning_modules.student import StudentStage

FPS, PASS_FRAMES = 25, 125
EVERY = 4  # frames of a pass that are measured: each fourth


def block(module: VideoDataModule) -> VideoBatch:
    """The first five seconds of the first clip's validation block `[1,T]`."""
    module.setup("validate")
    clip = module.clips[0]
    first, last = clip.splits.validation[0]
    numbers = np.arange(first, min(first + PASS_FRAMES, last + 1))
    return next(iter(DataLoader(FixedWindows([(clip, numbers)], module.reader, module.resolution), batch_size=None)))


@torch.inference_mode()
def paint(stage: StudentStage, batch: VideoBatch, order: Tensor) -> Tensor:
    """Frames `[N,3,H,W]`, float16, of one rollout through the batch's frames in this order."""
    stream = stage.stream(stage.student, stage.noise_levels)
    stream.start(batch)
    painted, first = [], 0
    with tqdm(total=len(order), unit="frame") as progress:
        while first < len(order):
            last = min(first + stream.chunk_length(), len(order))
            window = batch.cut(order[first:last])
            frames, _ = stream.step(window.view())
            painted.append(frames[0].clamp(0, 1).half().cpu())
            progress.update(last - first)
            first = last
    return torch.cat(painted)


def passes(painted: Tensor, truth: Tensor, order: Tensor) -> list[dict[str, float]]:
    """PSNR and perceptual distance (`vgg`) of each whole pass over the truth's frames, the first one forward."""
    network, size = metric_network("stlpips", truth.device), len(truth)
    results = []
    for first in range(0, len(order) - size + 1, size - 1):  # the turning frame ends one pass and begins the next
        window = slice(first, first + size, EVERY)
        part, true = painted[window], truth[order[window]]
        distance = perceptual_measures(network, true, {"student": part})["student"].distance
        results.append({"psnr": float(psnr(part.float(), true).mean()), "perceptual": float(distance.mean())})
    return results


def first_and_last(painted: Tensor, truth: Tensor) -> Tensor:
    """Sheet `[3,H',W']` of eight frames: truth, the first pass, the last whole one."""
    turn = len(truth) - 1  # frames from one end of the motion to the other
    last = (len(painted) - 1) // turn - 1
    times = torch.linspace(0, turn, 8).long()
    again = last * turn + (turn - times if last % 2 else times)
    return sheet({"truth": truth[times], "first": painted[times].float(), "last": painted[again].float()})


def measure(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Figure]:
    """Everything that is measured, flat."""
    cli = train.main(["validate", "-c", arguments.config, *overrides], cli=train.BuildOnly)
    stage, module = cli.model.eval(), cli.datamodule
    if not isinstance(stage, StudentStage):
        raise ValueError(f"{arguments.config} has no student: give configs/shader.yaml or configs/adversarial.yaml")
    stage.load_exported(arguments.weights, train.RUNS)
    batch = block(module)
    order = bounce(round(arguments.seconds * FPS), batch.frames.shape[1])
    if len(order) < 2 * batch.frames.shape[1]:
        raise ValueError(f"--seconds {arguments.seconds:g} holds no two passes of {batch.frames.shape[1] / FPS:g} s")
    painted = paint(stage, batch, order)
    figures = passes(painted, batch.frames[0], order)
    result: dict[str, Figure] = {
        "device": device_name(stage.device),
        "commit": git_commit(),
        "seconds": arguments.seconds,
        "passes": len(figures),
    }
    for name in ("psnr", "perceptual"):
        values = [figure[name] for figure in figures]
        result |= {f"{name}_first": values[0], f"{name}_last": values[-1]}
        result |= {f"{name}_smallest": min(values), f"{name}_largest": max(values)}
    result["perceptual_last_over_first"] = figures[-1]["perceptual"] / figures[0]["perceptual"]
    if arguments.picture:
        write_image(arguments.picture, first_and_last(painted, batch.frames[0]))
    return result


def main() -> None:
    parser = command_line(__doc__, allow_abbrev=False)
    parser.add_argument("-c", "--config", default=train.DEFAULT_CONFIG, help="as for train.py (default: %(default)s)")
    parser.add_argument("--weights", default=None, help="`shipped` or a file; by default the newest fit run's")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the rollout (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=None, help="sheet of the first and the last pass to write")
    arguments, overrides = parser.parse_known_args()
    result = measure(arguments, overrides)
    say_figures(result)
    print_json(result, arguments.json, digits=5)


if __name__ == "__main__":
    run(main)
