"""A head that turns: `python -m visa.benchmarks.turned_heads [--clips people/validation ...] [--json]`.

Of each clip the frame whose head looks farthest to the left is the photo, and the one that looks farthest to the right
is what the avatar should look like, and the other way round: what the photo saw at a slant or not at all is in front.
Test blocks are not read. `--out` writes the pictures: photo, splat, textured splat, truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import save_image

from visa.benchmarks.command import add_clips, clip_paths, command_line, print_json, run, say
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.evaluation.table import format_table
from visa.losses.perceptual import PerceptualDistance
from visa.networks.fit import FitOptions, fitted_avatar
from visa.networks.joints import HEAD, NECK, SPINE
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor

CLIPS = ["assets/clips/webcam_man.mp4"]
SIZE = 128  # px of photos and frames
TO_HEAD = (*SPINE, NECK, HEAD)  # joints from the root


def head_yaw(clip: Clip) -> NDArray[np.float64]:
    """`[T]` rad: the head's turn about the upright axis, as the sum of its joints'; NaN in frames that are not read."""
    pose = clip.track["body_pose"].reshape(clip.num_frames, -1, 3)
    yaw = clip.track["global_orient"][:, 1] + pose[:, [joint - 1 for joint in TO_HEAD], 1].sum(axis=1)
    is_read = replace(clip.splits, validation=[]).free_mask(clip.num_frames) & clip.track["frame_valid"]
    return np.where(is_read, yaw, np.nan)


@torch.no_grad()
def turned(
    reconstructor: GaussianReconstructor,
    clip: Clip,
    pair: tuple[int, int],
    options: FitOptions,
    distance: PerceptualDistance,
) -> tuple[float, float, Tensor]:
    """PSNR in dB, perceptual distance and pictures `[3,SIZE,4 SIZE]` of frame `pair[1]`; `pair[0]` is the photo."""
    batch = WindowReader(BACKGROUND).read(clip, np.asarray([pair[1]]), pair[0], SIZE)
    maps = fitted_avatar(reconstructor, photo_of(batch), options).render(reconstructor.body, batch.view())
    drawn, truth = maps.textured[0].clamp(0, 1), batch.frames[0]
    row = torch.cat([batch.reference[0], maps.rgb[0, 0].clamp(0, 1), drawn[0], truth[0]], dim=-1)
    return float(psnr(drawn, truth).mean()), float(distance(drawn, truth).mean()), row


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument("--steps", type=int, default=FitOptions.steps, help="of the fit (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="PNG to write the pictures to (default: none)")
    given = parser.parse_args(arguments)
    reconstructor, distance = load_reconstructor(BODY, WEIGHTS), PerceptualDistance("vgg")
    rows: dict[str, dict[str, float]] = {}
    pictures = []
    for path in clip_paths(given.clips):
        clip = Clip(path)
        yaw = head_yaw(clip)
        if np.isnan(yaw).all():
            raise ValueError(f"{path} has no valid frame outside of its test blocks: give another clip")
        ends = int(np.nanargmax(yaw)), int(np.nanargmin(yaw))
        for name, pair in ((f"{path.stem} to the right", ends), (f"{path.stem} to the left", ends[::-1])):
            found, far, row = turned(reconstructor, clip, pair, FitOptions(steps=given.steps), distance)
            degrees = math.degrees(yaw[ends[0]] - yaw[ends[1]])
            rows[name] = {"degrees": degrees, "psnr": found, "perceptual": far}
            pictures.append(row)
    say(format_table(rows, ["degrees", "psnr", "perceptual"]))
    means = {key: float(np.mean([row[key] for row in rows.values()])) for key in ("degrees", "psnr", "perceptual")}
    say(f"mean: {means['psnr']:.2f} dB, {means['perceptual']:.4f}")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.cat(pictures, dim=-2), given.out)
    print_json({"views": len(rows), **means}, given.json)


if __name__ == "__main__":
    run(main)
