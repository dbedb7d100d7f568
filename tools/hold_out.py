"""Hold a folder's people out of training: `python -m visa.tools.hold_out FOLDER --kind validation|test --frames 48`.

Writes `NAME.splits.yaml` beside each tracked clip: its most moving block validates or is test, frame 0 is the photo,
and nothing of the clip trains. A clip that has its splits already keeps them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.datamodules.clip import Clip
from visa.datamodules.hold_out import FIRST, moving_block
from visa.datamodules.sources import clip_files


def hold_out(path: Path, kind: str, frames: int, start: int = FIRST) -> str:
    """Write the splits of one clip; a line that says what was done."""
    clip = Clip(path)
    file = clip.sidecar(".splits.yaml")
    if file.exists():
        return f"{file}: is there already, left as it is"
    if not clip.track["frame_valid"][0]:
        raise ValueError(f"{path}: nobody was tracked in frame 0, which is to be the photo: cut the video's start off")
    first, last = moving_block(clip, frames, start)
    with atomic_path(file) as scratch:
        scratch.write_text(f"{kind}: [[{first}, {last}]]\nreference: 0\ntrain: false\n")
    return f"{file}: {kind} [{first}, {last}]"


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.hold_out", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder of tracked clips, a pattern, or one clip")
    parser.add_argument("--kind", choices=("validation", "test"), required=True, help="what the block is for")
    parser.add_argument("--frames", type=int, default=48, help="of the block (default: %(default)s)")
    parser.add_argument(
        "--start", type=int, default=FIRST, help="frame before which no block begins (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    for path in clip_files(given.folder)[0]:
        print(hold_out(path, given.kind, given.frames, given.start))
    return 0


if __name__ == "__main__":
    sys.exit(main())
