"""`visa frames PHOTO --driving CLIP --out FOLDER`: the person in a video's motion as PNG pictures with alpha.

The textured avatar, without the shader. Colours are not premultiplied, as editors and game engines take them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.media import write_pictures
from visa.datamodules.own_pose import HEAD_HELP, Head
from visa.person import Person


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="visa frames", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="+", help="photo or photos of the person, a clip, or a .safetensors person")
    parser.add_argument("--driving", required=True, help="motion: a video, or a .track.npz")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--size", type=int, default=512, help="px of the pictures (default: %(default)s)")
    parser.add_argument("--head", choices=get_args(Head), default="photo", help=HEAD_HELP)
    parser.add_argument("--num_frames", type=int, help="at most so many (default: all)")
    given = parser.parse_args(arguments)
    person = Person.open(given.image, given.size)
    frames = person.frames(given.driving, given.size, given.num_frames, has_alpha=True, head=given.head)
    print(write_pictures(given.out, frames))
    return 0


if __name__ == "__main__":
    sys.exit(main())
