"""What removing the neck band changes: errors in the band, around it and elsewhere, and a picture.

`python -m visa.tools.compare_neck --with_neck A.safetensors --neck_removed B.safetensors [--figure docs/neck.jpg]`
reads two reconstructions that were trained alike but for `--model.remove_neck false` and `true`, splats frames that
neither trained on from the clip's reference frame, and compares both with the frames. The frames are the gaps beside
the test blocks, not the validation block: in the shipped clip a hand hides the neck there. The band is where the
vertices that the neck-removed template leaves out are seen; `around` reaches a sixteenth of the picture beyond it. The
rows `template` are the bare templates with the photo's colours, without any learning.

With `--with_neck_teacher C.safetensors --neck_removed_teacher D.safetensors`, teachers that were trained alike on A and
on B, the rows `painted` are theirs, in one step and windows of nine frames; give `--stride 1`, that these follow each
other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.artifacts.media import sheet, to_uint8
from visa.artifacts.weights import load_weights
from visa.cli import BuildOnly
from visa.cli import main as build
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.lightning_modules.shading import TeacherSampling
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.template import build_template
from visa.runtime.photos import photo_of
from visa.runtime.shipped import COMMANDS, build_reconstructor

BODY = "assets/body/smplx_anny.npz"
CLIP = "assets/clips/webcam_man.mp4"
BACKGROUND = (0.5, 0.5, 0.5)
SPREAD = 0.008  # m: closes the surface between the vertices


def read_frames(path: str, sidecars: str | None, size: int, stride: int) -> VideoBatch:
    """Every `stride`-th frame of a clip that neither trains nor lies in a test or validation block, as one window."""
    clip = Clip(path, sidecars).load()
    is_free = clip.track["frame_valid"].copy()
    is_free[clip.training_frames()] = False
    for first, last in [*clip.splits.validation, *clip.splits.test]:
        is_free[first : last + 1] = False
    numbers = np.flatnonzero(is_free)[::stride]
    if len(numbers) == 0:
        raise ValueError(f"{path}: its splits.yaml leaves no gap beside the test blocks: set `gap`")
    return WindowReader(BACKGROUND).read(clip, numbers, clip.reference_frame(), size)


def band_region(body: BodyModel, batch: VideoBatch) -> Tensor:
    """`[T,1,H,W]` 1 where the neck band is what a camera sees of the whole template, else 0."""
    ids = build_template(body, remove_neck=False).vertex_ids
    is_band = torch.isin(ids, build_template(body, remove_neck=True).neck_ids).to(body.v_template.dtype)
    rest = body.rest_vertices(batch.reference_body.betas, torch.zeros_like(batch.reference_body.expression), ids)
    quats = F.one_hot(torch.zeros(rest.shape[:2], dtype=torch.long), 4).to(rest.dtype)
    opaque = torch.full_like(rest[..., 0], 0.95)
    marked = is_band[None, :, None].expand_as(rest)
    template = Gaussians(rest, quats, torch.full_like(rest, SPREAD), opaque, marked, rest[..., :0])
    avatar = Avatar(template, batch.reference_body.betas, ids, torch.zeros_like(batch.background))
    maps = avatar.render(body, batch.view())
    return (maps.rgb[0, :, :1] > 0.5).to(rest.dtype)


def draw(weights: str, remove_neck: bool, batch: VideoBatch, feature_channels: int) -> dict[str, Tensor]:
    """`[T,3,H,W]` splats of the trained reconstruction and of its bare template.

    Without loose Gaussians, which would fill the hole with the photo's neck.
    """
    reconstructor = build_reconstructor(BODY, remove_neck, feature_channels, ReconstructorOptions(use_loose=False))
    load_weights(reconstructor, weights, f"{COMMANDS['reconstruction']} --model.remove_neck {str(remove_neck).lower()}")
    label = "neck removed" if remove_neck else "with neck"
    pictures = {}
    for name, use_heads in (("template", False), ("trained", True)):
        avatar, _ = reconstructor(photo_of(batch), use_heads)
        pictures[f"{name}, {label}"] = avatar.render(reconstructor.body, batch.view()).rgb[0].clamp(0, 1)
    return pictures


def paint(teacher: str, weights: str, remove_neck: bool, batch: VideoBatch) -> dict[str, Tensor]:
    """`[T,3,H,W]` frames of the teacher that was trained on the reconstruction `weights`, in one step."""
    options = {"weights": teacher, "reconstruction_weights": weights, "remove_neck": str(remove_neck).lower()}
    arguments = [part for name, value in options.items() for part in (f"--model.init_args.{name}", value)]
    stage = build(["validate", "-c", "configs/teacher.yaml", *arguments], cli=BuildOnly).model.eval()
    frames = stage.paint_teacher(stage.shader, batch, TeacherSampling(1, stage.test_window, stage.shift))
    return {f"painted, {'neck removed' if remove_neck else 'with neck'}": frames.clamp(0, 1)}


def errors(picture: Tensor, truth: Tensor, regions: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute error (of values in [0,1]) and PSNR (dB) by region."""
    result = {}
    for name, region in regions.items():
        weight = region.expand_as(truth)
        total = weight.sum().clamp_min(1)
        result[f"{name}_l1"] = float(((picture - truth).abs() * weight).sum() / total)
        result[f"{name}_psnr"] = float(-10 * torch.log10(((picture - truth).square() * weight).sum() / total))
    return result


def write_figure(path: Path, truth: Tensor, band: Tensor, pictures: dict[str, Tensor], columns: int = 4) -> None:
    """Some frames, the band tinted in the first row, as JPEG or PNG by the suffix."""
    chosen = torch.linspace(0, len(truth) - 1, columns).round().long()
    tinted = truth * (1 - 0.5 * band) + 0.5 * band * truth.new_tensor([1.0, 0.1, 0.1]).view(1, 3, 1, 1)
    rows = {"frame and band": tinted[chosen]} | {name: value[chosen] for name, value in pictures.items()}
    larger = {name: F.interpolate(value, scale_factor=1.5, mode="bicubic") for name, value in rows.items()}
    with atomic_path(path) as scratch:
        Image.fromarray(to_uint8(sheet(larger))).save(scratch, quality=88)


@one_line_errors
@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.compare_neck",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--with_neck", required=True, help="weights trained with --model.remove_neck false")
    parser.add_argument("--neck_removed", required=True, help="weights trained with --model.remove_neck true")
    parser.add_argument("--with_neck_teacher", help="a teacher trained on the first")
    parser.add_argument("--neck_removed_teacher", help="a teacher trained on the second")
    parser.add_argument("--clip", default=CLIP, help="default: %(default)s")
    parser.add_argument("--sidecars", default=None, help="folder of the clip's track, if not beside it")
    parser.add_argument("--size", type=int, default=128, help="px")
    parser.add_argument("--stride", type=int, default=8, help="take every n-th frame")
    parser.add_argument("--feature_channels", type=int, default=16)
    parser.add_argument("--figure", type=Path, default=None, help="picture to write")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on standard output")
    given = parser.parse_args(arguments)
    batch = read_frames(given.clip, given.sidecars, given.size, given.stride)
    pictures = draw(given.with_neck, False, batch, given.feature_channels)
    pictures |= draw(given.neck_removed, True, batch, given.feature_channels)
    if given.with_neck_teacher is not None:
        pictures |= paint(given.with_neck_teacher, given.with_neck, False, batch)
    if given.neck_removed_teacher is not None:
        pictures |= paint(given.neck_removed_teacher, given.neck_removed, True, batch)
    band = band_region(BodyModel.from_file(BODY), batch)
    reach = 2 * (given.size // 16) + 1
    near = F.max_pool2d(band, reach, stride=1, padding=reach // 2)
    regions = {"band": band, "around": near - band, "elsewhere": 1 - near}
    flat: dict[str, float | int] = {"frames": len(band), "band_share": float(band.mean())}
    print(f"{'':24}" + "".join(f"{name + ' L1':>14}{'dB':>8}" for name in regions), file=sys.stderr)
    for name, picture in pictures.items():
        row = errors(picture, batch.frames[0], regions)
        flat |= {f"{name.replace(', ', '_').replace(' ', '_')}_{key}": round(value, 5) for key, value in row.items()}
        cells = (f"{row[f'{key}_l1']:14.4f}{row[f'{key}_psnr']:8.2f}" for key in regions)
        print(f"{name:24}" + "".join(cells), file=sys.stderr)
    if given.figure is not None:
        write_figure(given.figure, batch.frames[0], band, pictures)
        print(given.figure, file=sys.stderr)
    if given.json:
        print(json.dumps(flat))
    return 0


if __name__ == "__main__":
    sys.exit(main())
