"""Speed of the tracker: `python -m visa.benchmarks.tracker [--clip FILE] [--frames N] [--json]`.

The first frames of a video are tracked and refined. CPU seconds a frame of each step, which other programs beside this
one change less than the clock's, and the frames a second that one core tracks without and with the refinement.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from visa.benchmarks.command import command_line, print_json, run, say
from visa.datamodules.clip import Clip
from visa.evaluation.table import format_table
from visa.networks.body import BodyModel
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor
from visa.tools.track.correspond import DEFAULT_LANDMARKS, Landmarks
from visa.tools.track.detect import detect, keep_longest_shot
from visa.tools.track.fit import fit
from visa.tools.track.read import read_frames, timing
from visa.tools.track.refine import refine_clip
from visa.tools.track.report import report_of
from visa.tools.track.write import VideoWriter, write_clip

CLIP = Path("assets/clips/webcam_man.mp4")
MOST_THREADS = 1  # figures are of one core


class Stopwatch:
    """A progress bar's stand-in that adds up the CPU seconds of each loop by its title."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, items: Iterable[Any], desc: str = "", **_: Any) -> Iterator[Any]:
        begin = time.process_time()
        yield from items
        self.seconds[desc] = self.seconds.get(desc, 0.0) + time.process_time() - begin


def shorten(source: Path, target: Path, count: int) -> int:
    """Write the first `count` frames of a video; returns how many there were."""
    frames = list(islice(read_frames(source), count))
    height, width = frames[0].shape[:2]
    writer = VideoWriter(target, timing(source).rate, width, height, crf=14)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return len(frames)


def measure(clip: Path, num_frames: int) -> dict[str, float]:
    """CPU seconds a frame of each step, and frames a second in all."""
    body, landmarks = BodyModel.from_file(BODY), Landmarks.load(DEFAULT_LANDMARKS)
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.mp4"
        count = shorten(clip, source, num_frames)
        begin = time.process_time()
        detections = keep_longest_shot(detect(source, watch))
        track = fit(detections, body, landmarks, progress=watch, source=source)
        report = report_of(detections, track)
        paths = write_clip(source, Path(folder) / "out", detections, track, report, body, Path(BODY).name, watch)
        tracked = time.process_time() - begin
        refine_clip(Clip(paths[0]), reconstructor, progress=watch)
        refined = time.process_time() - begin
    figures = {f"{title.replace(' ', '_')}_s_per_frame": value / count for title, value in watch.seconds.items()}
    return figures | {"frames": count, "track_fps": count / tracked, "track_and_refine_fps": count / refined}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--clip", type=Path, default=CLIP, help="video of a person (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=100, help="how many of its frames (default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.frames < 2:
        parser.error("--frames must be at least 2: one frame has no motion")
    torch.set_num_threads(MOST_THREADS)
    figures = measure(given.clip, given.frames)
    say(format_table({"one core": figures}, list(figures)))
    print_json(figures, given.json)


if __name__ == "__main__":
    run(main)
