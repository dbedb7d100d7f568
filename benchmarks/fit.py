"""What the fit to the photo gives: `python -m visa.benchmarks.fit [--clips people/validation ...] [--json]`.

Each clip's person is reconstructed from its photo and fitted with several settings: other numbers of steps, and each
term of `FitOptions` off. PSNR (dB) and perceptual distance (`vgg`) of the avatar with the photo as texture and of its
splat alone, in the photo's own pose (`own`) and in the clip's held-out block (its validation block; of a clip without
splits, its most moving 48 frames). `block_fragment_px` is the largest piece of the textured avatar that floats beside
the person, in the worst frame of the block. Then the seconds of a fit of the first clip at 128 and 384 px, and the
share of them that the rasterizer takes, forward and backward.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from visa.benchmarks.command import add_clips, add_stride, clip_paths, command_line, print_json, run, say
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.hold_out import held_out_block
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.evaluation.perceptual import metric_network, perceptual_measures
from visa.evaluation.silhouette import largest_fragment
from visa.evaluation.table import format_table
from visa.networks.avatar import Avatar
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor

CLIPS = ["assets/clips/webcam_man.mp4"]
SIZE, TIMED_SIZES = 128, (128, 384)  # px
RASTERIZER = ("_Splatting", "_SplattingBackward")  # names of the operation in a profile
FIT = FitOptions()
PROPERTIES = ("opacity", "color", "scale", "offset", "rotation")


def _with_zeros(*names: str) -> FitOptions:
    zeros: dict[str, Any] = dict.fromkeys(names, 0.0)
    return replace(FIT, **zeros)


# Setting -> options. A rate of 0 leaves a property as the network gave it; a pull of 0 lets all move freely.
SETTINGS: dict[str, FitOptions] = {
    **{f"{steps} steps": replace(FIT, steps=steps) for steps in (0, 40, 80, 160)},
    **{f"no {name}": _with_zeros(f"{name}_rate") for name in PROPERTIES},
    "no alpha term": replace(FIT, alpha_weight=0.0),
    "no SSIM term": replace(FIT, ssim_weight=0.0),
    "no pulls": _with_zeros(*(f"{name}_pull" for name in PROPERTIES)),
}


def read(path: str | Path, size: int, stride: int) -> VideoBatch:
    """The held-out block of a clip, every `stride`-th valid frame, with its photo."""
    clip = Clip(path)
    first, last = held_out_block(clip)
    numbers = np.arange(first, last + 1, stride)
    numbers = numbers[clip.track["frame_valid"][numbers]]
    has_splits = clip.sidecar(".splits.yaml").is_file()
    return WindowReader(BACKGROUND).read(clip, numbers, clip.reference_frame() if has_splits else 0, size)


def compare(frames: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean PSNR and perceptual distance of `[T,3,H,W]`."""
    network, frames = metric_network("stlpips", truth.device), frames.clamp(0, 1)
    distance = perceptual_measures(network, truth, {"one": frames})["one"].distance
    return float(psnr(frames, truth).mean()), float(distance.mean())


@torch.no_grad()
def measure(reconstructor: GaussianReconstructor, avatar: Avatar, batch: VideoBatch) -> dict[str, float]:
    """All figures of one avatar."""
    figures = {}
    own = avatar.render(reconstructor.body, photo_of(batch).view())
    block = avatar.render(reconstructor.body, batch.view())
    for place, maps, truth in (("own", own, batch.reference), ("block", block, batch.frames[0])):
        for row, frames in (("textured", maps.textured[0]), ("splat", maps.rgb[0])):
            figures[f"{place}_{row}_psnr"], figures[f"{place}_{row}_perceptual"] = compare(frames, truth)
    figures["block_fragment_px"] = float(largest_fragment(block.coverage[0], batch.masks[0]).max())
    return figures


def timed(reconstructor: GaussianReconstructor, batch: VideoBatch) -> tuple[float, float]:
    """Seconds of a fit, and the rasterizer's share of a profiled one."""
    photo = photo_of(batch)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    fit_avatar(reconstructor, avatar, photo, replace(FIT, steps=1))  # compiled kernels are loaded
    start = time.perf_counter()
    fit_avatar(reconstructor, avatar, photo, FIT)
    seconds = time.perf_counter() - start
    with profile(activities=[ProfilerActivity.CPU]) as record:
        start = time.perf_counter()
        fit_avatar(reconstructor, avatar, photo, FIT)
        whole = time.perf_counter() - start
    inside = sum(event.self_cpu_time_total for event in record.key_averages() if event.key in RASTERIZER)
    return seconds, inside / 1e6 / whole


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument(
        "--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="which to measure"
    )
    add_stride(parser, 3)
    given = parser.parse_args(arguments)
    paths = clip_paths(given.clips)
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in given.settings}
    for path in paths:
        batch = read(path, SIZE, given.stride)
        photo = photo_of(batch)
        with torch.no_grad():
            avatar, _ = reconstructor(photo)
        for name in given.settings:
            say(f"{path.stem}: {name}")
            fitted = fit_avatar(reconstructor, avatar, photo, SETTINGS[name])
            found[name].append(measure(reconstructor, fitted, batch))
    means = {
        name: {column: statistics.fmean(row[column] for row in rows) for column in rows[0]}
        for name, rows in found.items()
    }
    say(format_table(means, list(next(iter(means.values())))))
    flat: dict[str, float | int] = {"clips": len(paths), "threads": torch.get_num_threads()}
    for name, figures in means.items():
        flat |= {f"{name}/{column}": value for column, value in figures.items()}
    for size in TIMED_SIZES:
        seconds, share = timed(reconstructor, read(paths[0], size, given.stride))
        flat |= {f"fit_{size}px_s": seconds, f"fit_{size}px_rasterizer_share": share}
        say(f"fit at {size} px: {seconds:.2f} s, {share:.0%} of it in the rasterizer")
    print_json(flat, given.json)


if __name__ == "__main__":
    run(main)
