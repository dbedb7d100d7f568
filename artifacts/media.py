"""Video files, labelled side-by-side videos and picture sheets. Frames are RGB tensors [T, 3, H, W] in [0, 1]."""

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from visa.artifacts.files import atomic_path
from visa.artifacts.sound import Sound, SoundTrack


def to_uint8(frames: Tensor) -> np.ndarray:
    """[..., 3, H, W] in [0, 1] (clamped) -> uint8 array [..., H, W, 3]."""
    return (
        frames.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()
    )


def write_video(
    path: str | Path,
    frames: Tensor | Iterable[Tensor],
    fps: float,
    crf: int = 12,
    sound: Sound | None = None,
    comment: str | None = None,
) -> Path:
    """Writes an H.264 yuv420p mp4, whole or not at all.

    Args:
        path: of the mp4.
        frames: [T, 3, H, W] in [0, 1], or an iterator of [3, H, W], which is encoded as it comes.
        fps: frames a second.
        crf: x264's quality, lower is better; at 12 its loss is well below what the methods differ by.
        sound: heard with the frames, as long as they last.
        comment: the file's metadata of that name, which players show; `provenance.SYNTHETIC` where the frames are made.

    An odd height or width gets its last row or column twice: 4:2:0 chroma needs even sizes.
    Raises ValueError when there is no frame or when the frames change size.
    """
    import av

    path = Path(path)
    rate = Fraction(fps).limit_denominator(1001)
    size: tuple[int, ...] | None = None
    with atomic_path(path) as scratch, av.open(str(scratch), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        if comment is not None:
            container.metadata["comment"] = comment
        track, count = None if sound is None else SoundTrack(container, sound), 0
        for frame in frames:
            picture = to_uint8(frame)
            if size is None:
                size = picture.shape
                stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
            elif picture.shape != size:
                raise ValueError(
                    f"{path}: all frames of a video must have one size, got {size[:2]} and then {picture.shape[:2]}"
                )
            picture = np.pad(picture, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            count += 1
        if size is None:
            raise ValueError(f"{path}: a video needs at least one frame")
        container.mux(stream.encode())
        if track is not None:
            track.write(count / float(rate))
    return path


def read_video(path: str | Path, start: int = 0, stop: int | None = None) -> tuple[Tensor, float]:
    """Frames [start, stop) of a video as ([T, 3, H, W] in [0, 1], frames a second).

    Decodes from the first frame, so that `start` counts frames exactly. Raises ValueError for a missing, unreadable or
    too short file.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"video {path} does not exist")
    pictures = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            fps = float(container.streams.video[0].average_rate or 0)
            for index, frame in enumerate(container.decode(video=0)):
                if stop is not None and index >= stop:
                    break
                if index >= start:
                    pictures.append(frame.to_ndarray(format="rgb24"))
    except av.FFmpegError as error:
        raise ValueError(f"video {path} cannot be read ({error}): give an mp4, mov or webm file") from None
    if not pictures or (stop is not None and len(pictures) < stop - start):
        raise ValueError(
            f"video {path} has {start + len(pictures)} frames, asked for {start} to {'end' if stop is None else stop}"
        )
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(255), fps


def write_image(path: str | Path, image: Tensor) -> Path:
    """Writes [3, H, W] in [0, 1] as a picture (format by suffix), whole or not at all."""
    path = Path(path)
    with atomic_path(path) as scratch:
        Image.fromarray(to_uint8(image)).save(scratch)
    return path


def write_pictures(folder: str | Path, frames: Iterable[Tensor]) -> Path:
    """Writes pictures [3, H, W], or [4, H, W] with alpha that is not premultiplied, as `00000.png`, `00001.png`, ...

    The folder is whole or absent: it is made beside its place and moved there; one that holds anything is an error.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: give a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for number, frame in enumerate(frames):
            Image.fromarray(to_uint8(frame)).save(scratch / f"{number:05d}.png")
        scratch.chmod(0o755)
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def side_by_side(columns: Mapping[str, Tensor], separator: int = 2) -> Tensor:
    """Labelled columns in one video: {label: [T, 3, H, W] or a still [3, H, W]} -> [T, 3, H', W'], H' and W' even.

    A still stands in every frame. Columns of another height or length are an error.
    """
    videos = {label: frames for label, frames in columns.items() if frames.ndim == 4}
    if not videos:
        raise ValueError("a side-by-side video needs at least one column with frames [T, 3, H, W]")
    lengths = {label: len(frames) for label, frames in videos.items()}
    heights = {label: frames.shape[-2] for label, frames in columns.items()}
    if len(set(lengths.values())) > 1 or len(set(heights.values())) > 1:
        raise ValueError(
            f"columns of a side-by-side video must agree in length and height, got lengths {lengths}, heights {heights}"
        )
    num_frames = next(iter(lengths.values()))
    parts = []
    for label, frames in columns.items():
        frames = frames.detach().float().cpu().clamp(0, 1)
        frames = frames.expand(num_frames, -1, -1, -1) if frames.ndim == 3 else frames
        bar = _text_bar(label, frames.shape[-1]).expand(num_frames, -1, -1, -1)
        parts.append(torch.nn.functional.pad(torch.cat([bar, frames], dim=-2), (0, separator), value=1.0))
    joined = torch.cat(parts, dim=-1)[..., : -separator or None]
    height, width = joined.shape[-2:]
    return torch.nn.functional.pad(joined, (0, width % 2, 0, height % 2), value=1.0)


def sheet(rows: Mapping[str, Tensor], column_labels: Sequence[str] = (), separator: int = 2) -> Tensor:
    """Grid of pictures: {row label: [N, 3, H, W]}, N labels over the columns -> one picture [3, H', W']."""
    counts = {label: len(pictures) for label, pictures in rows.items()}
    if not rows or len(set(counts.values())) > 1:
        raise ValueError(f"rows of a sheet must have equally many pictures, got {counts}")
    first = next(iter(rows.values()))
    width = first.shape[-1]
    if column_labels and len(column_labels) != len(first):
        raise ValueError(f"a sheet of {len(first)} columns has {len(column_labels)} column labels")
    font = _font()
    margin = 8 + max(int(font.getlength(label)) for label in rows)
    lines = []
    if column_labels:
        bars = [torch.nn.functional.pad(_text_bar(label, width), (0, separator), value=1.0) for label in column_labels]
        lines.append(torch.cat([torch.ones(3, bars[0].shape[1], margin), *bars], dim=-1))
    for label, pictures in rows.items():
        cells = [
            torch.nn.functional.pad(p.detach().float().cpu().clamp(0, 1), (0, separator, 0, separator), value=1.0)
            for p in pictures
        ]
        lines.append(torch.cat([_text_bar(label, margin, cells[0].shape[-2]), *cells], dim=-1))
    return torch.cat(lines, dim=-2)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=12)


def _text_bar(text: str, width: int, height: int = 18) -> Tensor:
    """White bar [3, height, width] with `text` in black, centred in height; text that is too long is cut."""
    bar = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(bar).text((3, height / 2), text, fill="black", font=_font(), anchor="lm")
    return torch.from_numpy(np.array(bar)).permute(2, 0, 1).float() / 255
