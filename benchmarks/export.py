"""How sharp an exported avatar is: `python -m visa.benchmarks.export --image PHOTO [--resolution 384] [--json]`.

The avatar is fitted, written as `.ply` and `.spz` in the photo's own pose, read again and drawn in the photo's camera
by the reference renderer in plain PyTorch (`networks.rasterizer.reference`), not by the one of the fit. Compared with
the photo: PSNR and ST-LPIPS (vgg). `coarse` is the same without surface Gaussians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from visa.benchmarks.command import command_line, print_json, run, say_figures
from visa.evaluation.image import psnr
from visa.evaluation.perceptual import metric_network
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.gaussians import Gaussians
from visa.networks.photo import Photo
from visa.networks.rasterizer.reference import rasterize_tiled
from visa.networks.reconstructor import GaussianReconstructor
from visa.runtime.shipped import BODY, WEIGHTS, load_reconstructor
from visa.runtime.splat_files import read_splat
from visa.tools.export_avatar import export, read_photo

NEAR = 0.01  # m


@torch.no_grad()
def draw_file(path: Path, photo: Photo) -> Tensor:
    """A splat file of one person in the photo's pose, drawn by the reference renderer as the photo: `[1,3,H,W]`."""
    read = read_splat(path)
    held = Gaussians(**{f.name: getattr(read, f.name)[None] for f in fields(Gaussians)})
    height, width = photo.image.shape[-2:]
    image, alpha = rasterize_tiled(
        held.means, held.quats, held.scales, held.opacities, held.colors, photo.intrinsics, photo.world_to_camera,
        width, height, NEAR,
    )  # fmt: skip
    return (image + (1 - alpha) * photo.background[:, None, None]).permute(0, 3, 1, 2).clamp(0, 1)


def measure(reconstructor: GaussianReconstructor, photo: Photo, fit: FitOptions, folder: Path) -> dict[str, float]:
    """Figures of one avatar, its files written into `folder`."""
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    start = time.perf_counter()
    avatar = fit_avatar(reconstructor, avatar, photo, fit)
    result = {"gaussians": float(avatar.canonical().means.shape[1]), "fit_s": time.perf_counter() - start}
    network = metric_network("stlpips", photo.image.device)
    for suffix in ("ply", "spz"):
        path = export(avatar, reconstructor.body, photo, folder / f"avatar.{suffix}", "photo", Path(BODY).name)
        drawn = draw_file(path, photo)
        with torch.no_grad():
            distance = float(network(drawn, photo.image))
        result |= {f"{suffix}_psnr": float(psnr(drawn, photo.image)), f"{suffix}_perceptual": distance}
        result[f"{suffix}_kb"] = path.stat().st_size / 1e3
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--image", default="assets/photos/astronaut.png", help="photo with its track beside it")
    parser.add_argument("--resolution", type=int, default=384, help="px, a multiple of 4")
    parser.add_argument("--fit_steps", type=int, default=FitOptions.steps, help="of the fit to the photo")
    given = parser.parse_args(arguments)
    if given.resolution % 4:
        parser.error(f"--resolution {given.resolution}: give a multiple of 4, the reference renderer's tile")
    photo, flat = read_photo(given.image, BODY, given.resolution), {"resolution_px": float(given.resolution)}
    with tempfile.TemporaryDirectory() as folder:
        for name, pixels in (("coarse", 0.0), ("default", None)):
            reconstructor = load_reconstructor(BODY, WEIGHTS)
            reconstructor.options.pixels_per_gaussian = pixels
            figures = measure(reconstructor, photo, FitOptions(steps=given.fit_steps), Path(folder))
            flat |= {f"{name}_{key}": value for key, value in figures.items()}
    say_figures(flat)
    print_json(flat, given.json)


if __name__ == "__main__":
    run(main)
