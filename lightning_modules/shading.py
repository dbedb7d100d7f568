"""What teacher, student and adversarial stage share: conditions, sampling, validation, test, predict."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from visa.artifacts.media import sheet, side_by_side
from visa.artifacts.tensorboard import log_image, log_video
from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.evaluation.image import psnr
from visa.evaluation.report import TestReport
from visa.lightning_modules.stage import Stage
from visa.losses.image import detail_loss, l1
from visa.losses.perceptual import PerceptualDistance, enlarged
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.rollout import CausalRollout
from visa.networks.sampler import sample_bidirectional
from visa.networks.shader import ShaderCondition, Signal, VideoShader, Window
from visa.networks.splat_maps import MatteOptions, SplatMaps
from visa.runtime.avatar_cache import AvatarCache
from visa.runtime.conditioner import Conditioner
from visa.runtime.shipped import COMMANDS, build_reconstructor
from visa.runtime.stream import AvatarStream

# Chosen on validation people: finer changes of the shipped shader take pictures away from the truth (docs/results.md).
PAINTED = MatteOptions(octaves_shown=3, octaves_else=3)
SAMPLE_FRAMES = 18  # that a second sample of the student paints, as many as two windows of the teacher


@dataclass(frozen=True)
class TeacherSampling:
    """How a bidirectional teacher paints.

    Attributes:
        num_steps: Euler steps.
        window: frames at a time.
        shift: timestep shift.
        guidance: w of `u + w (c - u)`; 1 is off.
    """

    num_steps: int
    window: int
    shift: float
    guidance: float = 1.0


class ShadingStage(Stage):
    """Base of the stages that paint.

    Args:
        num_steps: training batches; the data module owns the number.
        body_model: SMPL-X-format file.
        codec: frames <-> latents.
        reconstruction_weights: the first stage's file.
        remove_neck: as the reconstruction was trained.
        feature_channels: as the reconstruction was trained.
        seed: of the noise.
        reconstructor_options: as the reconstruction was trained; None for the embedded size.
        fit: how avatars are fitted to their photo in validation, test and predict.
        avatar_cache: folder of fitted avatars (`runtime.avatar_cache`), from which training takes them too; needs
            `data.references`. None fits in validation, test and predict alone, anew each time.
        matte: what of the painted picture stands in validation, test and predict; None takes PAINTED.
    """

    frozen: tuple[str, ...] = ("conditioner.", "perceptual.")
    loss_weights: dict[str, float]
    rollout_window = Window()  # of the student's rollouts

    def __init__(
        self,
        num_steps: int,
        body_model: str,
        codec: BlockCodec | WanCodec,
        reconstruction_weights: str,
        remove_neck: bool,
        feature_channels: int,
        seed: int,
        reconstructor_options: ReconstructorOptions | None = None,
        fit: FitOptions | None = None,
        avatar_cache: str | None = None,
        matte: MatteOptions | None = None,
    ) -> None:
        super().__init__(num_steps, seed)
        self.matte = matte or PAINTED
        reconstructor = build_reconstructor(body_model, remove_neck, feature_channels, reconstructor_options)
        load_weights(reconstructor, reconstruction_weights, COMMANDS["reconstruction"])
        cache = None
        if avatar_cache is not None:
            options, fit = reconstructor_options or ReconstructorOptions(), fit or FitOptions()
            cache = AvatarCache(avatar_cache, reconstructor, options, fit, Path(body_model).name)
        self.conditioner = Conditioner(reconstructor, codec, fit, cache)
        self.perceptual = PerceptualDistance("alex")
        self.report: TestReport | None = None

    def check_shader(self, shader: VideoShader) -> None:
        """The widths that codec and reconstruction decide must be the shader's.

        Raises:
            ValueError: one is not; names it and what it must be.
        """
        reconstructor, codec = self.conditioner.reconstructor, self.codec
        decided = {
            "latent_channels": codec.latent_channels,
            "spatial_stride": codec.spatial_stride,
            "temporal_stride": codec.temporal_stride,
            "feature_channels": reconstructor.feature_channels,
            "semantic_dim": reconstructor.semantic.width,
        }
        for name, value in decided.items():
            if shader.config[name] != value:
                raise ValueError(
                    f"shader.{name} is {shader.config[name]}, but codec and reconstruction give {value}: "
                    f"set model.init_args.shader.init_args.{name} to {value}"
                )

    def on_fit_start(self) -> None:
        """A cache serves photos that come again."""
        cache = self.conditioner.cache
        if not isinstance(cache, AvatarCache):
            return
        if self.data().references is None:
            raise ValueError(
                "avatar_cache keeps avatars of photos that come again, but data.references is null: set it, to 4 say"
            )
        rank_zero_info(
            f"fitted avatars: {cache.folder}; one that is not there is made on first use "
            "(all ahead: python -m visa.tools.cache_avatars -c CONFIG)"
        )

    @property
    def codec(self) -> BlockCodec | WanCodec:
        """Frames <-> latents."""
        return self.conditioner.codec

    @torch.no_grad()
    def read(self, batch: VideoBatch) -> tuple[ShaderCondition, Tensor, SplatMaps]:
        """Condition, clean latents `[B,C,T,h,w]` and the splat of a batch."""
        condition, splat = self.conditioner(batch)
        return condition, self.codec.encode(batch.frames), splat

    def noise(self, like: Tensor, name: str, index: int = 0) -> Tensor:
        """Standard normal noise of this step; name and index as in `generator`."""
        return torch.randn(like.shape, generator=self.generator(name, index)).to(like.device)

    def paired_terms(self, sample: Tensor, splat: SplatMaps, batch: VideoBatch) -> dict[str, Tensor]:
        """L1 and contrast of detail of all decoded frames, perceptual distance of one, as it is and enlarged (`fine`).

        Where all weigh 0 nothing is decoded: at full size the decoder's graph alone would fill a GPU.
        """
        if not any(self.loss_weights.get(name, 1.0) for name in ("l1", "detail", "perceptual", "fine")):
            return {}
        frames = splat.matted(self.codec.decode(sample))
        one = int(torch.randint(frames.shape[1], (1,), generator=self.generator("perceptual_frame")))
        painted, true = frames[:, one].clamp(0, 1), batch.frames[:, one]
        return {
            "l1": l1(frames, batch.frames).mean(),
            "detail": detail_loss(frames.flatten(0, 1), batch.frames.flatten(0, 1)).mean(),
            "perceptual": self.perceptual(painted, true).mean(),
            "fine": self.perceptual(enlarged(painted), enlarged(true)).mean(),
        }

    def drop_conditions(self, condition: ShaderCondition, probabilities: dict[Signal, float]) -> ShaderCondition:
        """Guidance dropout: each signal is dropped for each sample with its own probability."""
        draws = torch.rand(len(probabilities), condition.batch_size, generator=self.generator("dropout"))
        for (name, probability), draw in zip(sorted(probabilities.items()), draws, strict=True):
            condition = condition.drop((draw < probability).to(condition.guide.device), [name])
        return condition

    @torch.no_grad()
    def paint_teacher(self, teacher: VideoShader, batch: VideoBatch, how: TeacherSampling, sample: int = 0) -> Tensor:
        """Frames `[T,3,H,W]` of the bidirectional teacher, in consecutive windows from the reference alone.

        Another `sample` is painted from other noise.
        """
        generator = torch.Generator().manual_seed(self.seed + 7919 * sample)
        painted, total = [], batch.intrinsics.shape[1]
        for first in range(0, total, how.window):
            condition, splat = self.conditioner(batch.cut(slice(first, min(first + how.window, total))))
            latents = sample_bidirectional(teacher, condition, how.num_steps, how.shift, generator, how.guidance)
            painted.append(splat.matted(self.codec.decode(latents), self.matte)[0])
        return torch.cat(painted)

    def paint_student(
        self, student: VideoShader, batch: VideoBatch, noise_levels: list[float], sample: int = 0
    ) -> Tensor:
        """Frames `[T,3,H,W]` of one unbroken causal rollout from the reference alone; another `sample`, other noise."""
        return self.stream(student, noise_levels, sample).paint(batch)[0]

    def stream(self, student: VideoShader, noise_levels: list[float], sample: int = 0) -> AvatarStream:
        """What `test` and `predict` paint through, with the noise of one sample."""
        rollout = CausalRollout(student, noise_levels, self.rollout_window)
        return AvatarStream(self.conditioner, rollout, self.seed + 7919 * sample, self.matte)

    def test_student(self, name: str, student: VideoShader, batch: VideoBatch, noise_levels: list[float]) -> None:
        """A row of one rollout, with its latency and a second sample of its first frames for its diversity."""
        assert self.report is not None
        with self.report.timed(name, batch, len(noise_levels)) as row:
            stream = self.stream(student, noise_levels)
            row.frames = stream.paint(batch)[0]
        row.latency_ms = 1000 * statistics.median(stream.chunk_seconds)
        start = batch.cut(slice(0, SAMPLE_FRAMES))  # of all frames it would take a third of a test's time and memory
        self.report.add_sample(row, batch, self.paint_student(student, start, noise_levels, sample=1))

    def test_teacher(self, name: str, teacher: VideoShader, batch: VideoBatch, how: TeacherSampling) -> None:
        """A row of consecutive windows, with a second sample of the first two for its diversity."""
        assert self.report is not None
        with self.report.timed(name, batch, how.num_steps) as row:
            row.frames = self.paint_teacher(teacher, batch, how)
        assert row.fps is not None  # the report has set it
        row.latency_ms = 1000 * min(how.window, len(row.frames)) / row.fps  # nothing is seen before a window is done
        start = batch.cut(slice(0, 2 * how.window))  # many steps take long
        self.report.add_sample(row, batch, self.paint_teacher(teacher, start, how, sample=1))

    def log_validation(self, batch: VideoBatch, batch_idx: int, splat: SplatMaps, painted: dict[str, Tensor]) -> None:
        """PSNR and perceptual distances of each row, pictures and video of the first window.

        The perceptual network is the one of the losses (`alex`): the reported one (`vgg`) is opened by `test` alone.
        """
        truth = batch.frames[0]
        rows = {"splat": splat.rgb[0], "textured": splat.textured[0], **painted}
        for name, frames in rows.items():
            frames = frames.clamp(0, 1)
            self.log(f"val/psnr_{name}", psnr(frames, truth).mean(), prog_bar=name in painted, batch_size=1)
            self.log(f"val/perceptual_{name}", self.perceptual(frames, truth).mean(), batch_size=1)
            fine = self.perceptual(enlarged(frames[::4]), enlarged(truth[::4]))  # it costs four times as much a frame
            self.log(f"val/fine_{name}", fine.mean(), batch_size=1)
        if batch_idx == 0:
            shown = {"truth": truth, **rows}
            log_image(self.loggers, "val/sheet", sheet(shown), self.step)
            log_video(
                self.loggers, "val/video", side_by_side({"photo": batch.reference[0], **shown}), batch.fps[0], self.step
            )

    def on_test_start(self) -> None:
        """Open the report."""
        self.report = self.open_report(
            "from the reference alone; student: one unbroken rollout of each block; teacher: consecutive windows",
        )

    @torch.no_grad()
    def test_splat(self, batch: VideoBatch) -> None:
        """The rows `splat` and `textured`: the frozen reconstruction, and what the shader starts from."""
        assert self.report is not None
        textured_avatar, _ = self.conditioner.avatar(batch)
        body = self.conditioner.body
        for name, avatar in (("splat", replace(textured_avatar, texture=None)), ("textured", textured_avatar)):
            with self.report.timed(name, batch, 0) as row:
                row.reasons = {
                    "diversity": "nothing is drawn at random",
                    "latency_ms": "many frames are splatted at once: see frames/s",
                }
                frames = []
                for first in range(0, batch.frames.shape[1], 16):  # all at once would be the most memory of painting
                    part = batch.cut(slice(first, first + 16))
                    maps = avatar.render(body, part.view())
                    frames.append(maps.textured[0])
                row.frames = torch.cat(frames)
