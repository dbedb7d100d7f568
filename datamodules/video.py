"""The shared video data module: clips with tracks, progressive sizes, exact data position on resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import lightning
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from visa.datamodules.augment import Augment, mirrored_expressions
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.decode import BrokenVideo
from visa.datamodules.own_pose import Head
from visa.datamodules.references import ReferencePhoto
from visa.datamodules.retarget import retarget
from visa.datamodules.schedule import Phase, StepSampler, check_phases, describe
from visa.datamodules.sources import ClipSource, Opened, clip_files, name_apart, open_sources
from visa.datamodules.windows import FixedWindows, TrainingWindows, WindowReader
from visa.networks.body import BodyModel

OUTPUT_SIZE = 512  # px of what `predict` writes


@dataclass
class TestClip:
    """A clip that only `test` reads: the test blocks of its splits.

    Attributes:
        path: the video, or a folder or pattern of videos.
        sidecars: folder of its track, mask and splits; None where they lie beside it.
    """

    path: str
    sidecars: str | None = None


# What every stage trains on and is tested on unless told otherwise: the real clip and rendered people, of whom four
# never train.
SAMPLE_CLIPS = (ClipSource(), ClipSource(path="assets/captures"))
SAMPLE_TEST_CLIPS = (TestClip("assets/captures/test"),)


@dataclass
class PredictInput:
    """Photos of one person and a motion.

    Attributes:
        image: the photo or photos, or a clip; the track lies beside it, or is made with the `track` extra.
        photos: how many frames of a clip are photos; None takes 8.
        driving: a `.track.npz`, or a video.
        num_frames: read at most so many frames of the motion; None takes all.
        size: side of the pictures in px, at least `data.resolution`: painting keeps that one, and the photo is read at
            this one. None for OUTPUT_SIZE, or `data.resolution` where that is larger.
        head: "photo": head and eyes rest as the photo's and turn from there as the driver's; "driver": they turn to the
            camera as the driver's do.
    """

    image: str | list[str] | None = None
    photos: int | None = None
    driving: str | None = None
    num_frames: int | None = None
    size: int | None = None
    head: Head = "photo"


class VideoDataModule(lightning.LightningDataModule):
    """Clips -> batches for every stage.

    Args:
        clips: training clips, folders or patterns of clips; validation and test read the parts that their splits keep
            apart. None takes this repository's real clip (two windows in three) and rendered people.
        test_clips: clips that only `test` reads; a missing file is left out with a line that says so. Beside the
            clips of this repository None takes its four rendered people who never train; beside other clips, none.
        num_steps: training batches of the whole run; it ends the run.
        schedule: progressive sizes by batch index.
        background: colour behind the matted person, [0,1].
        augment: augmentation of training windows.
        cross_clip: share of training windows whose reference photo comes from another clip of the same person, where
            there is one (key `person` of the splits).
        references: reference photos of training windows come from so many frames of each clip, far apart in time and
            pose (`datamodules.references`), and are not cropped with their windows: a photo that comes again needs one
            avatar (docs/avatar_cache.md). None draws any training frame, cropped as its window.
        validation_windows: most windows read from each validation block; they do not overlap.
        validation_frames: T of each.
        resolution: side of validation, test and predict pictures.
        test_stride: read every n-th frame of a test block (`test --quick` sets 4).
        test_frames: read at most so many of them, from the middle of each block; None reads all (`test` by itself sets
            16, see its help).
        num_workers: loader processes; 0 reads in the training process, which is fastest while clips fit in memory.
        cache_gb: training clips are decoded into memory, in the order listed, as long as they fit in so many GB; the
            others are read from their files.
        seed: of the sampler.
        body_model: the SMPL-X-format file that the tracks are fits of.
        predict: photo and motion of `predict`.
    """

    def __init__(
        self,
        clips: list[ClipSource] | None = None,
        test_clips: list[TestClip] | None = None,
        num_steps: int = 1000,
        schedule: list[Phase] = [Phase()],  # noqa: B006, B008
        background: tuple[float, float, float] = (0.5, 0.5, 0.5),
        augment: Augment = Augment(),  # noqa: B008
        cross_clip: float = 0.5,
        references: int | None = None,
        validation_windows: int = 4,
        validation_frames: int = 9,
        resolution: int = 128,
        test_stride: int = 1,
        test_frames: int | None = None,
        num_workers: int = 0,
        cache_gb: float = 2.0,
        seed: int = 0,
        body_model: str = "assets/body/smplx_anny.npz",
        predict: PredictInput = PredictInput(),  # noqa: B008
    ) -> None:
        super().__init__()
        if clips is not None and not clips:
            raise ValueError("data.clips is empty: name at least one clip")
        if not 0 <= cross_clip <= 1:
            raise ValueError(f"data.cross_clip is {cross_clip}: give a share between 0 and 1")
        if test_stride < 1 or (test_frames is not None and test_frames < 1):
            raise ValueError(f"data.test_stride is {test_stride}, data.test_frames {test_frames}: give 1 or more")
        if references is not None and references < 1:
            raise ValueError(f"data.references is {references}: give 1 or more photos a clip, or null for any frame")
        self.sources = list(SAMPLE_CLIPS) if clips is None else clips
        if test_clips is None:
            test_clips = list(SAMPLE_TEST_CLIPS) if clips is None else []
        self.test_sources = test_clips
        self.num_steps, self.phases = num_steps, check_phases(schedule)
        self.augment, self.resolution, self.test_stride = augment, resolution, test_stride
        self.test_frames = test_frames
        self.validation_windows, self.validation_frames = validation_windows, validation_frames
        self.num_workers, self.seed, self.predict_input = num_workers, seed, predict
        self.cache_gb, self.cross_clip, self.references = cache_gb, cross_clip, references
        self.body_model = body_model
        mirror = mirrored_expressions(BodyModel.from_file(body_model).expression_names) if augment.flip > 0 else None
        self.reader = WindowReader(background, mirror)
        self.opened: list[Opened] = []
        self.extra_clips: list[Clip] = []
        self.missing_tests: list[Path] = []
        self.num_skipped = 0
        self._sizes: tuple[int, ...] = ()

    @property
    def clips(self) -> list[Clip]:
        """The clips of `data.clips`, folders and patterns spelled out, without those that cannot be read."""
        return [entry.clip for entry in self.opened]

    def clip_named(self, name: str) -> Clip:
        """The clip of this name, of those that train and those that only `test` reads."""
        return next(clip for clip in [*self.clips, *self.extra_clips] if clip.name == name)

    def setup(self, stage: str) -> None:
        """Check the clips of a subcommand; those that `fit` reads are decoded into memory as far as they fit."""
        if stage != "predict" and not self.opened:
            self.opened, self.num_skipped = open_sources(self.sources)
        if stage == "fit":
            self._decode_into_memory()
        if stage == "test" and not self.extra_clips:
            for source in self.test_sources:
                files, _ = clip_files(source.path, source.sidecars)
                for file in files:
                    if file.is_file():
                        self.extra_clips.append(Clip(file, source.sidecars))
                        self.extra_clips[-1].check()
                    else:
                        self.missing_tests.append(file)
                        rank_zero_info(f"test clip {file} is not on this machine: its rows are left out")
            name_apart([*self.clips, *self.extra_clips])

    def _decode_into_memory(self) -> None:
        """Decode training clips as long as they fit; one that turns out to be damaged is left out."""
        room = self.cache_gb * 1e9
        for entry in list(self.opened):
            if entry.weight == 0 or not entry.clip.splits.train or entry.clip.loaded_bytes > room:
                continue
            try:
                room -= entry.clip.load().loaded_bytes
            except BrokenVideo as error:
                self.opened.remove(entry)
                self.num_skipped += 1
                rank_zero_warn(f"clip left out: {error}")
                if not self.opened:
                    raise

    def train_dataloader(self) -> DataLoader:
        """One item a step; a resumed run goes on at the step that its checkpoint had finished."""
        trainer = self.trainer
        start = getattr(trainer.lightning_module, "step", 0) if trainer is not None else 0
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        dataset = self.training_windows(rank, world_size)
        sampler = StepSampler(self.num_steps, start)
        return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=self.num_workers)

    def training_windows(self, rank: int = 0, world_size: int = 1) -> TrainingWindows:
        """Batches of one rank by step."""
        training = [entry for entry in self.opened if entry.weight > 0 and len(entry.clip.training_frames())]
        if not training:
            raise ValueError("data.clips: no clip with a valid training frame and a weight above 0 is left to train on")
        return TrainingWindows(
            [entry.clip for entry in training],
            [entry.weight for entry in training],
            self.phases,
            self.reader,
            self.augment,
            self.seed,
            rank,
            world_size,
            self.cross_clip,
            self.references,
        )

    def reference_photos(self) -> list[ReferencePhoto]:
        """Every photo that `fit` reads as a reference, in training and validation."""
        windows, sizes = self.training_windows(), sorted({phase.resolution for phase in self.phases})
        sides = [False, True] if self.augment.flip > 0 else [False]
        training = [
            ReferencePhoto(clip, int(frame), size, is_mirrored)
            for clip, frames in zip(windows.clips, windows.photos, strict=True)
            for frame in frames
            for size in sizes
            for is_mirrored in sides
        ]
        validated = [entry.clip for entry in self.opened if entry.validate and entry.clip.splits.validation]
        validation = [ReferencePhoto(clip, clip.reference_frame(), self.resolution, False) for clip in validated]
        return list(dict.fromkeys(training + validation))

    def on_after_batch_transfer(self, batch: VideoBatch, dataloader_idx: int) -> VideoBatch:  # noqa: ARG002
        """Say when the sizes of training batches change, on the console and in the logger's `data/` curves."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            sizes = (batch.frames.shape[-1], batch.frames.shape[1], batch.frames.shape[0])
            if sizes != self._sizes:
                self._sizes = sizes
                step = getattr(trainer.lightning_module, "step", 0)
                rank_zero_info(f"from step {step}: {describe(Phase(step, *sizes))}")
                names = ("data/resolution", "data/num_frames", "data/batch_size")
                for logger in trainer.loggers:
                    logger.log_metrics(dict(zip(names, map(float, sizes), strict=True)), step=trainer.global_step)
        return batch

    def val_dataloader(self) -> DataLoader:
        """Windows spread evenly over the validation blocks."""
        windows = []
        for clip in [entry.clip for entry in self.opened if entry.validate]:
            for first, last in clip.splits.validation:
                fit = (last + 1 - first) // self.validation_frames  # overlapping windows would tell the same twice
                number = min(self.validation_windows, max(fit, 1))
                starts = np.linspace(first, max(first, last - self.validation_frames + 1), number).astype(int)
                windows += [
                    (clip, np.arange(start, min(start + self.validation_frames, last + 1)))
                    for start in np.unique(starts)
                ]
        return DataLoader(FixedWindows(windows, self.reader, self.resolution), batch_size=None)

    def test_blocks(self, clip: Clip) -> list[np.ndarray]:
        """Numbers of the frames that `test` reads of each of a clip's test blocks."""
        blocks = [np.arange(first, last + 1, self.test_stride) for first, last in clip.splits.test]
        if self.test_frames is None:
            return blocks
        starts = [max(len(block) - self.test_frames, 0) // 2 for block in blocks]
        return [block[start : start + self.test_frames] for start, block in zip(starts, blocks, strict=True)]

    def test_dataloader(self) -> DataLoader:
        """Each test block, B = 1; clips that never train come after the split clips."""
        windows = [(clip, block) for clip in [*self.clips, *self.extra_clips] for block in self.test_blocks(clip)]
        if not windows and self.missing_tests:
            raise ValueError(
                f"not measured: there is no {self.missing_tests[0]}: put tracked clips there, or name others in "
                "data.test_clips"
            )
        if not windows:
            raise ValueError("no test block: give the clip a splits.yaml with `test`, or set data.test_clips")
        return DataLoader(FixedWindows(windows, self.reader, self.resolution), batch_size=None)

    def predict_dataloader(self) -> DataLoader:
        """The photo with the motion put on it, one window."""
        source = self.predict_input
        if not source.image or not source.driving:
            raise ValueError("predict needs --image PHOTO and --driving MOTION.track.npz or VIDEO")
        if source.size is not None and source.size < self.resolution:
            raise ValueError(f"--size is {source.size}: give {self.resolution} px or more, the size that is painted at")
        size = source.size or max(OUTPUT_SIZE, self.resolution)
        batch = retarget(
            source.image,
            source.driving,
            self.reader,
            self.resolution,
            source.num_frames,
            self.body_model,
            source.photos,
            None if size == self.resolution else size,
            source.head,
        )
        return DataLoader(cast("Dataset[VideoBatch]", [batch]), batch_size=None)  # a list has all that it takes
