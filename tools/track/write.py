"""Write the clip contract's files. Each is made beside its place and renamed when whole, the track last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from visa.artifacts.photos import is_image
from visa.networks.body import BodyModel
from visa.tools.track.detect import NUM_HAND_POINTS, Detections
from visa.tools.track.fit import Track
from visa.tools.track.matte import check_share, refine, steady_masks
from visa.tools.track.points import WORLD_TO_CAMERA
from visa.tools.track.read import is_plain, read_frames, timing
from visa.tools.track.render import visible_triangles

Frame = NDArray[np.uint8]


def track_arrays(track: Track, fps: float, width: int, height: int, body_model: str) -> dict[str, NDArray[Any]]:
    """The arrays of NAME.track.npz."""
    count = len(track.frame_valid)
    arrays = {name: value.numpy() for name, value in vars(track.params).items()}
    return arrays | {
        "intrinsics": np.broadcast_to(track.intrinsics, (count, 3, 3)).astype(np.float32),
        "world_to_camera": np.broadcast_to(WORLD_TO_CAMERA, (count, 4, 4)).astype(np.float32),
        "frame_valid": track.frame_valid,
        "fps": np.float64(fps),
        "image_size": np.array([width, height]),
        "body_model": np.array(body_model),
    }


@contextmanager
def whole_or_nothing(paths: list[Path]) -> Iterator[list[Path]]:
    """Temporary names beside `paths`, renamed to them when the block ends well, removed when it does not."""
    beside = [path.with_name(f".partial-{os.getpid()}-{path.name}") for path in paths]
    try:
        yield beside
        for temporary, path in zip(beside, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in beside:
            temporary.unlink(missing_ok=True)


class VideoWriter:
    """H.264 yuv420p mp4, frame by frame."""

    def __init__(self, path: Path, fps: float, width: int, height: int, crf: int) -> None:
        import av

        self.av = av
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.options = {"crf": str(crf), "preset": "medium"}

    def write(self, frame: Frame) -> None:
        """Append an RGB frame [H, W, 3] or a grey one [H, W]."""
        picture = np.ascontiguousarray(frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, -1))
        for packet in self.stream.encode(self.av.VideoFrame.from_ndarray(picture, format="rgb24")):
            self.container.mux(packet)

    def close(self) -> None:
        """Flush and close."""
        for packet in self.stream.encode():
            self.container.mux(packet)
        self.container.close()


def keeps_its_bytes(source: Path, num_frames: int) -> bool:
    """Whether a video already is what the contract asks for, so that it is copied and not encoded again."""
    if is_image(source) or source.suffix.lower() != ".mp4":
        return False
    return timing(source).num_frames == num_frames and is_plain(source)


class Overlay:
    """Draws the fitted mesh over a frame, as lit skin half shining through, and the points of face, body and
    hands, detected and fitted.
    """

    def __init__(self, body: BodyModel, detections: Detections, track: Track) -> None:
        self.body, self.detections, self.track = body, detections, track
        self.faces = body.faces.numpy()

    def __call__(self, index: int, frame: Frame) -> Frame:
        """The frame [H, W, 3] with the drawing on it; frames that are not valid get a red border."""
        picture = frame.astype(np.float32)
        if not self.track.frame_valid[index]:
            for edge in (picture[:4], picture[-4:], picture[:, :4], picture[:, -4:]):
                edge[:] = (255, 0, 0)
            return picture.astype(np.uint8)
        height, width = frame.shape[:2]
        params = self.track.params.map(lambda value: value[None] if value.dim() == 1 else value[index : index + 1])
        with torch.no_grad():
            vertices = self.body(params)[0][0].numpy() * np.array([1, -1, -1], np.float32)
        size = max(height, width)
        seen = visible_triangles(vertices, self.faces, float(self.track.intrinsics[0, 0]), size)
        top, left = (size - height) // 2, (size - width) // 2
        seen = seen[top : top + height, left : left + width]
        corners = vertices[self.faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        facing = np.abs(normal[:, 2]) / np.maximum(np.linalg.norm(normal, axis=-1), 1e-12)
        tone = ((40 + 200 * facing)[:, None] * np.array([0.6, 0.8, 1.0], np.float32))[seen]
        picture = np.where((seen >= 0)[..., None], 0.5 * picture + 0.5 * tone, picture)
        for points, colour in (
            (self.detections.face[index, :, :2], (0, 255, 0)),
            (self.track.face[index], (255, 0, 0)),
            (self.detections.pose[index][self.track.pose_weight[index] > 0.1, :2], (255, 255, 0)),
            (self.track.pose[index][self.track.pose_weight[index] > 0.1], (255, 0, 255)),
            (self.detections.left_hand[index, :, :2], (255, 255, 0)),
            (self.detections.right_hand[index, :, :2], (255, 255, 0)),
            *(
                (self.track.hands[index, side], (255, 0, 255))
                for side in np.flatnonzero(self.track.hand_weight[index] > 0.1)
            ),
        ):
            is_dense = len(points) in (len(self.track.face[index]), NUM_HAND_POINTS)
            dots(picture, points, colour, 0 if is_dense else max(2, size // 200))
        return np.clip(picture, 0, 255).astype(np.uint8)


def dots(picture: NDArray[np.float32], points: NDArray[np.float32], colour: tuple[int, int, int], radius: int) -> None:
    """Paint squares of `2 radius + 1` px at `points` [N, 2] into `picture` [H, W, 3]; points outside or NaN are left
    out.
    """
    for x, y in points[np.isfinite(points).all(-1)].astype(int):
        if 0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]:
            picture[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1] = colour


def write_clip(
    source: Path,
    out: Path,
    detections: Detections,
    track: Track,
    report: dict[str, Any],
    body: BodyModel,
    body_name: str,
    progress: Callable[..., Iterable[Any]] = tqdm,
) -> list[Path]:
    """Write all files of a clip or photo into `out` (made if absent); returns their paths."""
    out.mkdir(parents=True, exist_ok=True)
    still = is_image(source)
    picture, movie = (".png", ".png") if still else (".mp4", ".mp4")
    names = [
        f"{source.stem}{end}" for end in (picture, f".mask{movie}", f".overlay{movie}", ".report.json", ".track.npz")
    ]
    paths = [out / name for name in names]
    if not still and source.resolve() == paths[0].resolve() and not keeps_its_bytes(source, detections.num_frames):
        raise ValueError(f"{source}: would be overwritten by its own clip: give another folder with --out")
    with whole_or_nothing(paths) as (clip, mask, overlay, report_file, track_file):
        write_pictures(source, (clip, mask, overlay), detections, track, Overlay(body, detections, track), progress)
        report_file.write_text(json.dumps(report, indent=1) + "\n")
        arrays = track_arrays(track, detections.fps, detections.width, detections.height, body_name)
        with open(track_file, "wb") as file:
            np.savez_compressed(file, **arrays)
    return paths


def write_pictures(
    source: Path,
    targets: tuple[Path, Path, Path],
    detections: Detections,
    track: Track,
    overlay: Overlay,
    progress: Callable[..., Iterable[Any]],
) -> None:
    """Clip, mask and overlay to `targets`, in one pass over the source."""
    clip, mask, drawn = targets
    masks = steady_masks(detections, track.frame_valid)
    check_share(masks[track.frame_valid], str(source))
    if is_image(source):
        frame = next(read_frames(source))
        Image.fromarray(frame).save(clip, format="png")
        Image.fromarray(np.round(refine(masks[0], frame) * 255).astype(np.uint8)).save(mask, format="png")
        Image.fromarray(overlay(0, frame)).save(drawn, format="png")
        return
    size = detections.width, detections.height
    fps = timing(source).rate
    copied = keeps_its_bytes(source, detections.num_frames)
    writers = [VideoWriter(mask, fps, *size, crf=20), VideoWriter(drawn, fps, *size, crf=20)]
    if copied:
        shutil.copyfile(source, clip)
    else:
        writers.append(VideoWriter(clip, fps, *size, crf=14))
    frames = progress(read_frames(source), total=detections.num_frames, desc="write", unit="frame")
    for index, frame in zip(range(detections.num_frames), frames, strict=False):
        fine = np.round(refine(masks[index], frame) * 255).astype(np.uint8)
        for writer, image in zip(writers, (fine, overlay(index, frame), frame), strict=False):
            writer.write(image)
    for writer in writers:
        writer.close()
