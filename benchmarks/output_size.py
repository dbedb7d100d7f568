"""Pictures larger than the shader's: `python -m visa.benchmarks.output_size [--clips people/validation ...] [--json]`.

Each clip's person is reconstructed and fitted at the shader's size, moved through the clip's held-out block (as in
`benchmarks.fit`), and shown at the output's: `bicubic` enlarges the small picture, `composed` reads the photo at the
output's size (`networks.detail`), `drawn` is an avatar made and drawn at that size. PSNR (dB) and perceptual distance
(`vgg`) to the true frames of that size, and milliseconds a frame from a pose to the picture.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.benchmarks.command import add_clips, add_stride, clip_paths, command_line, print_json, run, say
from visa.benchmarks.fit import CLIPS, FIT, compare, read
from visa.datamodules.batch import VideoBatch
from visa.evaluation.table import format_table
from visa.networks.avatar import Avatar
from visa.networks.detail import enlarged, with_detail
from visa.networks.fit import fit_avatar
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import SplatMaps
from visa.runtime.conditioner import photo_of
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor

CHUNK = 4  # frames at a time


def fitted(reconstructor: GaussianReconstructor, batch: VideoBatch) -> Avatar:
    """The avatar of the batch's photo."""
    photo = photo_of(batch)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    return fit_avatar(reconstructor, avatar, photo, FIT)


@torch.no_grad()
def shown(
    reconstructor: GaussianReconstructor, avatar: Avatar, batch: VideoBatch, finish: Callable[[SplatMaps], Tensor]
) -> tuple[Tensor, float]:
    """Frames `[T,3,P,P]` of the batch's motion, and milliseconds of each."""
    frames = []
    start = time.perf_counter()
    for first in range(0, batch.frames.shape[1], CHUNK):
        part = batch.cut(slice(first, first + CHUNK))
        maps = avatar.render(reconstructor.body, part.view())
        frames.append(finish(maps)[0])
    return torch.cat(frames), 1000 * (time.perf_counter() - start) / batch.frames.shape[1]


def measure(reconstructor: GaussianReconstructor, path: Path, size: int, output: int, stride: int) -> dict[str, float]:
    """All figures of one clip."""
    small, large = read(path, size, stride), read(path, output, stride)
    pictures = [(large.reference, large.reference_mask)]
    avatar = with_detail(reconstructor, fitted(reconstructor, small), photo_of(small), pictures)
    detail = avatar.detail
    assert detail is not None

    def bicubic(maps: SplatMaps) -> Tensor:
        return F.interpolate(maps.textured[0], (output, output), mode="bicubic")[None]

    whole = fitted(reconstructor, large)
    rows = {
        "bicubic": shown(reconstructor, avatar, small, bicubic),
        "composed": shown(reconstructor, avatar, small, lambda maps: enlarged(maps, detail, output).textured),
        "drawn": shown(reconstructor, whole, large, lambda maps: maps.textured),
    }
    figures: dict[str, float] = {}
    for name, (frames, milliseconds) in rows.items():
        figures[f"{name}_psnr"], figures[f"{name}_perceptual"] = compare(frames, large.frames[0])
        figures[f"{name}_ms"] = milliseconds
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument("--size", type=int, default=128, help="px that geometry is drawn at (default: %(default)s)")
    parser.add_argument("--output", type=int, default=384, help="px of the pictures (default: %(default)s)")
    add_stride(parser, 6)
    given = parser.parse_args(arguments)
    if given.output < given.size:
        parser.error("--output must be at least --size")
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    rows = {}
    for path in clip_paths(given.clips):
        say(path.stem)
        rows[path.stem] = measure(reconstructor, path, given.size, given.output, given.stride)
    columns = list(next(iter(rows.values())))
    means = {column: statistics.fmean(row[column] for row in rows.values()) for column in columns}
    say(format_table({**rows, "mean": means}, columns))
    gain = 1 - means["composed_perceptual"] / means["bicubic_perceptual"]
    say(f"composed is {gain:.0%} nearer than bicubic")
    print_json({"clips": len(rows), "gain": gain, **means}, given.json)


if __name__ == "__main__":
    run(main)
