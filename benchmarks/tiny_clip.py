"""A clip of a second, cut out of the shipped one: what a program trains on that measures no quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from visa.artifacts.files import shipped
from visa.artifacts.media import write_video
from visa.datamodules.clip import TRACK_FIELDS, Clip

SOURCE = "assets/clips/webcam_man.mp4"


def write_tiny_clip(folder: Path, num_frames: int = 16, side: int = 96) -> Path:
    """The first frames of the shipped clip, `side` px square, with mask, track and splits; the path of the video."""
    clip, frames = Clip(shipped(SOURCE)), np.arange(num_frames)
    pictures, masks, intrinsics = clip.window(frames, side)
    track = {name: clip.track[name][frames] for name in TRACK_FIELDS} | {"intrinsics": intrinsics.numpy()}
    folder.mkdir(parents=True, exist_ok=True)
    path = write_video(folder / "tiny.mp4", pictures, fps=clip.fps)
    write_video(folder / "tiny.mask.mp4", masks.expand(-1, 3, -1, -1), fps=clip.fps)
    np.savez(folder / "tiny.track.npz", betas=clip.track["betas"], fps=np.float32(clip.fps), **track)
    (folder / "tiny.splits.yaml").write_text(f"validation: [[{num_frames - 4}, {num_frames - 1}]]\nreference: 0\n")
    return path
