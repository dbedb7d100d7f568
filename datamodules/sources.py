"""Which clips a run reads: files, folders and patterns, each with its share of the training windows."""

from __future__ import annotations

import glob
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from visa.datamodules.clip import Clip
from visa.datamodules.decode import BrokenVideo

SIDE_VIDEOS = (".mask.mp4", ".overlay.mp4")


@dataclass
class ClipSource:
    """A training clip, or many.

    Attributes:
        path: a video with its track and mask beside it; or a folder (without its subfolders), or a pattern like
            `clips/**/anna__*.mp4`: every tracked mp4 in it.
        weight: share of training windows, relative to the other sources; the clips of a folder share it equally.
        validate: whether the validation blocks of these clips are read.
    """

    path: str = "assets/clips/webcam_man.mp4"
    weight: float = 1.0
    validate: bool = True


@dataclass
class Opened:
    """A clip of a run.

    Attributes:
        clip: checked, not decoded.
        weight: its share of training windows.
        validate: whether its validation blocks are read.
    """

    clip: Clip
    weight: float
    validate: bool


def clip_files(path: str, sidecars: str | None = None) -> tuple[list[Path], int]:
    """The videos that a source names, sorted, and how many of a folder or pattern were left out for want of a track.

    Args:
        path: a file, folder or pattern.
        sidecars: folder of the tracks; None where they lie beside the videos.

    Raises:
        ValueError: nothing there.
    """
    folder = Path(path)
    is_pattern = not folder.exists() and any(letter in path for letter in "*?[")
    if not is_pattern and not folder.is_dir():
        return [folder], 0
    found = map(Path, glob.glob(path, recursive=True)) if is_pattern else folder.glob("*.mp4")
    videos = sorted(
        file for file in found if file.suffix == ".mp4" and file.name[0] != "." and not file.name.endswith(SIDE_VIDEOS)
    )
    tracked = [file for file in videos if (Path(sidecars or file.parent) / f"{file.stem}.track.npz").is_file()]
    if not tracked:
        raise ValueError(
            f"data.clips: no tracked clip in {path}; track your videos: python -m visa.tools.track {path} --out DIR"
        )
    return tracked, len(videos) - len(tracked)


def open_sources(sources: list[ClipSource]) -> tuple[list[Opened], int]:
    """Open and check every clip of the sources; a video that is cut off or damaged is left out with a warning.

    Returns:
        the clips, and how many were left out.

    Raises:
        ValueError: no clip is left; two entries name one file; a clip whose video, mask and track do not belong
            together.
        FileNotFoundError: a named file, its track or its mask is missing.
    """
    opened, broken, untracked = [], [], 0
    for source in sources:
        if source.weight < 0:
            raise ValueError(f"data.clips: {source.path} has weight {source.weight}; give 0 or more")
        files, missing = clip_files(source.path)
        untracked += missing
        clips = []
        for file in files:
            clip = Clip(file)
            try:
                clip.check() if not clip.is_image else clip.open()
                clips.append(clip)
            except BrokenVideo as error:
                broken.append(str(error))
        opened += [Opened(clip, source.weight / len(clips), source.validate) for clip in clips]
    for reason in broken:
        rank_zero_warn(f"clip left out: {reason}")
    if broken or untracked:
        rank_zero_warn(f"{len(opened)} clips are read; left out: {len(broken)} damaged, {untracked} without a track")
    if not opened:
        raise ValueError(f"data.clips: no clip is left; the first one: {broken[0]}")
    name_apart([entry.clip for entry in opened])
    return opened, len(broken) + untracked


def name_apart(clips: list[Clip]) -> None:
    """Give clips of one file name that lie in different folders names with their folder: `monday_talk`.

    Raises:
        ValueError: one file is named twice, or two folders and names make one.
    """
    twice = [path for path, count in Counter(str(clip.path.resolve()) for clip in clips).items() if count > 1]
    if twice:
        raise ValueError(
            f"data.clips and data.test_clips name {twice[0]} twice: drop one, and give the other its weight"
        )
    taken = Counter(clip.name for clip in clips)
    for clip in clips:
        if taken[clip.name] > 1:
            clip.name = f"{clip.path.resolve().parent.name}_{clip.path.stem}"
    taken = Counter(clip.name for clip in clips)
    for clip in clips:
        if taken[clip.name] > 1:
            raise ValueError(f"two clips are called {clip.name}, one of them {clip.path}: rename it and its side files")
