"""One person moved by others: `python -m visa.benchmarks.cross_reenactment [--clips people/validation ...] [--json]`.

Of each clip one photo becomes an avatar, as `visa animate` makes it, and moves as the people of the next clips do.
There is no truth, but a picture must show the person (`identity`: distance of face embeddings to the photo; and
`detection`: how often a face is found at all), not the driver (`driver`: the distance to the driver's photo), in one
piece (`holes` within the template's silhouette, `outside` far beyond it: shares of its area), without flicker
(`unrest`: second difference in time over the first). Clips with test blocks are refused. `--out` writes a sheet: the
photo, then frames, one row a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import save_image

from visa.artifacts.command_line import at_least_one
from visa.benchmarks.command import add_clips, clip_paths, command_line, print_json, run, say, say_figures
from visa.datamodules.clip import Clip
from visa.evaluation.identity import FaceIdentity, detection_rate, mean_distance
from visa.evaluation.table import format_table
from visa.evaluation.temporal import motion_energy, unrest
from visa.evaluation.turned import against_template
from visa.person import Person
from visa.runtime.stream import view_of

COLUMNS = ["identity", "driver", "detection", "holes", "outside", "unrest"]
FACES = 6  # frames of each pair in which faces are looked for
SHOWN, SHOWN_SIZE = 6, 256  # frames of a row of the sheet, and their side, px


def moved(person: Person, driving: Path, size: int, num_frames: int) -> tuple[Tensor, dict[str, float]]:
    """Pictures `[T,3,size,size]` of a person moved by a clip, and what stands against the template in them."""
    frames = torch.stack(list(person.frames(driving, size=size, num_frames=num_frames)))
    motion, _ = person.motion(driving, num_frames)
    photo = person.photos[0]
    view, bare = view_of(photo.view(), motion), person.reconstructor.bare(photo)
    with torch.no_grad():
        alpha, template = (one.render(person.body, view).alpha[0] for one in (person.avatar, bare))
    outside, holes = against_template(alpha, template)
    restless = unrest(frames).mean() / motion_energy(frames).mean().clamp_min(1e-6)
    return frames, {"outside": float(outside), "holes": float(holes), "unrest": float(restless)}


def faces_in(faces: FaceIdentity, frames: Tensor, photo: Tensor, driver: Tensor) -> dict[str, float]:
    """Distances of the faces in `frames [T,3,P,P]` to those of two photos `[3,P,P]`; NaN where none is found."""
    found = faces.embed_all(frames[torch.linspace(0, len(frames) - 1, min(FACES, len(frames))).round().long()])
    distances = [mean_distance(found, [faces.embed(one)] * len(found)) for one in (photo, driver)]
    own, other = (float("nan") if value is None else value for value in distances)
    return {"identity": own, "driver": other, "detection": detection_rate(found)}


def photo_of(person: Person) -> Tensor:
    """`[3,P,P]` as sharp as the avatar has it."""
    detail = person.avatar.detail
    return person.photos[0].image[0] if detail is None else detail.photo[0, 0]


def opened(paths: Sequence[Path], size: int) -> list[Person]:
    """The avatars of the clips' photos; ValueError for less than two clips and for those that only `test` opens."""
    if len(paths) < 2:
        raise ValueError(f"--clips names {len(paths)} clips: one person is moved by another, give two or more")
    for path in paths:
        if Clip(path).splits.test:
            raise ValueError(f"{path} has a test block, which only `test` opens: give clips without")
    people = []
    for path in paths:
        say(f"{path.stem}: fitted to its photo")
        people.append(Person.from_photos(path, num_photos=1, size=size))
    return people


def mean_of(values: Sequence[float]) -> float | None:
    """Of those that could be measured; None where none could."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, ["people/validation"])
    parser.add_argument("--drivers", type=at_least_one, default=2, help="of each person (default: %(default)s)")
    parser.add_argument("--frames", type=at_least_one, default=64, help="of each driver (default: %(default)s)")
    parser.add_argument("--size", type=at_least_one, default=512, help="px of the pictures (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="PNG to write the pictures to (default: none)")
    given = parser.parse_args(arguments)
    faces, paths = FaceIdentity(), clip_paths(given.clips)
    people = opened(paths, given.size)
    rows: dict[str, dict[str, float]] = {}
    pictures = []
    for number, person in enumerate(people):
        for step in range(1, min(given.drivers, len(people) - 1) + 1):
            other = (number + step) % len(people)
            name = f"{paths[number].stem} moved by {paths[other].stem}"
            frames, figures = moved(person, paths[other], given.size, given.frames)
            rows[name] = faces_in(faces, frames, photo_of(person), photo_of(people[other])) | figures
            say(name)
            chosen = frames[torch.linspace(0, len(frames) - 1, SHOWN).round().long()]
            row = torch.cat([photo_of(person)[None], chosen])
            pictures.append(torch.cat(list(F.interpolate(row, (SHOWN_SIZE, SHOWN_SIZE), mode="area")), dim=-1))
    say(format_table(rows, COLUMNS))
    means = {column: mean_of([row[column] for row in rows.values()]) for column in COLUMNS}
    say_figures(means)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.cat(pictures, dim=-2), given.out)
    print_json({"pairs": len(rows), **means}, given.json)


if __name__ == "__main__":
    run(main)
