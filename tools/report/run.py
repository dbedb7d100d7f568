"""What a run has left in its folder, read for a page: figures, curves, pictures and videos small enough to embed."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visa.artifacts.media import write_video

SIDE = 1600  # px: wider pictures are shown smaller
QUALITY = 85  # of embedded pictures (JPEG)
CRF = 30  # of embedded videos
MOST_BYTES = 4_000_000  # of a picture out of an event file


@dataclass
class Media:
    """A file to embed.

    Attributes:
        name: caption.
        kind: such as `image/jpeg`.
        content: its bytes.
    """

    name: str
    kind: str
    content: bytes


@dataclass
class Run:
    """One run.

    Attributes:
        folder: where it lies.
        metrics: content of `metrics.json`; None for a fit.
        config: text of `config.yaml`; None where the run has written none.
        curves: tag -> steps and values.
        pictures, videos: to embed.
        curve_notes: event files that could not be read.
    """

    folder: Path
    metrics: dict[str, Any] | None
    config: str | None
    curves: dict[str, list[tuple[int, float]]]
    pictures: list[Media] = field(default_factory=list)
    videos: list[Media] = field(default_factory=list)


def read_run(folder: Path, seconds: float) -> Run:
    """The run of a folder; the first `seconds` of its videos.

    Raises:
        ValueError: no such folder, nothing of a run in it, or a file of it is broken; names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name a run's, such as runs/test/shader/version_0")
    metrics, config = folder / "metrics.json", folder / "config.yaml"
    run = Run(
        folder,
        _read_metrics(metrics) if metrics.is_file() else None,
        config.read_text(encoding="utf-8") if config.is_file() else None,
        *_read_events(folder),
    )
    if run.metrics is None and run.config is None and not run.curves:
        raise ValueError(f"{folder} holds no metrics.json, config.yaml or curves: name a run's folder")
    run.pictures += [picture(path) for path in sorted(folder.glob("*.png")) if path.name[0] != "."]
    if seconds > 0:
        run.videos = [video(path, seconds) for path in sorted(folder.glob("*.mp4")) if path.name[0] != "."]
    return run


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): run `python train.py test` again") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict):
        raise ValueError(f"{path} has no `rows`: it is not of `python train.py test`")
    return content


def _read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], list[Media]]:
    """Curves, and the last picture of each tag."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}, []
    events = EventAccumulator(str(folder), size_guidance={"scalars": 2000, "images": 1})
    events.Reload()
    tags = events.Tags()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    pictures = []
    for tag in tags["images"]:
        last = events.Images(tag)[-1]
        encoded = last.encoded_image_string
        if len(encoded) <= MOST_BYTES:
            kind = "image/gif" if encoded[:3] == b"GIF" else "image/png"
            pictures.append(Media(f"{tag}, step {last.step}", kind, encoded))
    return curves, pictures


def picture(path: Path) -> Media:
    """A picture as JPEG, at most SIDE px wide."""
    try:
        with Image.open(path) as image:
            shown = image.convert("RGB")
    except OSError as error:
        raise ValueError(f"{path} is no picture ({error}): remove it from the run's folder") from error
    if shown.width > SIDE:
        shown = shown.resize((SIDE, max(round(shown.height * SIDE / shown.width), 1)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=QUALITY)
    return Media(path.stem, "image/jpeg", buffer.getvalue())


def video(path: Path, seconds: float) -> Media:
    """The start of a video, compressed again."""
    try:
        with av.open(str(path)) as container, tempfile.TemporaryDirectory() as folder:
            rate = float(container.streams.video[0].average_rate or 25)
            count = max(round(seconds * rate), 1)
            frames = (
                torch.from_numpy(frame.to_ndarray(format="rgb24")).movedim(-1, 0).float() / 255
                for frame in islice(container.decode(video=0), count)
            )
            small = write_video(Path(folder) / "small.mp4", frames, rate, crf=CRF)
            return Media(path.stem, "video/mp4", small.read_bytes())
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is no video ({error}): remove it from the run's folder") from error
