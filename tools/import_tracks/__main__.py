"""`python -m visa.tools.import_tracks FORMAT INPUT --out DIR`: other tools' tracks and motion -> NAME.track.npz.

FORMAT is `ehm` (EHM-Tracker of GUAVA), `smplerx` (SMPLer-X and OSX-like npz) or `amass` (motion to drive with).
docs/import_tracks.md says what each field becomes, and what is lost.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visa.artifacts.command_line import one_line_errors
from visa.networks.body import BodyModel
from visa.tools.import_tracks.amass import import_amass
from visa.tools.import_tracks.ehm import import_ehm
from visa.tools.import_tracks.smplerx import import_smplerx
from visa.tools.import_tracks.track import Imported, has_smplx_space, track_arrays, write_track

BODY = Path("assets/body/smplx_anny.npz")


def video_facts(path: Path) -> tuple[tuple[int, int], int, float]:
    """Width and height (px), number of frames (counted by decoding) and frames a second of a video."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return (stream.width, stream.height), sum(1 for _ in container.decode(video=0)), rate
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: not a readable video ({error}): give the mp4 that was tracked") from error


def read(given: argparse.Namespace, body: BodyModel) -> Imported:
    """Run the importer of the chosen format."""
    facts = video_facts(given.video) if getattr(given, "video", None) else None
    fps = given.fps or (facts[2] if facts else 25.0)
    if given.format == "ehm":
        return import_ehm(given.input, fps, facts[:2] if facts else None)
    if given.format == "amass":
        return import_amass(given.input, body, fps, given.travel)
    size = facts[0] if facts else given.size and tuple(given.size)
    if not size:
        raise ValueError("the size of the pictures is not in SMPLer-X's files: give --video CLIP.mp4 or --size W H")
    num_frames = facts[1] if facts else None
    return import_smplerx(given.input, given.smplx, size, fps, given.person, given.first, num_frames)


def build_parser() -> argparse.ArgumentParser:
    """The command line, one subcommand a format."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.import_tracks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = parser.add_subparsers(dest="format", required=True)
    for name, what in (
        ("ehm", "ehm_tracking.npz, see docs/import_tracks.md"),
        ("smplerx", "output folder of the inference"),
        ("amass", "npz of one motion"),
    ):
        sub = formats.add_parser(name)
        sub.add_argument("input", type=Path, help=what)
        sub.add_argument("--out", type=Path, required=True, help="folder for the track")
        sub.add_argument("--name", default=None, help="NAME of NAME.track.npz (default: the input's)")
        sub.add_argument(
            "--body", type=Path, default=BODY, help="body model that uses the track (default: %(default)s)"
        )
        sub.add_argument("--fps", type=float, default=None, help="frames a second (default: the video's, else 25)")
        if name != "amass":
            sub.add_argument("--video", type=Path, default=None, help="the video that was tracked")
        if name == "smplerx":
            sub.add_argument("--smplx", type=Path, default=None, help="SMPLX_NEUTRAL.npz, for its mean hands")
            sub.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="size of the pictures, px")
            sub.add_argument("--person", type=int, default=0, help="number of the person's box")
            sub.add_argument("--first", type=int, default=1, help="number of the first picture")
        if name == "amass":
            sub.add_argument("--travel", action="store_true", help="keep the walk; by default the pelvis stays put")
    return parser


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = build_parser().parse_args(arguments)
    if not given.input.exists():
        raise ValueError(f"{given.input}: no such file or folder: give the output of the other tool")
    body = BodyModel.from_file(given.body)
    imported = read(given, body)
    name = given.name or given.input.stem
    path = write_track(given.out / f"{name}.track.npz", track_arrays(imported, body, given.body.name))
    if imported.betas is not None and not has_smplx_space(body):
        print(f"{given.body.name} is no SMPL-X file: its shape and expression stay neutral", file=sys.stderr)
    print(f"{int(imported.frame_valid.sum())} of {len(imported.frame_valid)} frames", file=sys.stderr)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
