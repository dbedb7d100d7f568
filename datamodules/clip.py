"""A clip on disk: `NAME.mp4` + `NAME.track.npz` + `NAME.mask.mp4` (images: `.png`), and its splits.

The track holds SMPL-X field names and units (metres, radians, axis-angle) and OpenCV cameras; every array has T frames
but `betas [10]`. Splits come from `NAME.splits.yaml` beside the clip where there is one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visa.artifacts.arrays import read_arrays
from visa.artifacts.configs import read_yaml
from visa.artifacts.photos import is_image, read_grey, read_photo
from visa.datamodules.decode import read_all, read_frames, stream_frames, video_info
from visa.networks.body import FIELD_SHAPES, NUM_BETAS

TRACK_FIELDS = (
    "expression",
    "global_orient",
    "transl",
    "body_pose",
    "jaw_pose",
    "leye_pose",
    "reye_pose",
    "left_hand_pose",
    "right_hand_pose",
    "intrinsics",
    "world_to_camera",
    "frame_valid",
)
LAYOUTS = {  # of a frame; the number of expressions is the body model's
    **{name: shape for name, shape in FIELD_SHAPES.items() if name not in ("betas", "expression")},
    "intrinsics": (3, 3),
    "world_to_camera": (4, 4),
}
REAL = "biuf"  # kinds of arrays that hold real numbers
DEFAULT_FPS, LARGEST_FPS = 25.0, 1000.0
# A longer clip is centred by the key frames of its mask, so that opening it does not decode it.
MOST_FRAMES_TO_CENTRE = 1500


def frame_rate(track: Mapping[str, np.ndarray]) -> float:
    """Frames a second of a track; 25 for one that does not say, or says what no camera does."""
    given = np.asarray(track.get("fps", DEFAULT_FPS))
    is_number = given.size == 1 and given.dtype.kind in REAL
    rate = float(given.reshape(())) if is_number else DEFAULT_FPS
    return rate if 0 < rate < LARGEST_FPS else DEFAULT_FPS


def load_track(path: str | Path) -> dict[str, np.ndarray]:
    """Read and check a track file.

    Returns every array of the file, fields in the clip contract's layout where another one is unambiguous; a frame
    whose parameters hold NaN or infinity is marked invalid and zeroed, and a warning names file, field and frames.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a track (names the file and the missing or misshapen field, or `betas` that are not finite).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no track at {path}: make one with `python -m visa.tools.track VIDEO --out {path.parent}`"
        )
    try:
        track = read_arrays(path, "track file")
    except ValueError as error:
        raise ValueError(f"{error}: make the track again with `python -m visa.tools.track`") from error
    missing = [name for name in ("betas", *TRACK_FIELDS) if name not in track]
    if missing:
        raise ValueError(
            f"{path} is not a track: it lacks {', '.join(missing)}; make it with `python -m visa.tools.track`"
        )
    num_frames = track["frame_valid"].size
    track["frame_valid"] = _numbers(track["frame_valid"], "frame_valid", path).reshape(-1).astype(bool)
    track["betas"] = _shape_of(_numbers(track["betas"], "betas", path), path)
    valid = track["frame_valid"].copy()
    for name in TRACK_FIELDS[:-1]:
        values = _in_layout(_numbers(track[name], name, path), name, num_frames, path)
        finite = np.isfinite(values.reshape(num_frames, -1)).all(axis=1)
        if len(bad := np.flatnonzero(~finite & valid)):
            shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
            warnings.warn(
                f"{path}: {name} holds NaN or infinity in {len(bad)} frames ({shown}), which count as invalid",
                stacklevel=2,
            )
        track["frame_valid"] &= finite
        track[name] = np.where(np.isfinite(values), values, 0)
    return track


def _numbers(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    """A field as float32; what float32 cannot hold becomes infinity. ValueError where it holds no real numbers."""
    if values.dtype.kind not in REAL:
        raise ValueError(f"{path}: {name} holds {values.dtype}, not numbers: track the clip again")
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _shape_of(betas: np.ndarray, path: Path) -> np.ndarray:
    """The first ten shape coefficients `[10]`: of one person's `[10]`, `[1,10]`, `[300]`, or of frames all alike."""
    rows = betas.reshape(-1, betas.shape[-1]) if betas.ndim and betas.size else np.empty((0, 0))
    if rows.shape[-1] < NUM_BETAS or not len(rows):
        raise ValueError(f"{path}: betas is {list(betas.shape)}: give {NUM_BETAS} shape coefficients or more")
    if not np.isfinite(rows).all():
        raise ValueError(f"{path}: betas holds NaN or infinity: track the clip again")
    return np.median(rows, axis=0)[:NUM_BETAS]


def _in_layout(values: np.ndarray, name: str, num_frames: int, path: Path) -> np.ndarray:
    """A field as `[T,...]`; flat ones such as `body_pose [T,63]` are folded.

    Raises:
        ValueError: numbers that do not make the field's layout for each frame; names file, field and layout.
    """
    layout = LAYOUTS.get(name)
    if len(values) != num_frames if values.ndim else True:
        count = len(values) if values.ndim else "no"
        raise ValueError(f"{path}: {name} has {count} frames, frame_valid {num_frames}; track the clip again")
    if layout is None:
        return values.reshape(num_frames, -1)
    if values.size != num_frames * int(np.prod(layout)):
        raise ValueError(f"{path}: {name} is {list(values.shape)}, not {[num_frames, *layout]}: track the clip again")
    return values.reshape(num_frames, *layout)


@dataclass
class Splits:
    """Frame ranges of a clip, first and last frame included.

    Attributes:
        test: blocks that only `test` opens.
        validation: blocks for every choice made while training.
        gap: frames dropped on each side of every test block.
        reference: the frame whose photo stands for the person in validation and test; None takes the first frame that
            neither validates nor is test.
        train: False keeps the whole clip out of training: a person never trained on.
        person: clips with the same key show the same person, who may then be the reference of each other's windows;
            None takes the part of the file's name before a double underscore (`anna__kitchen.mp4`), so that a name
            without one is a person of its own.
    """

    test: list[tuple[int, int]] = field(default_factory=list)
    validation: list[tuple[int, int]] = field(default_factory=list)
    gap: int = 0
    reference: int | None = None
    train: bool = True
    person: str | None = None

    @classmethod
    def read(cls, path: Path, num_frames: int) -> Splits:
        """Read `NAME.splits.yaml`; without one the last tenth of the clip validates and nothing is test."""
        if not path.is_file():
            first = num_frames - max(num_frames // 10, 1)
            return cls(validation=[(first, num_frames - 1)])
        known = {"test", "validation", "gap", "reference", "train", "person"}
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no mapping: give it keys of {', '.join(sorted(known))}")
        unknown = {str(key) for key in content} - known
        if unknown:
            odd = " ".join(sorted(unknown)[0].split())
            raise ValueError(f"{path}: unknown key {odd}; known are {', '.join(sorted(known))}")
        try:
            return cls(
                test=_ranges(content.get("test") or []),
                validation=_ranges(content.get("validation") or []),
                gap=_frame_number(content.get("gap", 0)),
                reference=None if content.get("reference") is None else _frame_number(content["reference"]),
                train=_switch(content.get("train", True)),
                person=None if content.get("person") is None else str(content["person"]),
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def free_mask(self, num_frames: int) -> np.ndarray:
        """`[T]` bool: frames outside of test blocks, their gaps and validation."""
        mask = np.ones(num_frames, dtype=bool)
        for first, last in self.test:
            mask[max(first - self.gap, 0) : last + self.gap + 1] = False
        for first, last in self.validation:
            mask[first : last + 1] = False
        return mask


def _frame_number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError(f"{str(value)[:40]!r} is no frame number: give a whole number from 0 on")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"train is {str(value)[:40]!r}: give true or false")
    return value


def _ranges(value: object) -> list[tuple[int, int]]:
    """Pairs of first and last frame."""
    pairs: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"{str(value)[:40]!r} is no list of ranges: write [[first, last], ...]")
    ranges = [(_frame_number(first), _frame_number(last)) for first, last in pairs]
    if wrong := [pair for pair in ranges if pair[0] > pair[1]]:
        raise ValueError(f"the range {list(wrong[0])} ends before it begins")
    return ranges


class Clip:
    """One person's video (or photo) with its track, cropped to the largest square centred on the person.

    The crop is one for the whole clip, so that the camera stays static where it was. Opening a clip decodes at most its
    mask. Frames are then read from the file as they are asked for, or held in memory as uint8 after `load` (4 bytes a
    pixel of the crop: a 300-px minute of 25 fps video is 540 MB); both give the same pixels.

    Attributes:
        name: the file's name without suffix, or as given.
        track: the arrays of `NAME.track.npz`; `open` moves the intrinsics to the crop's pixels.
        num_frames: T.
        size: side of the square crop in pixels; 0 before `open`.
        splits: which frames train, validate and test.
    """

    def __init__(self, path: str | Path, sidecars: str | Path | None = None, name: str | None = None) -> None:
        """Read the track; `sidecars` is the folder of track, mask and splits where they do not lie beside the video."""
        self.path = Path(path)
        self.name = name or self.path.stem
        self.stem = (Path(sidecars) if sidecars else self.path.parent) / self.path.stem
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no video or image at {self.path}: check the path (option data.clips, --image or --driving)"
            )
        self.is_image = is_image(self.path)
        self.track = load_track(self.sidecar(".track.npz"))
        self.num_frames = len(self.track["frame_valid"])
        self.fps = frame_rate(self.track)
        self.splits = Splits() if self.is_image else Splits.read(self.sidecar(".splits.yaml"), self.num_frames)
        self._frames: np.ndarray | None = None
        self._masks: np.ndarray | None = None
        self._cut = (slice(0, 0), slice(0, 0))
        self._shape: tuple[int, int] | None = None
        self.size = 0

    def sidecar(self, suffix: str) -> Path:
        """The file `NAME` + suffix that belongs to this clip."""
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def mask_path(self) -> Path:
        """The file of the foreground mask."""
        return self.sidecar(".mask.png" if self.is_image else ".mask.mp4")

    @property
    def person(self) -> str:
        """Clips with the same key show the same person, see `Splits`."""
        return self.splits.person or self.path.stem.split("__")[0]

    def check(self) -> tuple[int, int]:
        """Height and width of the video by the files' indices, without decoding (looked up once).

        Raises:
            FileNotFoundError: no mask.
            BrokenVideo: video or mask is cut off or no video.
            ValueError: video, mask and track do not belong together.
        """
        if self._shape is not None:
            return self._shape
        self._require_mask()
        video, mask = video_info(self.path), video_info(self.mask_path)
        for label, info in (("mask", mask), ("video", video)):
            if info.num_frames != self.num_frames:
                raise ValueError(
                    f"{self.path}: the {label} has {info.num_frames} frames, its track {self.num_frames}; "
                    "track it again"
                )
        if (mask.height, mask.width) != (video.height, video.width):
            raise ValueError(
                f"{self.mask_path} is {mask.width}x{mask.height}, the video {video.width}x{video.height}; "
                "track it again"
            )
        self._shape = video.height, video.width
        return self._shape

    def _require_mask(self) -> None:
        if not self.mask_path.is_file():
            raise FileNotFoundError(
                f"no mask at {self.mask_path}: make it with "
                f"`python -m visa.tools.track {self.path} --out {self.path.parent}`"
            )

    @property
    def loaded_bytes(self) -> int:
        """Memory that `load` takes."""
        return 0 if self.is_image else self.num_frames * 4 * min(self.check()) ** 2

    def open(self) -> Clip:
        """Find the square crop and move the track's intrinsics into it (once)."""
        if self.size:
            return self
        if self.is_image:
            return self.load()
        height, width = self.check()
        valid = self.track["frame_valid"]
        keyframes_only = self.num_frames > MOST_FRAMES_TO_CENTRE
        total = np.zeros((height, width), dtype=np.int64)
        if height != width:
            for number, mask in enumerate(stream_frames(self.mask_path, gray=True, keyframes_only=keyframes_only)):
                if keyframes_only or valid[min(number, self.num_frames - 1)]:
                    total += mask
        return self._crop_to(total)

    def load(self) -> Clip:
        """Decode video and mask into memory (once)."""
        if self._frames is not None:
            return self
        if self.is_image:
            return self._load_image()
        self.check()
        if not self.size and self.num_frames > MOST_FRAMES_TO_CENTRE:
            self.open()
        if not self.size:
            masks = read_all(self.mask_path, True, self.num_frames)
            valid = self.track["frame_valid"][:, None, None]
            self._crop_to(masks[..., 0].sum(axis=0, dtype=np.int64, where=valid))
            masks = np.ascontiguousarray(masks[(slice(None), *self._cut)])
        else:
            masks = read_all(self.mask_path, True, self.num_frames, self._cut)
        self._frames, self._masks = read_all(self.path, False, self.num_frames, self._cut), masks
        return self

    def _load_image(self) -> Clip:
        self._require_mask()
        frames, masks = read_photo(self.path)[None], read_grey(self.mask_path)[None, ..., None]
        if self.num_frames != 1 or masks.shape[:3] != frames.shape[:3]:
            raise ValueError(f"{self.path}, its mask and its track do not belong together; track it again")
        self._crop_to(masks[0, ..., 0].astype(np.int64))
        cut = (slice(None), *self._cut)
        self._frames, self._masks = np.ascontiguousarray(frames[cut]), np.ascontiguousarray(masks[cut])
        return self

    def release(self) -> None:
        """Free the decoded frames; they are read from the file again when asked for."""
        self._frames = self._masks = None

    def _crop_to(self, weight: np.ndarray) -> Clip:
        """Set the crop: the largest square centred on the mean position of `weight` `[H,W]`, the summed masks."""
        height, width = weight.shape
        self.size = min(height, width)
        total = max(float(weight.sum()), 1e-6)
        centre_x = float((weight.sum(axis=0) * (np.arange(width) + 0.5)).sum()) / total
        centre_y = float((weight.sum(axis=1) * (np.arange(height) + 0.5)).sum()) / total
        left = int(np.clip(round(centre_x - self.size / 2), 0, width - self.size))
        top = int(np.clip(round(centre_y - self.size / 2), 0, height - self.size))
        self._cut = (slice(top, top + self.size), slice(left, left + self.size))
        self.track["intrinsics"] = self.track["intrinsics"].copy()
        self.track["intrinsics"][:, 0, 2] -= left
        self.track["intrinsics"][:, 1, 2] -= top
        return self

    def pixels(self, indices: np.ndarray, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """RGB and mask of some frames, `[n,h,w,4]` uint8; `rows` and `columns` of the square crop."""
        self.open()
        if self._frames is None and self.is_image:
            self.load()
        if self._frames is not None and self._masks is not None:
            parts = [self._frames[indices, rows, columns], self._masks[indices, rows, columns]]
        else:
            cut_rows, cut_columns = (
                slice(whole.start + part.indices(self.size)[0], whole.start + part.indices(self.size)[1])
                for whole, part in zip(self._cut, (rows, columns), strict=True)
            )
            window = cut_rows, cut_columns
            parts = [
                read_frames(path, gray, indices, window) for path, gray in ((self.path, False), (self.mask_path, True))
            ]
        return np.concatenate(parts, axis=-1)

    def window(
        self, indices: np.ndarray, resolution: int, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, masks and intrinsics of some frames at a resolution.

        Args:
            indices: `[n]` frame numbers.
            resolution: side of the result in pixels.
            zoom: side of the crop window as a share of the clip's square, in (0, 1].
            shift: where the window lies in the free room, each in [-1, 1] (0 is centred).

        Returns:
            frames `[n,3,R,R]` in [0,1], masks `[n,1,R,R]` in [0,1], intrinsics `[n,3,3]` in pixels of the result.
        """
        self.open()
        side = max(round(self.size * zoom), 8)
        left = round((self.size - side) * (1 + shift[0]) / 2)
        top = round((self.size - side) * (1 + shift[1]) / 2)
        rows, columns = slice(top, top + side), slice(left, left + side)
        numbers, place = np.unique(indices, return_inverse=True)  # ascending: a file is read forwards
        images = torch.empty(len(numbers), 4, resolution, resolution)
        for begin in range(0, len(numbers), 8):  # a long block in float32 at the video's size takes half a gigabyte
            stacked = self.pixels(numbers[begin : begin + 8], rows, columns)
            part = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
            if side != resolution:
                part = F.interpolate(
                    part, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
                )
            images[begin : begin + 8] = part
        images = images[torch.from_numpy(place.reshape(-1))]
        intrinsics = torch.from_numpy(self.track["intrinsics"][indices])
        scale = resolution / side
        offset = intrinsics.new_tensor([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
        resize = intrinsics.new_tensor([[scale, 0, 0], [0, scale, 0], [0, 0, 1]])
        return images[:, :3].clamp(0, 1), images[:, 3:].clamp(0, 1), resize @ offset @ intrinsics

    def free_frames(self) -> np.ndarray:
        """Valid frames outside of test blocks, their gaps and validation."""
        return np.flatnonzero(self.track["frame_valid"] & self.splits.free_mask(self.num_frames))

    def training_frames(self) -> np.ndarray:
        """Frame numbers that training may read: the free frames, none if the clip is kept out of training."""
        return self.free_frames() if self.splits.train else np.zeros(0, dtype=np.int64)

    def reference_frame(self) -> int:
        """The frame that stands for the person in validation and test; it lies outside of their blocks."""
        free = self.free_frames()
        if len(free) == 0:
            raise ValueError(
                f"{self.path}: no valid frame outside of its validation and test blocks; "
                "check its report, or its splits.yaml"
            )
        if self.splits.reference is None:
            return int(free[0])
        if self.splits.reference not in free:
            raise ValueError(
                f"{self.path}: reference frame {self.splits.reference} of its splits.yaml is not a valid frame outside "
                "of its validation and test blocks"
            )
        return int(self.splits.reference)
