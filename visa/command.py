"""One command for all: `visa animate PHOTO --driving CLIP`, `visa export`, `visa track`, `visa train`, `visa test`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Each is imported when it is called alone: `visa --help` waits for no network.
COMMANDS = {
    "animate": "a photo (or several, or a clip) moved by another video: writes an mp4",
    "frames": "a photo moved by another video: writes a folder of PNG pictures with alpha",
    "page": "a photo moved by another video: writes one web page of Gaussians to orbit, without a server",
    "export": "a photo (or several, or a clip) -> .ply, .spz or .safetensors",
    "view": "a photo or an avatar in the browser: orbit it, pose it by sliders, play tracks",
    "live": "a photo moved live by a camera, a video or blendshapes, in the browser",
    "track": "videos and photos -> clips with their tracks, to train on or to drive with",
    "train": "train a stage: visa train -c configs/shader.yaml (python train.py fit)",
    "validate": "measure a stage on its validation frames (python train.py validate)",
    "test": "measure a stage on its test frames (python train.py test)",
}
MODULES = {
    "export": "visa.tools.export_avatar",
    "frames": "visa.exports.frames",
    "page": "visa.exports.page",
    "view": "visa.viewer.__main__",
    "live": "visa.live.__main__",
    "track": "visa.tools.track.__main__",
}


def animate_arguments(arguments: Sequence[str]) -> list[str]:
    """`PHOTO... --driving CLIP [...]` as the arguments of `train.py predict`; what it does not know goes through."""
    parser = argparse.ArgumentParser(
        prog="visa animate",
        description=COMMANDS["animate"],
        epilog="Further options are those of `python train.py predict`, such as --data.predict.num_frames=100.",
    )
    parser.add_argument("image", nargs="+", help="photo or photos of the person, or a clip")
    parser.add_argument("--driving", required=True, help="motion: a video, or a .track.npz")
    parser.add_argument("--out", default="out.mp4", help="video to write (default: %(default)s)")
    parser.add_argument("--size", type=int, help="side of its pictures in px (default: 512)")
    parser.add_argument("--photos", type=int, help="frames of the clip to take as photos (default: 8)")
    given, further = parser.parse_known_args(arguments)
    options = [f"--{name}={value}" for name in ("size", "photos") if (value := getattr(given, name)) is not None]
    return ["predict", "--image", *given.image, "--driving", given.driving, "--out", given.out, *options, *further]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="visa", description="One photo in, a moving upper-body avatar out.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        commands.add_parser(name, help=what, add_help=False)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given, rest = parser.parse_args(words[:1]), words[1:]
    if given.command in MODULES:
        return int(importlib.import_module(MODULES[given.command]).main(rest) or 0)
    from visa import cli

    subcommand = {"train": "fit"}.get(given.command, given.command)
    cli.run(animate_arguments(rest) if given.command == "animate" else [subcommand, *rest])
    return 0


if __name__ == "__main__":
    sys.exit(main())
