"""Stage 3: the causal student, distilled from the bidirectional teacher.

`objective: ode` regresses the end of the teacher's trajectories (CausVid); `distribution_matching` trains on the
student's own rollouts against the teacher's score, with a critic that follows the student (Self-Forcing,
arXiv:2506.08009).
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from visa.artifacts.media import write_video
from visa.artifacts.sound import Sound, has_sound
from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.shading import ShadingStage
from visa.losses.distillation import distribution_matching_loss, ode_regression_loss
from visa.losses.flow import add_noise, sample_levels, velocity_loss
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.rollout import CausalRollout
from visa.networks.sampler import integrate, shifted_levels
from visa.networks.shader import ShaderCondition, VideoShader, Window
from visa.networks.splat_maps import MatteOptions
from visa.runtime.shipped import COMMANDS


class Distillation(ShadingStage):
    """Teacher -> causal few-step student.

    Args:
        shader: architecture of student, teacher and critic.
        codec: frames <-> latents.
        num_steps: training batches, each one generator update; the data module owns the number.
        objective: `ode` or `distribution_matching`.
        teacher_weights: the second stage's file; None for random weights (tests of other architectures).
        student_weights: where the student starts, None likewise; the critic starts from the teacher.
        body_model, remove_neck, feature_channels, reconstruction_weights, reconstructor_options: as the reconstruction
            was trained.
        fit: how avatars are fitted to their photo in validation, test and predict; training takes them as the network
            gives them, or from the cache.
        avatar_cache, matte: as in `ShadingStage`.
        noise_levels: the student's denoising steps, from 1 downwards.
        rollout_window: earlier latent frames that the student's rollouts see besides the reference, in training, test
            and predict alike.
        learning_rate, critic_learning_rate: of AdamW.
        critic_updates: critic updates for each generator update, on the generator's rollout.
        loss_weights: weight of each raw term of the student; terms not named count once. `l1`, `detail`,
            `perceptual` and `fine` (perceptual, of enlarged frames) compare decoded frames with the true ones.
        guidance: w of the teacher's `u + w (c - u)`; 1 is off.
        shift: timestep shift of teacher and critic.
        loss_floor: of the critic, as in `Teacher`.
        loss_huber: c of the pseudo-Huber error of critic and trajectory regression; 0 for the squared one.
        trajectory_steps: Euler steps of the teacher's trajectories (`ode`).
        clip_norm: largest gradient norm of each network.
        teacher_test_steps: Euler steps of the teacher's rows in `test`; the first, chosen on validation, is the row
            `teacher`.
        student_test_steps: further rows of `test`, the student at fewer steps: 2 of 4 uses every other noise level.
        test_window: frames that one teacher window paints in `test`.
        out: where `predict` writes.
        seed: of the noise.
        subcommand: what the stage is built for, set by the command line: `validate` and `predict` need the student
            alone, `test` the teacher too. The networks that they do without are neither read nor built.
    """

    stage = "shader"
    shipped = "assets/weights/student.safetensors"
    frozen = ("conditioner.", "perceptual.", "teacher.")

    def __init__(
        self,
        shader: VideoShader,
        codec: BlockCodec | WanCodec,
        num_steps: int = 100,
        objective: Literal["ode", "distribution_matching"] = "distribution_matching",
        teacher_weights: str | None = "assets/weights/teacher.safetensors",
        student_weights: str | None = "assets/weights/student.safetensors",
        body_model: str = "assets/body/smplx_anny.npz",
        remove_neck: bool = True,
        feature_channels: int = 16,
        reconstruction_weights: str = "assets/weights/reconstruction.safetensors",
        reconstructor_options: ReconstructorOptions = ReconstructorOptions(),  # noqa: B008
        fit: FitOptions = FitOptions(),  # noqa: B008
        avatar_cache: str | None = None,
        matte: MatteOptions | None = None,
        noise_levels: list[float] = [1.0, 0.9, 0.75, 0.5],  # noqa: B006
        rollout_window: Window = Window(),  # noqa: B008
        learning_rate: float = 2e-5,
        critic_learning_rate: float = 4e-5,
        critic_updates: int = 2,
        loss_weights: dict[str, float] = {"l1": 10.0, "perceptual": 1.0},  # noqa: B006
        guidance: float = 1.0,
        shift: float = 3.0,
        loss_floor: float = 0.5,
        loss_huber: float = 0.1,
        trajectory_steps: int = 8,
        clip_norm: float = 1.0,
        teacher_test_steps: list[int] = [1, 2, 4, 50],  # noqa: B006
        student_test_steps: list[int] = [2, 1],  # noqa: B006
        test_window: int = 9,
        out: str = "out.mp4",
        seed: int = 0,
        subcommand: Literal["fit", "validate", "test", "predict"] = "fit",
    ) -> None:
        super().__init__(
            num_steps, body_model, codec, reconstruction_weights, remove_neck, feature_channels, seed,
            reconstructor_options, fit, avatar_cache, matte,
        )  # fmt: skip
        self.automatic_optimization = False
        if objective == "ode":
            self.stage, self.shipped = "shader_ode", "assets/weights/student.safetensors"
        self.objective, self.noise_levels, self.guidance, self.shift = objective, list(noise_levels), guidance, shift
        self.learning_rate, self.critic_learning_rate, self.critic_updates = (
            learning_rate,
            critic_learning_rate,
            critic_updates,
        )
        self.loss_floor, self.loss_huber, self.loss_weights = loss_floor, loss_huber, dict(loss_weights)
        self.trajectory_steps, self.clip_norm = trajectory_steps, clip_norm
        self.teacher_test_steps, self.student_test_steps = list(teacher_test_steps), list(student_test_steps)
        if odd := [steps for steps in student_test_steps if steps < 1 or len(noise_levels) % steps]:
            raise ValueError(f"student_test_steps {odd[0]} does not divide the {len(noise_levels)} noise_levels")
        self.test_window, self.out, self.rollout_window = test_window, out, rollout_window
        self.is_trained = subcommand == "fit"
        self.student = shader
        self.teacher = copy.deepcopy(shader).requires_grad_(False) if subcommand in ("fit", "test") else None
        if self.teacher is not None and teacher_weights is not None:
            load_weights(self.teacher, teacher_weights, COMMANDS["teacher"])
        if student_weights is not None:
            load_weights(self.student, student_weights, COMMANDS["shader_ode"])
        has_critic = self.is_trained and objective == "distribution_matching"
        self.critic = copy.deepcopy(self.teacher).requires_grad_(True) if has_critic else None
        self.rollout = CausalRollout(self.student, self.noise_levels, rollout_window)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As in every stage; where nothing is trained, only the student's part is read."""
        if not self.is_trained:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: value for name, value in state.items() if name.startswith("student.")}
        super().on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> list[dict[str, Any]]:
        """AdamW for the student, and for the critic where there is one; momentum as in Self-Forcing."""
        betas = (0.9, 0.98) if self.objective == "ode" else (0.0, 0.99)
        trained = [(self.student, self.learning_rate, 1)]
        if self.critic is not None:
            trained.append((self.critic, self.critic_learning_rate, self.critic_updates))
        configured = []
        for network, rate, updates in trained:
            optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=betas, weight_decay=1e-2)
            configured.append(
                {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer, updates)}}
            )
        return configured

    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """One generator update, then the critic's updates on the same rollout."""
        condition, _, splat = self.read(batch)
        terms, sample = self.ode_terms(condition) if self.objective == "ode" else self.matching_terms(condition)
        self.update("student", terms | self.paired_terms(sample, splat, batch), self.loss_weights)
        if self.critic is not None:
            self.critic_step(condition, sample.detach())
        self.step += 1

    def update(self, name: str, terms: dict[str, Tensor], weights: dict[str, float]) -> None:
        """Backward, clip and step the optimizer of one network (`student`, `critic`, ...), then its schedule."""
        index = self.networks().index(name)
        optimizers = self.optimizers()
        optimizer = optimizers[index] if isinstance(optimizers, list) else optimizers
        schedules = self.lr_schedulers()
        schedule = schedules[index] if isinstance(schedules, list) else schedules
        optimizer.zero_grad()
        self.manual_backward(self.weighted_sum(terms, weights))
        norm = nn.utils.clip_grad_norm_(getattr(self, name).parameters(), self.clip_norm)
        self.log(f"gradient_norm/{name}_unclipped", norm)
        optimizer.step()
        schedule.step()
        self.log(f"learning_rate/{name}", schedule.get_last_lr()[0])

    def networks(self) -> list[str]:
        """Names of the trained networks in the order of their optimizers."""
        return ["student"] if self.critic is None else ["student", "critic"]

    def ode_terms(self, condition: ShaderCondition) -> tuple[dict[str, Tensor], Tensor]:
        """Regression from states of the teacher's trajectory, each chunk at its own level (or clean, as context).

        Returns:
            the term and the student's x0.
        """
        levels = sorted({*shifted_levels(self.trajectory_steps, self.shift), *self.noise_levels}, reverse=True)
        states: dict[float, Tensor] = {}
        with torch.no_grad():
            for level, state in integrate(
                self.teacher, condition, levels, self.noise(condition.guide, 0), self.guidance
            ):
                if level in self.noise_levels or level == 0.0:
                    states[level] = state
        kept = sorted(states, reverse=True)  # the last is 0: clean
        stacked, table = torch.stack([states[level] for level in kept]), torch.tensor(kept)
        size, total = self.student.chunk_frames, condition.num_frames
        choice = torch.randint(len(kept), (condition.batch_size, -(-total // size)), generator=self.generator(1))
        # Without a noisy chunk there is nothing to learn from: the last is never clean.
        choice[:, -1] = choice[:, -1].clamp(max=len(kept) - 2)
        per_frame = choice.repeat_interleave(size, dim=1)[:, :total]
        level = table[per_frame].to(condition.guide)
        index = per_frame.to(condition.guide.device)[None, :, None, :, None, None].expand(1, *stacked.shape[1:])
        noisy = stacked.gather(0, index)[0]
        prediction = self.student(noisy, level, condition, "block_causal")
        counts = (level > 0).float()
        weight = self.codec.channel_weight()
        loss = ode_regression_loss(prediction.x0, states[0.0], counts, weight, self.loss_huber)
        return {"ode": loss}, prediction.x0

    def matching_terms(self, condition: ShaderCondition) -> tuple[dict[str, Tensor], Tensor]:
        """Distribution matching on the student's own rollout, and the rollout with its graph.

        The exit step is the same on all ranks, so that all run the same number of passes.
        """
        shared = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        exit_step = int(torch.randint(len(self.noise_levels), (1,), generator=shared))
        x = self.rollout(condition, self.generator(2), exit_step=exit_step, requires_grad=True)
        with torch.no_grad():
            level = (
                sample_levels((x.shape[0],), self.shift, self.generator(3), x.device)
                .clamp(0.02, 0.98)[:, None]
                .expand(-1, x.shape[2])
            )
            noisy = add_noise(x, self.noise(x, 4), level)
            real = self.estimate(self.teacher, noisy, level, condition, self.guidance)
            fake = self.estimate(self.critic, noisy, level, condition, 1.0)
        self.log("distillation/score_gap", (fake - real).abs().mean())
        return {"distribution_matching": distribution_matching_loss(x, real, fake).mean()}, x

    @staticmethod
    def estimate(
        network: nn.Module, noisy: Tensor, level: Tensor, condition: ShaderCondition, guidance: float
    ) -> Tensor:
        """x0 under guidance `u + w (c - u)`."""
        x0 = network(noisy, level, condition).x0
        if guidance == 1.0:
            return x0
        unguided = network(noisy, level, condition.drop()).x0
        return unguided + guidance * (x0 - unguided)

    def critic_step(self, condition: ShaderCondition, sample: Tensor) -> None:
        """The critic learns the student's distribution by flow matching on its sample."""
        for update in range(self.critic_updates):
            level = sample_levels((sample.shape[0],), self.shift, self.generator(10 + 2 * update), sample.device)[
                :, None
            ].expand(-1, sample.shape[2])
            noise = self.noise(sample, 11 + 2 * update)
            velocity = self.critic(add_noise(sample, noise, level), level, condition).velocity
            loss = velocity_loss(velocity, sample, noise, level, self.loss_floor, self.loss_huber)
            self.update("critic", {"critic": (loss * self.codec.channel_weight()).mean()}, {})

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """One rollout of the validation window against the truth."""
        _, _, splat = self.read(batch)
        painted = self.paint_student(self.student, batch, self.noise_levels)
        self.log_validation(batch, batch_idx, splat, {"student": painted})

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Rows: splat, the undistilled teacher and the student at several numbers of steps."""
        assert self.report is not None
        self.test_splat(batch)
        for index, num_steps in enumerate(self.teacher_test_steps):
            name = "teacher" if index == 0 else f"teacher, {num_steps} steps"
            self.test_teacher(name, self.teacher, batch, num_steps, self.test_window, self.shift)
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
        path = write_video(self.out, frames, fps=batch.fps[0], sound=self.sound(batch))
        speed = total / (time.perf_counter() - begin)
        self.print(f"{total} frames at {speed:.1f} frames/s (photo, splat, denoising, decoding, writing)\n{path}")

    def sound(self, batch: VideoBatch) -> Sound | None:
        """Of the video that drives, from the first frame shown."""
        driving = Path(self.data().predict_input.driving or "")
        if driving.suffix.lower() == ".npz" or not has_sound(driving):
            return None
        return Sound(driving, float(batch.frame_numbers[0, 0]) / batch.fps[0])

    def exported(self) -> nn.Module:
        """The student."""
        return self.student
