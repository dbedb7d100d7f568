"""Photo -> avatar, and posing + splatting, on the shipped weights: `python -m visa.benchmarks.avatar [--json]`.

The photo has its track already. Reconstruction is timed once cold (first call of the process, compiled kernels loaded)
and then warm; posing, splatting and both together frame by frame, each frame another pose of the shipped track, on one
camera, as a live stream would call them. Wall-clock times are the machine's, with all else that ran on it: its load is
printed. The processor time of this process (`cpu`, all threads) hardly depends on that; with `--threads 1` it is what
one free core would take.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from visa.benchmarks.command import add_threads, command_line, print_json, run, say, say_figures
from visa.datamodules.clip import load_track
from visa.networks.body import BodyParams
from visa.networks.compositing import splat
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor
from visa.tools.export_avatar import read_photo

DRIVING = "assets/clips/webcam_man.track.npz"
TARGET_SECONDS, TARGET_FPS = 1.0, 60.0


def times_ms(function: Callable[[int], object], repeats: int) -> np.ndarray:
    """`[repeats,2]` wall-clock and processor milliseconds of `function(0)`, ..., after one call that is not counted."""
    function(0)
    times = []
    for index in range(repeats):
        start = time.perf_counter(), time.process_time()
        function(index)
        times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return 1e3 * np.asarray(times)


@torch.no_grad()
def measure(image: str, size: int, frames: int, repeats: int) -> dict[str, float | int]:
    """All figures, see the module."""
    started = time.perf_counter()
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    loaded = time.perf_counter()
    photo, body = read_photo(image, BODY, size), reconstructor.body
    first = time.perf_counter()
    avatar, _ = reconstructor(photo)
    cold = time.perf_counter() - first
    warm = times_ms(lambda _: reconstructor(photo), repeats)
    track = load_track(DRIVING)
    numbers = np.flatnonzero(track["frame_valid"])[:: max(int(track["frame_valid"].sum()) // frames, 1)][:frames]
    motion = BodyParams.from_track(track, numbers).map(lambda value: value[None])
    poses = [motion[:, t : t + 1] for t in range(len(numbers))]
    views = [replace(photo.view(), body=params) for params in poses]
    posed = [avatar.pose(body, params) for params in poses]

    def draw(index: int) -> object:
        return splat(posed[index], views[index], avatar.background)

    parts = {
        "pose": times_ms(lambda index: avatar.pose(body, poses[index]), len(poses)),
        "splat": times_ms(draw, len(poses)),
        "frame": times_ms(lambda index: avatar.render(body, views[index]), len(poses)),
    }
    result: dict[str, float | int] = {
        "gaussians": avatar.canonical().means.shape[1],
        "feature_channels": avatar.gaussians.features.shape[2],
        "load_network_ms": 1e3 * (loaded - started),
        "photo_to_avatar_cold_ms": 1e3 * cold,
    }
    for name, values in {"photo_to_avatar": warm, **parts}.items():
        result |= {f"{name}_ms": float(np.median(values[:, 0])), f"{name}_cpu_ms": float(np.median(values[:, 1]))}
    result["frame_p99_ms"] = float(np.percentile(parts["frame"][:, 0], 99))
    return result | {"fps": 1e3 / result["frame_ms"]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--image", default="assets/photos/astronaut.png", help="photo with its track beside it")
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--frames", type=int, default=120, help="poses drawn")
    parser.add_argument("--repeats", type=int, default=7, help="timed reconstructions")
    add_threads(parser)
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    before = os.getloadavg()
    result = measure(given.image, given.size, given.frames, given.repeats)
    flat = {"threads": torch.get_num_threads(), "size_px": given.size, "load_before": before[0]}
    flat |= {"load_after": os.getloadavg()[0]} | result
    say_figures(flat)
    met = {
        f"photo -> avatar under {TARGET_SECONDS:g} s": result["photo_to_avatar_ms"] < 1e3 * TARGET_SECONDS,
        f"at least {TARGET_FPS:g} frames/s": result["fps"] >= TARGET_FPS,
    }
    for target, is_met in met.items():
        say(f"{target}: {'yes' if is_met else 'NO'}")
    print_json(flat, given.json, digits=3)


if __name__ == "__main__":
    run(main)
