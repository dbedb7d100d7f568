"""The shared video data module: clips with tracks, progressive sizes, exact data position on resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import VideoBatch
from datamodules.clip import Clip
from datamodules.retarget import retarget
from datamodules.schedule import Phase, StepSampler, check_phases, phase_at, step_generator
from networks.body import BodyParams


@dataclass
class ClipSource:
    """A training clip.

    Attributes:
        path: the video; its track and mask lie beside it.
        weight: share of training windows, relative to the other clips.
    """

    path: str = "assets/clips/webcam_man.mp4"
    weight: float = 1.0


@dataclass
class TestClip:
    """A clip that only `test` reads: the test blocks of its splits.

    Attributes:
        path: the video.
        sidecars: folder of its track, mask and splits; None where they lie beside it.
    """

    path: str
    sidecars: str | None = None


@dataclass
class Augment:
    """Changes that keep track and camera true; one draw for a window and its reference photo.

    Attributes:
        zoom: smallest crop window as a share of the clip's square (1 turns it off).
        colour: standard deviation of the random colour mixing (0 turns it off). It keeps networks that see few people
            from learning their colours by heart.
    """

    zoom: float = 0.8
    colour: float = 0.15


def _matte(frames: Tensor, masks: Tensor, background: Tensor) -> Tensor:
    return frames * masks + background.view(1, 3, 1, 1) * (1 - masks)


def _colour_matrix(rng: np.random.Generator, strength: float) -> Tensor:
    """`[3,3]` random mixing of channels near the identity, with a common gain."""
    mix = np.eye(3) * np.exp(rng.normal(0, strength)) + rng.normal(0, strength, (3, 3))
    return torch.from_numpy(mix.astype(np.float32))


class WindowReader:
    """Turns (clip, frames, reference) into a `VideoBatch` of one window."""

    def __init__(self, background: tuple[float, float, float]) -> None:
        self.background = torch.tensor(background, dtype=torch.float32)

    def read(
        self,
        clip: Clip,
        frames: np.ndarray,
        reference: int,
        resolution: int,
        reference_clip: Clip | None = None,
        rng: np.random.Generator | None = None,
        augment: Augment | None = None,
    ) -> VideoBatch:
        """Read one window `[1,T,...]`; `rng` and `augment` together turn augmentation on."""
        zoom, shift, colour = 1.0, (0.0, 0.0), torch.eye(3)
        if augment is not None and rng is not None:
            zoom = float(rng.uniform(augment.zoom, 1.0))
            shift = tuple(float(value) for value in rng.uniform(-1, 1, 2))
            colour = _colour_matrix(rng, augment.colour)
        source = reference_clip or clip
        frame_numbers = np.asarray(frames, dtype=np.int64)
        reference_numbers = np.asarray([reference], dtype=np.int64)
        pictures, masks, intrinsics = clip.window(frame_numbers, resolution, zoom, shift)
        photo, photo_mask, photo_intrinsics = source.window(reference_numbers, resolution, zoom, shift)

        def finish(images: Tensor, mask: Tensor) -> Tensor:
            mixed = torch.einsum("dc,nchw->ndhw", colour, images - 0.5) + 0.5
            return _matte(mixed.clamp(0, 1), mask, self.background)

        return VideoBatch(
            frames=finish(pictures, masks)[None],
            masks=masks[None],
            body=BodyParams.from_track(clip.track, frame_numbers).map(lambda value: value[None]),
            intrinsics=intrinsics[None],
            world_to_camera=torch.from_numpy(clip.track["world_to_camera"][frame_numbers])[None],
            valid=torch.from_numpy(clip.track["frame_valid"][frame_numbers])[None],
            reference=finish(photo, photo_mask),
            reference_mask=photo_mask,
            reference_body=BodyParams.from_track(source.track, reference_numbers),
            reference_intrinsics=photo_intrinsics,
            reference_world_to_camera=torch.from_numpy(source.track["world_to_camera"][reference_numbers]),
            background=self.background[None],
            names=[clip.name],
            frame_numbers=torch.from_numpy(frame_numbers)[None],
            reference_numbers=torch.from_numpy(reference_numbers),
        )


def collate(windows: list[VideoBatch]) -> VideoBatch:
    """Concatenate windows of one size along B."""
    merged = {}
    for name in VideoBatch.__dataclass_fields__:
        values = [getattr(window, name) for window in windows]
        if isinstance(values[0], Tensor):
            merged[name] = torch.cat(values)
        elif isinstance(values[0], BodyParams):
            merged[name] = BodyParams.cat(values)
        else:
            merged[name] = [item for value in values for item in value]
    return VideoBatch(**merged)


class TrainingWindows(Dataset[VideoBatch]):
    """The batch of step k on rank r, a function of (seed, k, r) alone."""

    def __init__(
        self,
        clips: list[Clip],
        weights: list[float],
        phases: list[Phase],
        reader: WindowReader,
        augment: Augment,
        seed: int,
        rank: int,
    ) -> None:
        self.clips, self.phases, self.reader, self.augment, self.seed, self.rank = (
            clips,
            phases,
            reader,
            augment,
            seed,
            rank,
        )
        self.weights = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.frames = [clip.training_frames() for clip in clips]

    def _window(self, clip: int, num_frames: int, rng: np.random.Generator) -> np.ndarray:
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
        first = int(rng.integers(starts[choice]))
        return long_enough[choice][first : first + num_frames]

    def _reference(self, clip: int, window: np.ndarray, rng: np.random.Generator) -> int:
        """A training frame far in time: the farther half of the clip's training frames."""
        frames = self.frames[clip]
        order = np.argsort(np.abs(frames - int(window[len(window) // 2])), kind="stable")
        return int(rng.choice(frames[order[len(order) // 2 :]]))

    def __getitem__(self, step: int) -> VideoBatch:
        phase = phase_at(self.phases, step)
        rng = step_generator(self.seed, step, self.rank)
        windows = []
        for _ in range(phase.batch_size):
            index = int(rng.choice(len(self.clips), p=self.weights))
            window = self._window(index, phase.num_frames, rng)
            reference = self._reference(index, window, rng)
            windows.append(
                self.reader.read(self.clips[index], window, reference, phase.resolution, rng=rng, augment=self.augment)
            )
        return collate(windows)


class FixedWindows(Dataset[VideoBatch]):
    """Listed windows without augmentation: validation and test."""

    def __init__(self, windows: list[tuple[Clip, np.ndarray]], reader: WindowReader, resolution: int) -> None:
        self.windows, self.reader, self.resolution = windows, reader, resolution

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> VideoBatch:
        clip, frames = self.windows[index]
        return self.reader.read(clip, frames, clip.reference_frame(), self.resolution)


@dataclass
class PredictInput:
    """One photo and a motion.

    Attributes:
        image: the photo; its track lies beside it, or is made with the `track` extra.
        driving: a `.track.npz`.
        num_frames: read at most so many frames of the motion; None takes all.
    """

    image: str | None = None
    driving: str | None = None
    num_frames: int | None = None


class VideoDataModule(lightning.LightningDataModule):
    """Clips -> batches for every stage.

    Args:
        clips: training clips; validation and test read the parts that their splits keep apart.
        test_clips: clips that only `test` reads; a missing file is left out with a line that says so.
        num_steps: training batches of the whole run; it ends the run.
        schedule: progressive sizes by batch index.
        background: colour behind the matted person, [0,1].
        augment: augmentation of training windows.
        validation_windows: windows read from the validation blocks.
        validation_frames: T of each.
        resolution: side of validation, test and predict pictures.
        test_stride: read every n-th frame of a test block (`test --quick` sets 4).
        num_workers: loader processes; 0 reads in the training process, which is fastest while clips fit in memory.
        seed: of the sampler.
        body_model: the SMPL-X-format file that the tracks are fits of.
        predict: photo and motion of `predict`.
    """

    def __init__(
        self,
        clips: list[ClipSource] = [ClipSource()],  # noqa: B006, B008 (read only; a yaml default is a value)
        test_clips: list[TestClip] = [],  # noqa: B006
        num_steps: int = 1000,
        schedule: list[Phase] = [Phase()],  # noqa: B006, B008
        background: tuple[float, float, float] = (0.5, 0.5, 0.5),
        augment: Augment = Augment(),  # noqa: B008
        validation_windows: int = 4,
        validation_frames: int = 9,
        resolution: int = 128,
        test_stride: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        body_model: str = "assets/body/smplx_anny.npz",
        predict: PredictInput = PredictInput(),  # noqa: B008
    ) -> None:
        super().__init__()
        if not clips:
            raise ValueError("data.clips is empty: name at least one clip")
        self.sources, self.test_sources = clips, test_clips
        self.num_steps, self.phases = num_steps, check_phases(schedule)
        self.augment, self.resolution, self.test_stride = augment, resolution, test_stride
        self.validation_windows, self.validation_frames = validation_windows, validation_frames
        self.num_workers, self.seed, self.predict_input = num_workers, seed, predict
        self.body_model = body_model
        self.reader = WindowReader(background)
        self.clips: list[Clip] = []
        self.extra_clips: list[Clip] = []

    def setup(self, stage: str) -> None:
        """Open the clips of a subcommand and decode them."""
        if stage != "predict" and not self.clips:
            self.clips = [Clip(source.path).load() for source in self.sources]
        if stage == "test":
            for source in self.test_sources:
                if Path(source.path).is_file():
                    self.extra_clips.append(Clip(source.path, source.sidecars).load())
                else:
                    rank_zero_info(f"test clip {source.path} is not on this machine: its rows are left out")

    def train_dataloader(self) -> DataLoader:
        """One item a step; a resumed run goes on at the step that its checkpoint had finished."""
        trainer = self.trainer
        start = getattr(trainer.lightning_module, "step", 0) if trainer is not None else 0
        rank = trainer.global_rank if trainer is not None else 0
        weights = [source.weight for source in self.sources]
        dataset = TrainingWindows(self.clips, weights, self.phases, self.reader, self.augment, self.seed, rank)
        sampler = StepSampler(self.num_steps, start)
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Windows spread evenly over the validation blocks."""
        windows = []
        for clip in self.clips:
            for first, last in clip.splits.validation:
                starts = np.linspace(
                    first, max(first, last - self.validation_frames + 1), self.validation_windows
                ).astype(int)
                windows += [
                    (clip, np.arange(start, min(start + self.validation_frames, last + 1)))
                    for start in np.unique(starts)
                ]
        return DataLoader(FixedWindows(windows, self.reader, self.resolution), batch_size=None)

    def test_dataloader(self) -> DataLoader:
        """Each test block whole, B = 1; clips that never train come after the split clips."""
        windows = [
            (clip, np.arange(first, last + 1, self.test_stride))
            for clip in [*self.clips, *self.extra_clips]
            for first, last in clip.splits.test
        ]
        if not windows:
            raise ValueError("no test block: give the clip a splits.yaml with `test`, or set data.test_clips")
        return DataLoader(FixedWindows(windows, self.reader, self.resolution), batch_size=None)

    def predict_dataloader(self) -> DataLoader:
        """The photo with the motion put on it, one window."""
        if not self.predict_input.image or not self.predict_input.driving:
            raise ValueError("predict needs --image PHOTO and --driving MOTION.track.npz")
        source = self.predict_input
        batch = retarget(source.image, source.driving, self.reader, self.resolution, source.num_frames, self.body_model)
        return DataLoader([batch], batch_size=None)
