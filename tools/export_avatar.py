"""Photos -> avatar -> file: `python -m visa.tools.export_avatar --image PHOTO.png --out avatar.ply`.

Several photos (`--image A.png B.png`) or frames of a clip (`--image CLIP.mp4 --photos 8`) give one avatar of them all.
`.ply` and `.spz` open in splat viewers (canonical T-pose, or as the photo shows the person); `.safetensors` keeps the
whole avatar with its features, to pose and render again (`runtime.avatar_files.load_avatar`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from visa.artifacts.command_line import one_line_errors
from visa.datamodules.clip import Clip
from visa.datamodules.retarget import open_photos
from visa.datamodules.windows import WindowReader
from visa.networks.avatar import Avatar
from visa.networks.body import BodyModel
from visa.networks.fit import FitOptions, fit_avatar
from visa.networks.photo import Photo
from visa.runtime.avatar_files import save_avatar
from visa.runtime.photos import photo_of
from visa.runtime.shipped import BACKGROUND, BODY, WEIGHTS, load_reconstructor
from visa.runtime.splat_files import write_splat
from visa.tools.track.on_demand import tracked

SUFFIXES = (".ply", ".spz", ".safetensors")


def read_photo(path: str | Path, body_model: str, resolution: int) -> Photo:
    """A photo with its track, cropped and resized as the networks read it (tracked now if it has no track yet)."""
    clip = Clip(tracked(path, body_model, "--image")).load()
    return photo_of(WindowReader(BACKGROUND).read(clip, np.zeros(1, dtype=np.int64), 0, resolution))


def read_photos(
    images: list[str], num_photos: int | None, body_model: str, body: BodyModel, resolution: int
) -> list[Photo]:
    """Photos, or frames of one clip, as `read_photo` reads them; see `datamodules.retarget.open_photos`."""
    reader = WindowReader(BACKGROUND)
    return [
        photo_of(reader.read(clip, np.asarray([frame]), frame, resolution, is_cleaned=True))
        for clip, frame in open_photos([tracked(image, body_model, "--image") for image in images], num_photos, body)
    ]


@torch.no_grad()
def export(avatar: Avatar, body: BodyModel, photo: Photo, out: Path, pose: str | None, body_name: str) -> Path:
    """Write the avatar in the format of the suffix; splat files in the T-pose, or as in the photo (`pose` "photo")."""
    if out.suffix == ".safetensors":
        return save_avatar(out, avatar, body, body_name)
    gaussians = avatar.canonical()
    if pose == "photo":
        posed = avatar.pose(body, photo.view().body)
        gaussians = posed.map(lambda value: value[:, 0])
    return write_splat(out, gaussians.map(lambda value: value[0]))


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.export_avatar",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--image", nargs="+", required=True, help="photo or photos of the person, or one clip; tracks beside them"
    )
    parser.add_argument("--photos", type=int, default=None, help="frames of the clip to take as photos (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .ply, .spz or .safetensors")
    parser.add_argument(
        "--pose", choices=("canonical", "photo"), default=None, help="of .ply and .spz (default: canonical)"
    )
    parser.add_argument("--weights", default=WEIGHTS, help="reconstruction weights (default: %(default)s)")
    parser.add_argument("--body", default=BODY, help="SMPL-X npz file (default: %(default)s)")
    parser.add_argument(
        "--fit_steps",
        type=int,
        default=FitOptions.steps,
        help="of the fit to the photos; 0 for none, with one photo (default: %(default)s)",
    )
    parser.add_argument(
        "--resolution", type=int, default=256, help="px at which the photo is read (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    if given.out.suffix not in SUFFIXES:
        raise ValueError(f"{given.out}: give --out a name that ends in one of {', '.join(SUFFIXES)}")
    if given.out.suffix == ".safetensors" and given.pose is not None:
        raise ValueError(f"{given.out}: a .safetensors avatar takes any pose later: leave --pose away")
    reconstructor = load_reconstructor(given.body, given.weights)
    photo, *further = read_photos(given.image, given.photos, given.body, reconstructor.body, given.resolution)
    with torch.no_grad():
        avatar, _ = reconstructor(photo)
    options = FitOptions(steps=given.fit_steps)
    avatar = fit_avatar(reconstructor, avatar, photo, options, sys.stderr.isatty(), further)
    export(avatar, reconstructor.body, photo, given.out, given.pose, Path(given.body).name)
    size = given.out.stat().st_size
    print(f"{avatar.canonical().means.shape[1]} Gaussians, {size / 1e3:.0f} kB", file=sys.stderr)
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
