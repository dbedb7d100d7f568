"""`python -m visa.tools.make_captures.sheet`: all captures, two frames a person, on the training background."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from visa.artifacts.files import atomic_path
from visa.artifacts.media import read_video

BACKGROUND = 0.5


def sheet(folder: Path, columns: int) -> Image.Image:
    """Each clip's first frame and its middle one, matted; the people of the folder `test` come last."""
    tiles = []
    for path in sorted(folder.glob("person_??.mp4")) + sorted((folder / "test").glob("person_??.mp4")):
        frames, _ = read_video(path)
        masks, _ = read_video(path.with_suffix(".mask.mp4"))
        chosen = [0, len(frames) // 2]
        matted = frames[chosen] * masks[chosen] + BACKGROUND * (1 - masks[chosen])
        tiles.append(np.concatenate(list(matted.permute(0, 2, 3, 1).numpy()), axis=1))
    if not tiles:
        raise ValueError(f"no captures in {folder}: python -m visa.tools.make_captures --out {folder}")
    tiles += [np.ones_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[first : first + columns], axis=1) for first in range(0, len(tiles), columns)]
    return Image.fromarray(np.round(np.concatenate(rows) * 255).astype(np.uint8))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m visa.tools.make_captures.sheet", description=__doc__)
    parser.add_argument("--captures", type=Path, default=Path("assets/captures"))
    parser.add_argument("--out", type=Path, default=Path("docs/captures.jpg"))
    parser.add_argument("--columns", type=int, default=6, help="people a row (default: %(default)s)")
    given = parser.parse_args()
    try:
        picture = sheet(given.captures, given.columns)
    except ValueError as error:
        parser.error(str(error))
    with atomic_path(given.out) as scratch:
        picture.save(scratch, quality=88)
    print(given.out)


if __name__ == "__main__":
    main()
