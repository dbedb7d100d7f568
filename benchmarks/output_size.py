"""Pictures larger than their geometry: `python -m visa.benchmarks.output_size [--clips people/validation] [--json]`.

Each clip's person is reconstructed and fitted at each of `--sizes`, moved through the clip's held-out block (as in
`benchmarks.fit`), drawn at that size and shown at the output's: the photo is read at the output's size
(`networks.detail`). `bicubic` enlarges the picture of the first of the sizes instead. PSNR (dB) and perceptual distance
(`vgg`) to the true frames, of the whole frame and of squares around the face, and milliseconds a frame from a pose to
the picture.
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
from visa.evaluation.regions import face_points, face_squares
from visa.evaluation.table import format_table
from visa.networks.avatar import Avatar
from visa.networks.detail import detail_of, enlarged, with_detail
from visa.networks.fit import fit_avatar
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.splat_maps import SplatMaps
from visa.networks.texture import Detail
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor

CHUNK = 4  # frames at a time
FACE = 192  # px of a face's square


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


def measure(
    reconstructor: GaussianReconstructor, path: Path, sizes: Sequence[int], output: int, stride: int
) -> dict[str, float]:
    """All figures of one clip."""
    large = read(path, output, stride)
    pictures, truth = [(large.reference, large.reference_mask)], large.frames[0]
    points = face_points(reconstructor.body, large.view())[0]
    figures: dict[str, float] = {}
    for size in sizes:
        small = read(path, size, stride)
        avatar = with_detail(reconstructor, fitted(reconstructor, small), photo_of(small), pictures)
        detail = detail_of(avatar)

        def composed(maps: SplatMaps, detail: Detail = detail) -> Tensor:
            return enlarged(maps, detail, output).textured

        def bicubic(maps: SplatMaps) -> Tensor:
            return F.interpolate(maps.textured[0], (output, output), mode="bicubic")[None]

        for name, finish in {"bicubic": bicubic, f"{size}px": composed}.items():
            if name == "bicubic" and size != sizes[0]:
                continue
            frames, figures[f"{name}_ms"] = shown(reconstructor, avatar, small, finish)
            figures[f"{name}_psnr"], figures[f"{name}_perceptual"] = compare(frames, truth)
            _, figures[f"{name}_face"] = compare(*(face_squares(one, points, FACE) for one in (frames, truth)))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[128, 256], help="px that geometry is drawn at (default: 128 256)"
    )
    parser.add_argument("--output", type=int, default=512, help="px of the pictures (default: %(default)s)")
    add_stride(parser, 6)
    given = parser.parse_args(arguments)
    if given.output < max(given.sizes):
        parser.error("--output must be at least as large as each of --sizes")
    reconstructor = load_reconstructor(BODY, WEIGHTS)
    rows = {}
    for path in clip_paths(given.clips):
        say(path.stem)
        rows[path.stem] = measure(reconstructor, path, given.sizes, given.output, given.stride)
    columns = list(next(iter(rows.values())))
    means = {column: statistics.fmean(row[column] for row in rows.values()) for column in columns}
    for name in ("bicubic", *(f"{size}px" for size in given.sizes)):
        own = [column for column in columns if column.startswith(f"{name}_")]
        say(format_table({**rows, "mean": means}, own))
    gain = 1 - means[f"{given.sizes[-1]}px_perceptual"] / means["bicubic_perceptual"]
    say(f"{given.sizes[-1]} px composed is {gain:.0%} nearer than {given.sizes[0]} px enlarged")
    print_json({"clips": len(rows), "gain": gain, **means}, given.json)


if __name__ == "__main__":
    run(main)
