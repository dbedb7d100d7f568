"""Pictures a second of a live avatar: `python -m visa.benchmarks.streaming [--look shaded --steps 2] [--json]`.

The shipped photo in the shipped motion through the object that the viewer and live driving draw by
(`visa.live.performer`): poses in, pictures of `--size` px out, `--chunk` poses at a time (a shader's own chunk for the
look `shaded`). A look is `splat` (the Gaussians alone), `textured` (the photo's pixels) or `shaded` (the shader
paints). Where the time goes: posing, splatting (rasterizing), texture (compositing at the drawn size), painting
(guide, denoising, decoding), composition (the picture at the output's size). Wall-clock times are the machine's, with
all else that ran on it: its load is printed; processor time (`cpu`, all threads) hardly depends on that.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from visa.artifacts.provenance import device_name, git_commit
from visa.benchmarks.command import Figure, add_threads, at_least_one, command_line, print_json, run, say, say_figures
from visa.benchmarks.shader import bounce, resident_mb
from visa.live import performer as performing
from visa.live.performer import LOOKS, Look, Performer
from visa.live.shading import Shading, load_shading
from visa.networks import compositing
from visa.networks.avatar import Avatar
from visa.networks.body import BodyParams
from visa.person import Person
from visa.runtime import stream as streaming
from visa.runtime.stream import AvatarStream

PHOTO, DRIVING = "assets/photos/astronaut.png", "assets/clips/webcam_man.track.npz"
COMPARED = 30  # pictures of fewer steps that are compared with those of all
WARM_UP = 12  # pushes that are not counted; a shader's window is full by then
WATCHED: tuple[tuple[Any, str, str], ...] = (
    (Avatar, "pose", "posing"),
    (compositing, "rasterize", "splatting"),
    (Avatar, "drawn", "texture"),
    (AvatarStream, "step", "painting"),
    (streaming, "painted_at", "composition"),
    (performing, "enlarged", "composition"),
)


class Stopwatch:
    """Seconds of parts, each without those of the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = [0.0]

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same function, its time counted for `part`."""

        def call(*given: Any, **named: Any) -> Any:
            self._inside.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                whole = time.perf_counter() - begin
                self.seconds[part] += whole - self._inside.pop()
                self._inside[-1] += whole

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count the parts of WATCHED meanwhile."""
        plain = [getattr(owner, name) for owner, name, _ in WATCHED]
        for (owner, name, part), function in zip(WATCHED, plain, strict=True):
            setattr(owner, name, self.timed(function, part))
        try:
            yield
        finally:
            for (owner, name, _), function in zip(WATCHED, plain, strict=True):
                setattr(owner, name, function)


def motion(person: Person, count: int) -> BodyParams:
    """`[count]` poses: the shipped motion, forth and back."""
    params, _ = person.motion(DRIVING)
    return params[bounce(count, len(params.transl))]


def measure(
    person: Person, look: Look, size: int, chunk: int, frames: int, shading: Shading | None
) -> dict[str, float]:
    """All figures of one unbroken stream."""
    poses = motion(person, WARM_UP * chunk + frames)
    warm = Performer(person, look, size, shading)
    for first in range(0, WARM_UP * chunk, chunk):
        warm.push(poses[first : first + chunk])
    begin = time.perf_counter()
    performer, shown = Performer(person, look, size, shading), 0
    while shown == 0:
        shown = len(performer.push(poses[:chunk]))
    first_picture = time.perf_counter() - begin
    for first in range(0, WARM_UP * chunk, chunk):
        performer.push(poses[first : first + chunk])
    watch, times, processor, memory, pictures = Stopwatch(), [], [], [], 0
    with watch.watching():
        for first in range(WARM_UP * chunk, WARM_UP * chunk + frames, chunk):
            begin, busy = time.perf_counter(), time.process_time()
            pictures += len(performer.push(poses[first : first + chunk]))
            times.append(time.perf_counter() - begin)
            processor.append(time.process_time() - busy)
            memory.append(resident_mb())
    chunks = np.asarray(times)
    tenth = max(len(chunks) // 10, 1)
    milliseconds = {f"{part}_ms": 1e3 * seconds / pictures for part, seconds in watch.seconds.items()}
    total = 1e3 * sum(times) / pictures
    return {
        "fps": 1e3 / total,
        "picture_ms": total,
        "picture_cpu_ms": 1e3 * sum(processor) / pictures,
        **{name: milliseconds[name] for name in sorted(milliseconds, key=milliseconds.__getitem__, reverse=True)},
        "other_ms": total - sum(milliseconds.values()),
        "first_picture_ms": 1e3 * first_picture,
        "chunk_frames": chunk,
        "chunk_ms": 1e3 * float(np.median(chunks)),
        "chunk_p99_ms": 1e3 * float(np.percentile(chunks, 99)),
        "last_tenth_over_first": float(np.median(chunks[-tenth:]) / np.median(chunks[:tenth])),
        "memory_growth_mb": memory[-1] - memory[len(memory) // 10],
        "pictures": pictures,
    }


def likeness(person: Person, size: int, shading: Shading, full: Shading) -> dict[str, float]:
    """What doing less changes in the pictures, of 255 grey levels, and the PSNR of one to the other, dB."""
    poses = motion(person, COMPARED)
    one, other = (Performer(person, "shaded", size, each).push(poses) for each in (shading, full))
    change = 255 * (one - other)
    return {
        "change_levels": float(change.abs().mean()),
        "change_levels_p99": float(np.percentile(change.abs().numpy(), 99)),
        "psnr_to_full_db": float(20 * torch.log10(255 / change.square().mean().sqrt())),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--look", choices=LOOKS, default="textured", help="default: %(default)s")
    parser.add_argument("--size", type=at_least_one, default=512, help="px of the pictures (default: %(default)s)")
    parser.add_argument(
        "--resolution", type=at_least_one, help="px at which geometry is made and drawn (default: half of --size)"
    )
    parser.add_argument("--steps", type=at_least_one, help="denoising steps of the look shaded (default: the config's)")
    parser.add_argument("--chunk", type=at_least_one, help="poses given at a time (default: 1)")
    parser.add_argument("--frames", type=at_least_one, default=240, help="pictures timed (default: %(default)s)")
    parser.add_argument("--image", default=PHOTO, help="photo with its track beside it (default: %(default)s)")
    parser.add_argument("--fast", action="store_true", help="a shader that does less (visa.live.shading.Shading.fast)")
    add_threads(parser)
    given = parser.parse_args(arguments)
    if (given.steps is not None or given.fast) and given.look != "shaded":
        parser.error("--steps and --fast are those of --look shaded")
    if given.chunk is not None and given.look == "shaded":
        parser.error("--look shaded takes the chunks of its shader: leave --chunk away")
    if given.threads:
        torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    shading, full = None, None
    if given.look == "shaded":
        full = load_shading()
        shading = replace(full.fast() if given.fast else full, noise_levels=full.levels(given.steps))
    chunk = (given.chunk or 1) if shading is None else shading.shader.chunk_frames * shading.codec.temporal_stride
    person = Person.from_photos(given.image, resolution=given.resolution, size=given.size)
    figures = measure(person, given.look, given.size, chunk, given.frames, shading)
    if shading is not None and full is not None and shading != full:
        figures |= likeness(person, given.size, shading, full)
    settings: dict[str, Figure] = {
        "device": device_name(torch.device("cpu")),
        "commit": git_commit(),
        "load": load,
        "threads": torch.get_num_threads(),
        "look": given.look,
        "size": given.size,
        "resolution": person.resolution,
        "steps": 0 if shading is None else len(shading.noise_levels),
        "has_clean_pass": None if shading is None else shading.has_clean_pass,
        "window_frames": 0 if shading is None else shading.window.capacity,
    }
    say_figures({**settings, **figures})
    say(f"30 pictures a second: {'yes' if figures['fps'] >= 30 else 'NO'}")
    print_json({**settings, **figures}, given.json, digits=3)


if __name__ == "__main__":
    run(main)
