"""Fit the avatars of a training run ahead: `python -m visa.tools.cache_avatars -c CONFIG [--OPTION=VALUE]`.

Takes what `python train.py fit` takes; `model.init_args.avatar_cache` and `data.references` must be set. Makes the
avatar of each photo that training and validation read as a reference, at each resolution; those that are there stay.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from visa import cli as train
from visa.artifacts.command_line import one_line_errors
from visa.datamodules.decode import BrokenVideo
from visa.datamodules.video import VideoDataModule
from visa.lightning_modules.shading import ShadingStage
from visa.runtime.avatar_cache import AvatarCache
from visa.runtime.photos import photo_of


def cache_of(model: ShadingStage, data: VideoDataModule) -> AvatarCache:
    """A run's cache; ValueError where it has none, or photos that do not come again."""
    cache = model.conditioner.cache
    if not isinstance(cache, AvatarCache) or data.references is None:
        raise ValueError(
            "this run reads no avatars from a cache: set --model.init_args.avatar_cache=FOLDER and --data.references=4"
        )
    return cache


def fill(cache: AvatarCache, model: ShadingStage, data: VideoDataModule) -> tuple[int, int]:
    """Make what is missing, and say a line for each photo on standard error.

    Returns:
        how many avatars were made, and how many photos could not be read.
    """
    data.setup("validate")  # opens the clips without decoding them into memory
    photos, made, left_out = data.reference_photos(), 0, 0
    for number, photo in enumerate(photos, start=1):
        begin = time.perf_counter()
        try:
            batch = data.reader.read_photo(photo)
        except BrokenVideo as error:
            left_out += 1
            result = f"left out: {error}"
        else:
            cache(photo_of(model.transfer_batch_to_device(batch, model.device, 0)))
            is_new, made = cache.num_made > made, cache.num_made
            result = f"fitted in {time.perf_counter() - begin:.1f} s" if is_new else "there"
        name = f"{photo.clip.name}, frame {photo.frame}{', mirrored' * photo.is_mirrored}, {photo.resolution} px"
        print(f"[{number}/{len(photos)}] {name}: {result}", file=sys.stderr, flush=True)
    return made, left_out


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.cache_avatars",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", action="append", required=True, help="of the run; may be given several times")
    given, options = parser.parse_known_args(arguments)
    configs = [word for path in given.config for word in ("-c", path)]
    cli = train.main(["fit", *configs, *options], cli=train.BuildOnly)
    if not isinstance(cli.model, ShadingStage):
        raise ValueError(f"{type(cli.model).__name__} trains no shader: give the config of a later stage")
    model = cli.model.to("cuda" if torch.cuda.is_available() else "cpu")
    cache = cache_of(model, cli.datamodule)
    made, left_out = fill(cache, model, cli.datamodule)
    print(f"{made} avatars made, {left_out} photos left out\n{cache.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
