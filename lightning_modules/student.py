"""What the student's stages share: networks, named optimizers, validation, test, predict."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from visa.artifacts.media import write_video
from visa.artifacts.provenance import SYNTHETIC
from visa.artifacts.sound import Sound, has_sound
from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.shading import ShadingStage, TeacherSampling
from visa.losses.finite import check_finite_gradients
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.rollout import CausalRollout
from visa.networks.shader import VideoShader, Window
from visa.networks.splat_maps import MatteOptions
from visa.runtime.shipped import COMMANDS

Subcommand = Literal["fit", "validate", "test", "predict"]


@dataclass(frozen=True)
class Trained:
    """How AdamW trains one network.

    Attributes:
        network: whose parameters with a gradient are trained.
        learning_rate: at its highest.
        updates: optimizer steps of a training batch.
        betas: of AdamW.
    """

    network: nn.Module
    learning_rate: float
    updates: int = 1
    betas: tuple[float, float] = (0.0, 0.99)  # as in Self-Forcing


class StudentStage(ShadingStage):
    """Base of the stages that train the causal few-step student.

    Args:
        shader: architecture of student and teacher.
        codec, num_steps, body_model, remove_neck, feature_channels, reconstruction_weights, reconstructor_options, fit,
            avatar_cache, matte, seed: as in `ShadingStage`.
        teacher_weights: the second stage's file; None for random weights (tests of other architectures).
        student_weights: where the student starts, None likewise.
        noise_levels: the student's denoising steps, from 1 downwards.
        rollout_window: earlier latent frames that the student's rollouts see besides the reference, in training, test
            and predict alike.
        learning_rate: of the student's AdamW.
        loss_weights: weight of each raw term of the student; terms not named count once. `l1`, `detail`,
            `perceptual` and `fine` (perceptual, of enlarged frames) compare decoded frames with the true ones.
        guidance: w of the teacher's `u + w (c - u)`; 1 is off.
        shift: timestep shift of the teacher.
        clip_norm: largest gradient norm of each network.
        teacher_test_steps: Euler steps of the teacher's rows in `test`; the first, chosen on validation, is the row
            `teacher`. `test --full` adds 50.
        student_test_steps: further rows of `test`, the student at fewer steps: 2 of 4 uses every other noise level.
        test_window: frames that one teacher window paints in `test`.
        out: where `predict` writes.
        subcommand: what the stage is built for, set by the command line: `validate` and `predict` need the student
            alone, `test` the teacher too. The networks that they do without are neither read nor built.
    """

    shipped: str | None = "assets/weights/student.safetensors"
    network = "student"
    frozen: tuple[str, ...] = ("conditioner.", "perceptual.", "teacher.")

    def __init__(
        self,
        shader: VideoShader,
        codec: BlockCodec | WanCodec,
        num_steps: int,
        teacher_weights: str | None,
        student_weights: str | None,
        body_model: str,
        remove_neck: bool,
        feature_channels: int,
        reconstruction_weights: str,
        reconstructor_options: ReconstructorOptions,
        fit: FitOptions,
        avatar_cache: str | None,
        matte: MatteOptions | None,
        noise_levels: list[float],
        rollout_window: Window,
        learning_rate: float,
        loss_weights: dict[str, float],
        guidance: float,
        shift: float,
        clip_norm: float,
        teacher_test_steps: list[int],
        student_test_steps: list[int],
        test_window: int,
        out: str,
        seed: int,
        subcommand: Subcommand,
    ) -> None:
        super().__init__(
            num_steps, body_model, codec, reconstruction_weights, remove_neck, feature_channels, seed,
            reconstructor_options, fit, avatar_cache, matte,
        )  # fmt: skip
        self.check_shader(shader)
        self.automatic_optimization = False
        self.noise_levels, self.guidance, self.shift = list(noise_levels), guidance, shift
        self.learning_rate, self.loss_weights, self.clip_norm = learning_rate, dict(loss_weights), clip_norm
        self.teacher_test_steps, self.student_test_steps = list(teacher_test_steps), list(student_test_steps)
        if odd := [steps for steps in student_test_steps if steps < 1 or len(noise_levels) % steps]:
            raise ValueError(f"student_test_steps {odd[0]} does not divide the {len(noise_levels)} noise_levels")
        self.test_window, self.out, self.rollout_window = test_window, out, rollout_window
        self.is_trained = subcommand == "fit"
        self.student = shader
        self.teacher: VideoShader | None = None
        if subcommand in ("fit", "test"):
            self.teacher = copy.deepcopy(shader).requires_grad_(False)
            if teacher_weights is not None:
                load_weights(self.teacher, teacher_weights, COMMANDS["teacher"])
        if student_weights is not None:
            load_weights(self.student, student_weights, COMMANDS["shader_ode"])
        self.rollout = CausalRollout(self.student, self.noise_levels, rollout_window)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in every stage; where nothing is trained, only the student's part is read."""
        if not self.is_trained:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if name.startswith("student.")}
        super().on_load_checkpoint(checkpoint)

    def trained(self) -> dict[str, Trained]:
        """The networks that are trained, by name: the attribute that holds each."""
        return {"student": Trained(self.student, self.learning_rate)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and schedule of each network of `trained`, in its order."""
        configured: list[OptimizerLRSchedulerConfig] = []
        for one in self.trained().values():
            parameters = [p for p in one.network.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(parameters, lr=one.learning_rate, betas=one.betas, weight_decay=1e-2)
            schedule = self.schedule(optimizer, one.updates)
            configured.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}})
        return configured

    def named_optimizers(self) -> dict[str, tuple[LightningOptimizer, LRScheduler]]:
        """Optimizer and schedule of each network of `trained`."""
        pairs = zip(_listed(self.optimizers()), _listed(self.lr_schedulers()), strict=True)
        return dict(zip(self.trained(), pairs, strict=True))

    def update(self, name: str, terms: dict[str, Tensor], weights: dict[str, float]) -> None:
        """Backward, clip and step the optimizer of one network (`student`, `critic`, ...), then its schedule."""
        optimizer, schedule = self.named_optimizers()[name]
        optimizer.zero_grad()
        self.manual_backward(self.weighted_sum(terms, weights))
        network = self.trained()[name].network
        # Before they are clipped: one that is not finite would make all of them so, and none could be named.
        check_finite_gradients(network.named_parameters(prefix=name), self.step, self.origin)
        norm = nn.utils.clip_grad_norm_(network.parameters(), self.clip_norm)
        self.log(f"gradient_norm/{name}_unclipped", norm)
        optimizer.step()
        schedule.step()
        self.log(f"learning_rate/{name}", schedule.get_last_lr()[0])

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """One rollout of the validation window against the truth."""
        _, _, splat = self.read(batch)
        painted = self.paint_student(self.student, batch, self.noise_levels)
        self.log_validation(batch, batch_idx, splat, {"student": painted})

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Rows: splat, the undistilled teacher and the student at several numbers of steps."""
        assert self.report is not None
        assert self.teacher is not None
        self.test_splat(batch)
        for index, num_steps in enumerate(self.teacher_test_steps):
            name = "teacher" if index == 0 else f"teacher, {num_steps} steps"
            how = TeacherSampling(num_steps, self.test_window, self.shift, self.guidance)
            self.test_teacher(name, self.teacher, batch, how)
        self.test_student("student", self.student, batch, self.noise_levels)
        for num_steps in self.student_test_steps:
            levels = self.noise_levels[:: len(self.noise_levels) // num_steps]
            name = f"student, {num_steps} step" + "s" * (num_steps > 1)
            self.test_student(name, self.student, batch, levels)
        self.report.close_block(batch)

    def predict_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Paint the photo's person in the driver's motion, in one unbroken rollout."""
        begin, total = time.perf_counter(), batch.intrinsics.shape[1]
        chunks = self.stream(self.student, self.noise_levels).chunks(batch)
        # Written as they come: a minute of large pictures would take gigabytes.
        frames = (frame.clamp(0, 1) for painted, _ in chunks for frame in painted)
        path = write_video(self.out, frames, fps=batch.fps[0], sound=self.sound(batch), comment=SYNTHETIC)
        speed = total / (time.perf_counter() - begin)
        self.print(f"{total} frames at {speed:.1f} frames/s (photo, splat, denoising, decoding, writing)\n{path}")

    def sound(self, batch: VideoBatch) -> Sound | None:
        """Of the video that drives, from the first frame shown."""
        driving = Path(self.data().predict_input.driving or "")
        if driving.suffix.lower() == ".npz" or not has_sound(driving):
            return None
        return Sound(driving, float(batch.frame_numbers[0, 0]) / batch.fps[0])


def _listed(given: Any) -> Sequence[Any]:
    """Lightning hands a single optimizer or schedule over without its list."""
    return given if isinstance(given, list) else [given]
