"""`python -m visa.tools.make_captures --out DIR`: render clips of people who do not exist (extra `capture`)."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from visa.artifacts.arrays import read_arrays
from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.artifacts.media import write_video
from visa.tools.make_captures.anatomy import Anatomy
from visa.tools.make_captures.motion import FPS
from visa.tools.make_captures.person import draw_person
from visa.tools.make_captures.scene import Studio, require_mitsuba
from visa.tools.make_captures.stage import Stage

BODY, LANDMARKS = Path("assets/body/smplx_anny.npz"), Path("assets/body/landmarks.npz")
FRAME_QUALITY, MASK_QUALITY = 14, 16  # x264's crf
FIRST_UNSEEN = 24  # at most: sets that grow keep the people who never train
UNSEEN_LEAD = 4  # frames before the test block of a person who never trains; the photo is the first of them


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a clip depends on, besides the code.

    Attributes:
        seed: of the whole set. num_frames: T. size: side (px). samples: per pixel, a square number.
    """

    seed: int
    num_frames: int
    size: int
    samples: int

    def stamp(self, index: int) -> str:
        """One line that tells this clip from others; stored in its track."""
        return f"seed {self.seed} person {index} frames {self.num_frames} size {self.size} samples {self.samples}"


def is_done(track_file: Path, stamp: str) -> bool:
    """Whether a clip made with these settings is already there; its track is written last."""
    try:
        held = read_arrays(track_file, "track file", {"capture"})
    except (OSError, ValueError):
        return False
    return "capture" in held and str(held["capture"]) == stamp


def splits_text(num_frames: int, is_unseen: bool, validates: bool) -> str:
    """Content of NAME.splits.yaml."""
    if is_unseen:
        lead = min(UNSEEN_LEAD, num_frames - 1)
        return f"# A person who never trains.\ntest: [[{lead}, {num_frames - 1}]]\nreference: 0\n"
    if validates:
        return f"validation: [[{num_frames - max(num_frames // 4, 1)}, {num_frames - 1}]]\nreference: 0\n"
    return "validation: []\nreference: 0\n"


def numbers_of(seen: int, unseen: int) -> tuple[list[int], list[int]]:
    """Numbers of the people who train, and of those who never do; the last four before the latter validate."""
    first = min(seen, FIRST_UNSEEN)
    return [*range(first), *range(first + unseen, seen + unseen)], [*range(first, first + unseen)]


def _grey_video(masks: list[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(masks))[:, None].expand(-1, 3, -1, -1).float() / 255


def make_clip(mi: Any, anatomy: Anatomy, settings: Settings, index: int, path: Path, splits: str) -> None:
    """Render person `index` to `path` (mp4) with mask, splits and track beside it."""
    stage = Stage(draw_person(settings.seed, index), anatomy, settings.num_frames)
    studio = Studio(mi, stage, settings.size, settings.samples)
    frames, masks = [], []
    for frame in tqdm(range(settings.num_frames), desc=path.stem, unit="frame", leave=False):
        picture, mask = studio.render(frame)
        frames.append(picture)
        masks.append(mask)
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    write_video(path, video, FPS, crf=FRAME_QUALITY)
    write_video(path.with_suffix(".mask.mp4"), _grey_video(masks), FPS, crf=MASK_QUALITY)
    with atomic_path(path.with_suffix(".splits.yaml")) as scratch:
        scratch.write_text(splits)
    track = stage.track(settings.size, BODY.name) | {"capture": np.array(settings.stamp(index))}
    with atomic_path(path.with_suffix(".track.npz")) as scratch:
        np.savez_compressed(scratch, **track)


def make_captures(out: Path, settings: Settings, seen: int, unseen: int, threads: int, only: list[int] | None) -> int:
    """Render all people whose clip is not there yet; returns how many were rendered.

    Args:
        out: folder; people who never train go to its folder `test`.
        seen, unseen: how many people of each sort.
        only: numbers of the people to render; None takes all.
    """
    mi = require_mitsuba(threads)
    anatomy = Anatomy.load(BODY, LANDMARKS)
    trained, tested = numbers_of(seen, unseen)
    # The unseen first: a set that was cut short can be tested on already.
    numbers = [*tested, *trained] if only is None else only
    rendered = 0
    for index in tqdm(numbers, desc="people", unit="person"):
        is_unseen = index in tested
        path = out / ("test" if is_unseen else "") / f"person_{index:02d}.mp4"
        if is_done(path.with_suffix(".track.npz"), settings.stamp(index)):
            continue
        validates = tested[0] - 4 <= index < tested[0] if tested else index >= seen - 4
        text = splits_text(settings.num_frames, is_unseen, validates)
        make_clip(mi, anatomy, settings, index, path, text)
        rendered += 1
    return rendered


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m visa.tools.make_captures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the clips")
    parser.add_argument("--seen", type=int, default=48, help="people who train (default: %(default)s)")
    parser.add_argument("--unseen", type=int, default=4, help="people who only test (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=48, help="frames a clip, 25 a second (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures, px (default: %(default)s)")
    parser.add_argument(
        "--samples", type=int, default=16, help="light samples a pixel, a square (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the whole set (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of the renderer (default: %(default)s)")
    parser.add_argument("--only", type=int, nargs="+", help="render these people alone, by number")
    given = parser.parse_args(arguments)
    settings = Settings(given.seed, given.frames, given.size, given.samples)
    rendered = make_captures(given.out, settings, given.seen, given.unseen, given.threads, given.only)
    print(f"{rendered} people rendered into {given.out}, the others were there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
