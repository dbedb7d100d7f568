"""`visa live PHOTO --video FILE|--camera N|--csv FILE|--lines FILE|--osc PORT`: a person moved live, in the browser.

A video or camera is looked at by MediaPipe (extra `track`), its first frames are the neutral face: look ahead, mouth
closed. `--csv` is a recording of Live Link Face, `--lines` JSON lines such as {"jawOpen": 0.3, "HeadYaw": 0.1} (`-` for
standard input), `--osc` a UDP port for `/jawOpen 0.3` or the VMC protocol (extra `live`).
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from visa.artifacts.command_line import one_line_errors
from visa.live.blendshapes import Blendshapes
from visa.live.broadcast import Broadcast
from visa.live.capture import FaceCapture
from visa.live.drive import Driver, Figures, fastest_look
from visa.live.inputs import Moment, OscReceiver, camera_moments, csv_moments, json_moments, video_moments
from visa.live.performer import LOOKS, Performer
from visa.live.record import Recorder
from visa.live.shading import load_shading
from visa.person import Person

THREADS = "of the drawing; more wait for each other where others are at work (default: %(default)s)"
RATE = 25.0  # pictures a second that `--look auto` asks of the machine


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="visa live", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="+", help="photo or photos of the person, a clip, or a .safetensors person")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", type=Path, help="drives as a camera would, in its own time")
    source.add_argument("--camera", type=int, help="number of a camera")
    source.add_argument("--csv", type=Path, help="recording of Live Link Face")
    source.add_argument("--lines", type=Path, help="file of JSON lines, or - for standard input")
    source.add_argument("--osc", type=int, help="UDP port of this machine")
    parser.add_argument("--look", choices=("auto", *LOOKS), default="auto", help="auto: textured, or splat where slow")
    parser.add_argument("--steps", type=int, help="denoising steps of --look shaded (default: the config's)")
    parser.add_argument("--fast", action="store_true", help="a shader that does less, for nearly the same pictures")
    parser.add_argument("--size", type=int, default=512, help="px of the pictures (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8081, help="of the page (default: %(default)s; 0 takes any)")
    parser.add_argument("--seconds", type=float, help="end after so long")
    parser.add_argument("--out", type=Path, help="mp4 of what was shown")
    parser.add_argument("--json", action="store_true", help="print the figures as one flat JSON object")
    parser.add_argument("--threads", type=int, choices=range(1, 257), metavar="N", default=1, help=THREADS)
    given = parser.parse_args(arguments)
    if (given.steps is not None or given.fast) and given.look != "shaded":
        parser.error("--steps and --fast are those of --look shaded")
    return given


def moments(given: argparse.Namespace, shapes: Blendshapes) -> Iterable[Moment]:
    """The source that the options name; ValueError or OSError where it cannot be had."""
    for option in ("video", "csv", "lines"):
        path = getattr(given, option)
        if path not in (None, Path("-")) and not path.is_file():
            raise ValueError(f"no file at {path}: check --{option}")
    if given.video is not None:
        return video_moments(given.video)
    if given.camera is not None:
        return camera_moments(given.camera)
    if given.csv is not None:
        return csv_moments(given.csv, shapes)
    if given.lines is not None:
        return json_moments(sys.stdin if given.lines == Path("-") else io.StringIO(given.lines.read_text()), shapes)
    return OscReceiver(given.osc, shapes)


def drive(given: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """A whole run."""
    person = Person.open(given.image, given.size)
    shapes = Blendshapes(person.body)
    source = moments(given, shapes)
    capture = FaceCapture(person.body) if given.video is not None or given.camera is not None else None
    look, geometry, note = given.look, person.resolution, ""
    if look == "auto":
        look, geometry, note = fastest_look(person, given.size, RATE, person.photos[0].body)
    shading = load_shading(num_steps=given.steps) if look == "shaded" else None
    if shading is not None and given.fast:
        shading = shading.fast()
    torch.set_num_threads(given.threads)
    page = Broadcast(given.host, given.port)
    page.said = note or f"{look}, {given.size} px, geometry {geometry} px"
    say(f"{page.address}: {page.said} (Ctrl+C ends)")
    recorder = None if given.out is None else Recorder(given.out)

    def show(picture: NDArray[np.uint8]) -> None:
        page.show(picture)
        if recorder is not None:
            recorder.show(picture)

    driver = Driver(Performer(person, look, given.size, shading, geometry), capture, show)
    try:
        figures = driver.run(source, given.seconds)
    except KeyboardInterrupt:
        driver.stop()
        figures = driver.figures
    finally:
        page.close()
        if capture is not None:
            capture.close()
        if isinstance(source, OscReceiver):
            source.close()
    if recorder is not None:
        recorder.close()
    return figures


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = parse(arguments)
    say = functools.partial(print, file=sys.stderr, flush=True)
    figures = drive(given, say)
    for name, value in figures.flat().items():
        say(f"{name:20} {value:10.1f}")
    for reason in dict.fromkeys(figures.errors):
        say(f"refused: {reason}")
    if given.json:
        print(json.dumps({name: round(value, 3) for name, value in figures.flat().items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
