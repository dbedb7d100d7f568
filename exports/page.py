"""`visa page PHOTO --driving CLIP --out NAME.html`: a moving avatar as one web page, without a server or a network.

The Gaussians alone, by a small WebGL 2 renderer in the page itself, as the rasterizer draws them (`constants.py`): to
orbit while they move. Centres lie on a grid of 16 bits, turns in 8; sizes are those of the first frame.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.files import atomic_path
from visa.datamodules.own_pose import HEAD_HELP, Head
from visa.networks.body import BodyParams
from visa.networks.rasterizer.constants import ALPHA_CAP, ALPHA_THRESHOLD, EPS_2D
from visa.person import Person

FAINTEST = 0.02  # opacity below which a Gaussian is left out
SIZE = 768  # px of the canvas


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


@torch.no_grad()
def page_of(person: Person, motion: BodyParams, rate: float, title: str, size: int = SIZE) -> str:
    """The page's text.

    Args:
        person: whose Gaussians are shown.
        motion: poses `[F]` in the photo's world.
        rate: of them a second.
        title: of the page.
        size: px of the canvas. Gaussians are as wide in it as in the picture that they were fitted in.
    """
    posed = person.avatar.pose(person.body, motion.map(lambda value: value[None])).map(lambda value: value[0])
    kept = posed.opacities[0] > FAINTEST
    means, quats = posed.means[:, kept], torch.nn.functional.normalize(posed.quats[:, kept], dim=-1)
    low = means.amin(dim=(0, 1))
    step = (means.amax(dim=(0, 1)) - low).clamp_min(1e-6) / 65535
    color = torch.cat([posed.colors[0, kept], posed.opacities[0, kept, None]], dim=-1).clamp(0, 1)
    photo = person.photos[0]
    pinhole = photo.intrinsics[0] / person.resolution

    def listed(values: Tensor) -> Any:
        return [round(v, 9) for v in values.tolist()] if values.ndim == 1 else [listed(row) for row in values]

    about = {
        "count": int(kept.sum()),
        "frames": len(means),
        "rate": rate,
        "low": listed(low),
        "step": step.tolist(),
        "camera": listed(photo.world_to_camera[0, :3]),
        "pinhole": listed(torch.stack([pinhole[0, 0], pinhole[1, 1], pinhole[0, 2], pinhole[1, 2]])),
        "middle": listed(means[0].median(dim=0).values),
        "centers": _packed(((means - low) / step).round().numpy().astype("<u2")),
        "turns": _packed((quats * 127).round().numpy().astype("i1")),
        "scales": _packed(posed.scales[0, kept].numpy().astype("<f4")),
        "colors": _packed((color * 255).round().numpy().astype("u1")),
    }
    background = ", ".join(str(round(255 * value)) for value in person.avatar.background[0].tolist())
    text = Path(__file__).with_name("page.html").read_text()
    fills = {
        "BACKGROUND": background,
        "SIZE": str(size),
        "BLUR": f"{EPS_2D * (size / person.resolution) ** 2:.6f}",
        "ALPHA_CAP": f"{ALPHA_CAP:.6f}",
        "ALPHA_THRESHOLD": f"{ALPHA_THRESHOLD:.6f}",
        "TITLE": html.escape(title),
    }
    for name, value in fills.items():
        text = text.replace(f"@{name}@", value)
    return text.replace("@ABOUT@", json.dumps(about))


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="visa page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="+", help="photo or photos of the person, a clip, or a .safetensors person")
    parser.add_argument("--driving", required=True, help="motion: a video, or a .track.npz")
    parser.add_argument("--out", type=Path, required=True, help="page to write, .html")
    parser.add_argument("--head", choices=get_args(Head), default="photo", help=HEAD_HELP)
    parser.add_argument("--num_frames", type=int, default=100, help="at most so many (default: %(default)s)")
    parser.add_argument("--every", type=int, default=2, help="keep every n-th of them (default: %(default)s)")
    given = parser.parse_args(arguments)
    if min(given.num_frames, given.every) < 1:
        raise ValueError("--num_frames and --every are counts: give 1 or more")
    person = Person.open(given.image)
    motion, rate = person.motion(given.driving, given.num_frames, given.head)
    text = page_of(person, motion[:: given.every], rate / given.every, Path(given.image[0]).stem)
    with atomic_path(given.out) as scratch:
        scratch.write_text(text)
    print(f"{given.out} ({given.out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
