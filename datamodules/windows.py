"""From clips to windows: what one batch reads, for training (drawn), validation and test (listed)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from visa.datamodules.augment import Augment, draw, mirror_body, mirror_camera, plain
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.decode import BrokenVideo
from visa.datamodules.foreground import cleaned
from visa.datamodules.references import ReferencePhoto, choose_references
from visa.datamodules.schedule import Phase, phase_at, start_of_rank, step_generator
from visa.networks.body import BodyParams

MOST_DAMAGED_WINDOWS = 20  # a batch; more is no accident


def _matte(frames: Tensor, masks: Tensor, background: Tensor) -> Tensor:
    return frames * masks + background.view(1, 3, 1, 1) * (1 - masks)


class WindowReader:
    """Turns (clip, frames, reference) into a `VideoBatch` of one window.

    Args:
        background: colour behind the matted person.
        expressions: `mirrored_expressions` of the tracks' body model; needed where augmentation mirrors.
    """

    def __init__(self, background: tuple[float, float, float], expressions: Tensor | None = None) -> None:
        self.background = torch.tensor(background, dtype=torch.float32)
        self.expressions = expressions

    def read(
        self,
        clip: Clip,
        frames: np.ndarray,
        reference: int,
        resolution: int,
        reference_clip: Clip | None = None,
        rng: np.random.Generator | None = None,
        augment: Augment | None = None,
        crop_reference: bool = True,
        fine: int | None = None,
        is_cleaned: bool = False,
    ) -> VideoBatch:
        """Read one window `[1,T,...]`; `rng` and `augment` together turn augmentation on.

        With `crop_reference` False the photo is not cropped, whatever is drawn; `fine` px is the side of
        `fine_reference`; with `is_cleaned` the photo's matte is made finer, and its edges lose what lay behind them.
        """
        change = plain(self.background) if augment is None or rng is None else draw(augment, self.background, rng)
        source = reference_clip or clip
        frame_numbers = np.asarray(frames, dtype=np.int64)
        reference_numbers = np.asarray([reference], dtype=np.int64)
        pictures, masks, intrinsics = clip.window(frame_numbers, resolution, change.zoom, change.shift)
        crop = (change.photo_zoom, change.photo_shift) if crop_reference else (1.0, (0.0, 0.0))
        photo, photo_mask, photo_intrinsics = source.window(reference_numbers, resolution, *crop)
        if is_cleaned:
            photo, photo_mask = cleaned(photo, photo_mask)

        def finish(images: Tensor, mask: Tensor, colour: Tensor, background: Tensor) -> Tensor:
            mixed = torch.einsum("dc,nchw->ndhw", colour, images - 0.5) + 0.5
            return _matte(mixed.clamp(0, 1), mask, background)

        look = (change.colour, change.background)
        fine_photo = fine_mask = None
        if fine is not None:
            fine_photo, fine_mask, _ = source.window(reference_numbers, fine, *crop)
            if is_cleaned:
                fine_photo, fine_mask = cleaned(fine_photo, fine_mask)
            fine_photo = finish(fine_photo, fine_mask, *look)

        batch = VideoBatch(
            frames=finish(pictures, masks, *look)[None],
            masks=masks[None],
            body=BodyParams.from_track(clip.track, frame_numbers).map(lambda value: value[None]),
            intrinsics=intrinsics[None],
            world_to_camera=torch.from_numpy(clip.track["world_to_camera"][frame_numbers])[None],
            valid=torch.from_numpy(clip.track["frame_valid"][frame_numbers])[None],
            reference=finish(photo, photo_mask, *look),
            reference_mask=photo_mask,
            reference_body=BodyParams.from_track(source.track, reference_numbers),
            reference_intrinsics=photo_intrinsics,
            reference_world_to_camera=torch.from_numpy(source.track["world_to_camera"][reference_numbers]),
            plain_reference=finish(photo, photo_mask, torch.eye(3), self.background),
            plain_background=self.background[None],
            colour=change.colour[None],
            background=change.background[None],
            names=[clip.name],
            frame_numbers=torch.from_numpy(frame_numbers)[None],
            reference_numbers=torch.from_numpy(reference_numbers),
            fps=[clip.fps],
            fine_reference=fine_photo,
            fine_reference_mask=fine_mask,
        )
        return self._mirrored(batch) if change.is_mirrored else batch

    def read_photo(self, photo: ReferencePhoto) -> VideoBatch:
        """A window of one frame that is its own reference, as training reads it but for colours and background."""
        batch = self.read(photo.clip, np.asarray([photo.frame]), photo.frame, photo.resolution)
        return self._mirrored(batch) if photo.is_mirrored else batch

    def _mirrored(self, batch: VideoBatch) -> VideoBatch:
        """Frames, photo, tracks and cameras as in a mirror."""
        assert self.expressions is not None
        width = batch.frames.shape[-1]
        intrinsics, camera = mirror_camera(batch.intrinsics, batch.world_to_camera, width)
        photo_intrinsics, photo_camera = mirror_camera(
            batch.reference_intrinsics, batch.reference_world_to_camera, width
        )
        return replace(
            batch,
            frames=batch.frames.flip(-1),
            masks=batch.masks.flip(-1),
            body=mirror_body(batch.body, self.expressions),
            intrinsics=intrinsics,
            world_to_camera=camera,
            reference=batch.reference.flip(-1),
            reference_mask=batch.reference_mask.flip(-1),
            plain_reference=batch.plain_reference.flip(-1),
            reference_body=mirror_body(batch.reference_body, self.expressions),
            reference_intrinsics=photo_intrinsics,
            reference_world_to_camera=photo_camera,
        )


def collate(windows: list[VideoBatch]) -> VideoBatch:
    """Concatenate windows of one size along B."""
    merged: dict[str, Any] = {}
    for name in VideoBatch.__dataclass_fields__:
        values = [getattr(window, name) for window in windows]
        if isinstance(values[0], Tensor):
            merged[name] = torch.cat(values)
        elif isinstance(values[0], BodyParams):
            merged[name] = BodyParams.cat(values)
        elif values[0] is None:
            merged[name] = None
        else:
            merged[name] = [item for value in values for item in value]
    return VideoBatch(**merged)


class TrainingWindows(Dataset[VideoBatch]):
    """The batch of step k on rank r, a function of (seed, k, r, world size) alone.

    A window whose frames turn out to be damaged is drawn again from the same random numbers.

    Args:
        clips: each with at least one training frame.
        weights: share of windows of each clip, relative to the others.
        phases: sizes by step.
        reader: turns draws into pictures.
        augment: augmentation of windows.
        seed: of all draws.
        rank: of this process.
        world_size: number of processes.
        cross_clip: share of windows whose reference comes from another clip of the same person, where there is one.
        references: frames of each clip that reference photos are drawn from, read whole; None draws from all training
            frames, and crops the photo as its window.
    """

    def __init__(
        self,
        clips: list[Clip],
        weights: list[float],
        phases: list[Phase],
        reader: WindowReader,
        augment: Augment,
        seed: int,
        rank: int,
        world_size: int = 1,
        cross_clip: float = 0.5,
        references: int | None = None,
    ) -> None:
        self.clips, self.phases, self.reader, self.augment = clips, phases, reader, augment
        self.seed, self.rank, self.world_size, self.cross_clip = seed, rank, world_size, cross_clip
        self.weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.frames = [clip.training_frames() for clip in clips]
        self.crop_reference = references is None
        self.photos = self.frames if references is None else [choose_references(clip, references) for clip in clips]
        people = [clip.person for clip in clips]
        self.others = [
            [j for j, other in enumerate(people) if other == person and j != i] for i, person in enumerate(people)
        ]

    def _window(self, clip: int, num_frames: int, step: int, rng: np.random.Generator) -> np.ndarray:
        """`[num_frames]` consecutive training frames; a clip with no run so long is played forth and back."""
        frames = self.frames[clip]
        runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
        long_enough = [run for run in runs if len(run) >= num_frames]
        if not long_enough:
            run = max(runs, key=len)
            bounce = np.concatenate([run, run[-2:0:-1]]) if len(run) > 1 else run
            return np.resize(bounce, num_frames)
        starts = np.asarray([len(run) - num_frames + 1 for run in long_enough])
        choice = rng.choice(len(long_enough), p=starts / starts.sum())
        first = start_of_rank(int(starts[choice]), step, self.rank, self.world_size, rng)
        return long_enough[choice][first : first + num_frames]

    def _reference(self, clip: int, window: np.ndarray, rng: np.random.Generator) -> tuple[Clip, int]:
        """A photo far in time: one of the farther half of the clip's, or any of another clip's."""
        if self.others[clip] and rng.random() < self.cross_clip:
            other = int(rng.choice(self.others[clip]))
            return self.clips[other], int(rng.choice(self.photos[other]))
        photos = self.photos[clip]
        order = np.argsort(np.abs(photos - int(window[len(window) // 2])), kind="stable")
        return self.clips[clip], int(rng.choice(photos[order[len(order) // 2 :]]))

    def _draw(self, phase: Phase, step: int, rng: np.random.Generator) -> VideoBatch:
        clip = int(rng.choice(len(self.clips), p=self.weights))
        window = self._window(clip, phase.num_frames, step, rng)
        reference_clip, reference = self._reference(clip, window, rng)
        draw = reference_clip, rng, self.augment, self.crop_reference
        return self.reader.read(self.clips[clip], window, reference, phase.resolution, *draw)

    def __getitem__(self, step: int) -> VideoBatch:
        phase = phase_at(self.phases, step)
        rng = step_generator(self.seed, step, self.rank)
        windows: list[VideoBatch] = []
        for _ in range(phase.batch_size + MOST_DAMAGED_WINDOWS):
            try:
                windows.append(self._draw(phase, step, rng))
            except BrokenVideo as error:
                warnings.warn(f"a window is drawn again: {error}", stacklevel=2)
            if len(windows) == phase.batch_size:
                return collate(windows)
        raise BrokenVideo(f"step {step}: {MOST_DAMAGED_WINDOWS} windows in a row could not be read; check data.clips")


class FixedWindows(Dataset[VideoBatch]):
    """Listed windows without augmentation: validation and test."""

    def __init__(self, windows: list[tuple[Clip, np.ndarray]], reader: WindowReader, resolution: int) -> None:
        self.windows, self.reader, self.resolution = windows, reader, resolution

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> VideoBatch:
        clip, frames = self.windows[index]
        return self.reader.read(clip, frames, clip.reference_frame(), self.resolution)
