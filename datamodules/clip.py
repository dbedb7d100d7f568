"""A clip on disk: `NAME.mp4` + `NAME.track.npz` + `NAME.mask.mp4` (images: `.png`), and its splits.

The track holds SMPL-X field names and units (metres, radians, axis-angle) and OpenCV cameras; every array has T frames
but `betas [10]`. Splits come from `NAME.splits.yaml` beside the clip where there is one.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

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
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def load_track(path: str | Path) -> dict[str, np.ndarray]:
    """Read and check a track file.

    Returns every array of the file; a frame whose parameters hold NaN or infinity is marked invalid and zeroed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a track (names the file and the missing or misshapen field).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no track at {path}: make one with `python -m tools.track VIDEO --out {path.parent}`")
    try:
        with np.load(path, allow_pickle=False) as archive:
            track = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable track file ({error}): make it again with `python -m tools.track`"
        ) from error
    missing = [name for name in ("betas", *TRACK_FIELDS) if name not in track]
    if missing:
        raise ValueError(f"{path} is not a track: it lacks {', '.join(missing)}; make it with `python -m tools.track`")
    num_frames = len(track["frame_valid"])
    wrong = [name for name in TRACK_FIELDS if len(track[name]) != num_frames]
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]} has {len(track[wrong[0]])} frames, frame_valid {num_frames}; track the clip again"
        )
    finite = np.ones(num_frames, dtype=bool)
    for name in TRACK_FIELDS[:-1]:
        flat = track[name].reshape(num_frames, -1)
        finite &= np.isfinite(flat).all(axis=1)
        track[name] = np.where(np.isfinite(track[name]), track[name], 0).astype(np.float32)
    track["frame_valid"] = track["frame_valid"].astype(bool) & finite
    track["betas"] = track["betas"].astype(np.float32)
    return track


@dataclass
class Splits:
    """Frame ranges of a clip, first and last frame included.

    Attributes:
        test: blocks that only `test` opens.
        validation: blocks for every choice made while training.
        gap: frames dropped on each side of every test block.
        reference: the frame whose photo stands for the person in validation and test; None takes the first training
            frame.
    """

    test: list[tuple[int, int]] = field(default_factory=list)
    validation: list[tuple[int, int]] = field(default_factory=list)
    gap: int = 0
    reference: int | None = None

    @classmethod
    def read(cls, path: Path, num_frames: int) -> Splits:
        """Read `NAME.splits.yaml`; without one the last tenth of the clip validates and nothing is test."""
        if not path.is_file():
            first = num_frames - max(num_frames // 10, 1)
            return cls(validation=[(first, num_frames - 1)])
        known = {"test", "validation", "gap", "reference"}
        content = OmegaConf.to_container(OmegaConf.load(path))
        unknown = set(content) - known
        if unknown:
            raise ValueError(f"{path}: unknown key {sorted(unknown)[0]}; known are {', '.join(sorted(known))}")
        return cls(
            test=[(int(a), int(b)) for a, b in content.get("test", [])],
            validation=[(int(a), int(b)) for a, b in content.get("validation", [])],
            gap=int(content.get("gap", 0)),
            reference=content.get("reference"),
        )

    def training_mask(self, num_frames: int) -> np.ndarray:
        """`[T]` bool: frames that training may read."""
        mask = np.ones(num_frames, dtype=bool)
        for first, last in self.test:
            mask[max(first - self.gap, 0) : last + self.gap + 1] = False
        for first, last in self.validation:
            mask[first : last + 1] = False
        return mask


def _decode_video(path: Path, gray: bool, window: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
    """All frames of a video, cut to `window`, `[T,h,w,3]` (or `[T,h,w,1]`) uint8."""
    import av

    try:
        with av.open(str(path)) as container:
            form = "gray" if gray else "rgb24"
            frames = [f.to_ndarray(format=form)[window].copy() for f in container.decode(video=0)]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"{path} cannot be decoded as video ({error}): re-encode it, for example to H.264 mp4"
        ) from error
    if not frames:
        raise ValueError(f"{path} holds no video frames: re-encode it, for example to H.264 mp4")
    stack = np.stack(frames)
    return stack[..., None] if gray else stack


def _decode_image(path: Path, gray: bool, window: tuple[slice, slice] = (slice(None), slice(None))) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        image = np.asarray(Image.open(path).convert("L" if gray else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}): save it as PNG or JPEG") from error
    return (image[..., None] if gray else image)[window][None]


class Clip:
    """One person's video (or photo) with its track, cropped to the largest square centred on the person.

    The crop is one for the whole clip, so that the camera stays static where it was. Frames are decoded once, at the
    crop's native resolution, and held in memory as uint8 (a 300-px minute of 25 fps video is 400 MB).

    Attributes:
        track: the arrays of `NAME.track.npz`, intrinsics moved to the crop's pixels.
        num_frames: T.
        size: side of the square crop in pixels.
        splits: which frames train, validate and test.
    """

    def __init__(self, path: str | Path, sidecars: str | Path | None = None) -> None:
        """Open a clip; `sidecars` is the folder of its track, mask and splits where they do not lie beside it."""
        self.path = Path(path)
        self.stem = (Path(sidecars) if sidecars else self.path.parent) / self.path.stem
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no video or image at {self.path}: check the path (option data.clips, --image or --driving)"
            )
        self.is_image = self.path.suffix.lower() in IMAGE_SUFFIXES
        self.track = load_track(self.sidecar(".track.npz"))
        self.num_frames = len(self.track["frame_valid"])
        self.fps = float(self.track.get("fps", 25.0))
        self.splits = Splits() if self.is_image else Splits.read(self.sidecar(".splits.yaml"), self.num_frames)
        self._frames: np.ndarray | None = None
        self._masks: np.ndarray | None = None
        self.size = 0

    def sidecar(self, suffix: str) -> Path:
        """The file `NAME` + suffix that belongs to this clip."""
        return self.stem.with_name(self.stem.name + suffix)

    @property
    def name(self) -> str:
        """The file's name without suffix."""
        return self.path.stem

    def load(self) -> Clip:
        """Decode video and mask (once); moves the track's intrinsics into the square crop."""
        if self._frames is not None:
            return self
        mask_path = self.sidecar(".mask.png" if self.is_image else ".mask.mp4")
        if not mask_path.is_file():
            raise FileNotFoundError(
                f"no mask at {mask_path}: make it with `python -m tools.track {self.path} --out {self.path.parent}`"
            )
        decode = _decode_image if self.is_image else _decode_video
        masks = decode(mask_path, gray=True)
        self._check_length("mask", masks)
        x0, y0, self.size = self._crop(masks)
        window = (slice(y0, y0 + self.size), slice(x0, x0 + self.size))
        frames = decode(self.path, gray=False, window=window)
        self._check_length("video", frames)
        self._frames, self._masks = frames, np.ascontiguousarray(masks[(slice(None), *window)])
        if self._masks.shape[1:3] != frames.shape[1:3]:
            raise ValueError(f"{mask_path} is larger than the video; track it again")
        self.track["intrinsics"] = self.track["intrinsics"].copy()
        self.track["intrinsics"][:, 0, 2] -= x0
        self.track["intrinsics"][:, 1, 2] -= y0
        return self

    def _check_length(self, label: str, frames: np.ndarray) -> None:
        if len(frames) != self.num_frames:
            raise ValueError(
                f"{self.path}: the {label} has {len(frames)} frames, its track {self.num_frames}; track it again"
            )

    def release(self) -> None:
        """Free the decoded frames; the clip cannot be read any more."""
        self._frames = self._masks = None

    def _crop(self, masks: np.ndarray) -> tuple[int, int, int]:
        """Left, top and side of the largest square centred on the person's mean position over the valid frames."""
        _, height, width, _ = masks.shape
        side = min(height, width)
        weight = np.zeros((height, width))
        for mask in masks[self.track["frame_valid"], ..., 0]:  # one by one: all in float32 take a gigabyte
            weight += mask
        total = max(float(weight.sum()), 1e-6)
        centre_x = float((weight.sum(axis=0) * (np.arange(width) + 0.5)).sum()) / total
        centre_y = float((weight.sum(axis=1) * (np.arange(height) + 0.5)).sum()) / total
        left = int(np.clip(round(centre_x - side / 2), 0, width - side))
        top = int(np.clip(round(centre_y - side / 2), 0, height - side))
        return left, top, side

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
        self.load()
        side = max(round(self.size * zoom), 8)
        left = round((self.size - side) * (1 + shift[0]) / 2)
        top = round((self.size - side) * (1 + shift[1]) / 2)
        cut = np.s_[:, top : top + side, left : left + side]
        images = torch.empty(len(indices), 4, resolution, resolution)
        for begin in range(0, len(indices), 8):  # a long block in float32 at the video's size takes half a gigabyte
            few = indices[begin : begin + 8]
            stacked = np.concatenate([self._frames[few][cut], self._masks[few][cut]], axis=-1)
            part = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
            if side != resolution:
                part = F.interpolate(
                    part, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False
                )
            images[begin : begin + 8] = part
        intrinsics = torch.from_numpy(self.track["intrinsics"][indices])
        scale = resolution / side
        offset = intrinsics.new_tensor([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
        resize = intrinsics.new_tensor([[scale, 0, 0], [0, scale, 0], [0, 0, 1]])
        return images[:, :3].clamp(0, 1), images[:, 3:].clamp(0, 1), resize @ offset @ intrinsics

    def training_frames(self) -> np.ndarray:
        """Frame numbers that training may read: valid and outside validation, test and gaps."""
        return np.flatnonzero(self.track["frame_valid"] & self.splits.training_mask(self.num_frames))

    def reference_frame(self) -> int:
        """The frame that stands for the person in validation and test; it lies in the training part."""
        training = self.training_frames()
        if len(training) == 0:
            raise ValueError(f"{self.path}: no valid training frame; check its report, or its splits.yaml")
        if self.splits.reference is None:
            return int(training[0])
        if self.splits.reference not in training:
            raise ValueError(
                f"{self.path}: reference frame {self.splits.reference} of its splits.yaml is not a valid training frame"
            )
        return int(self.splits.reference)
