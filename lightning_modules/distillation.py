"""Stage 3: the causal student, distilled from the bidirectional teacher.

Distribution matching trains on the student's own rollouts against the teacher's score, with a critic that follows the
student (Self-Forcing, arXiv:2506.08009).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.student import StudentStage, Subcommand, Trained
from visa.losses.distillation import distribution_matching_loss
from visa.losses.flow import add_noise, sample_levels, velocity_loss
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.shader import ShaderCondition, VideoShader, Window
from visa.networks.splat_maps import MatteOptions


class Distillation(StudentStage):
    """Teacher -> causal few-step student, by distribution matching on the student's own rollouts.

    Args:
        shader: architecture of student, teacher and critic.
        codec, num_steps, teacher_weights, student_weights, body_model, remove_neck, feature_channels,
            reconstruction_weights, reconstructor_options, fit, avatar_cache, matte, noise_levels, rollout_window,
            learning_rate, loss_weights, guidance, clip_norm, teacher_test_steps, student_test_steps, test_window, out,
            seed, subcommand: as in `StudentStage`; the critic starts from the teacher.
        critic_learning_rate: of AdamW.
        critic_updates: critic updates for each generator update, on the generator's rollout.
        shift: timestep shift of teacher and critic.
        loss_floor: of the critic, as in `Teacher`.
        loss_huber: c of the pseudo-Huber error of the critic; 0 for the squared one.
    """

    stage = "shader"

    def __init__(
        self,
        shader: VideoShader,
        codec: BlockCodec | WanCodec,
        num_steps: int = 100,
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
        clip_norm: float = 1.0,
        teacher_test_steps: list[int] = [1, 2, 4],  # noqa: B006
        student_test_steps: list[int] = [2, 1],  # noqa: B006
        test_window: int = 9,
        out: str = "out.mp4",
        seed: int = 0,
        subcommand: Subcommand = "fit",
    ) -> None:
        super().__init__(
            shader=shader, codec=codec, num_steps=num_steps, teacher_weights=teacher_weights,
            student_weights=student_weights, body_model=body_model, remove_neck=remove_neck,
            feature_channels=feature_channels, reconstruction_weights=reconstruction_weights,
            reconstructor_options=reconstructor_options, fit=fit, avatar_cache=avatar_cache, matte=matte,
            noise_levels=noise_levels, rollout_window=rollout_window,
            learning_rate=learning_rate, loss_weights=loss_weights, guidance=guidance,
            shift=shift, clip_norm=clip_norm, teacher_test_steps=teacher_test_steps,
            student_test_steps=student_test_steps, test_window=test_window, out=out, seed=seed, subcommand=subcommand,
        )  # fmt: skip
        self.critic_learning_rate, self.critic_updates = critic_learning_rate, critic_updates
        self.loss_floor, self.loss_huber = loss_floor, loss_huber
        self.critic: VideoShader | None = None
        if self.is_trained and self.teacher is not None:
            self.critic = copy.deepcopy(self.teacher).requires_grad_(True)

    def trained(self) -> dict[str, Trained]:
        """Student and critic."""
        assert self.critic is not None
        critic = Trained(self.critic, self.critic_learning_rate, self.critic_updates)
        return {**super().trained(), "critic": critic}

    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """One generator update, then the critic's updates on the same rollout."""
        condition, _, splat = self.read(batch)
        terms, sample = self.matching_terms(condition)
        self.update("student", terms | self.paired_terms(sample, splat, batch), self.loss_weights)
        self.critic_step(condition, sample.detach())
        self.step += 1

    def matching_terms(self, condition: ShaderCondition) -> tuple[dict[str, Tensor], Tensor]:
        """Distribution matching on the student's own rollout, and the rollout with its graph.

        The exit step is the same on all ranks, so that all run the same number of passes.
        """
        assert self.teacher is not None
        assert self.critic is not None
        exit_step = int(torch.randint(len(self.noise_levels), (1,), generator=self.generator("exit_step", rank=0)))
        x = self.rollout(condition, self.generator("rollout"), exit_step=exit_step, requires_grad=True)
        with torch.no_grad():
            level = (
                sample_levels((x.shape[0],), self.shift, self.generator("score_level"), x.device)
                .clamp(0.02, 0.98)[:, None]
                .expand(-1, x.shape[2])
            )
            noisy = add_noise(x, self.noise(x, "score_noise"), level)
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
        assert self.critic is not None
        for update in range(self.critic_updates):
            level = sample_levels(
                (sample.shape[0],), self.shift, self.generator("critic_level", update), sample.device
            )[:, None].expand(-1, sample.shape[2])
            noise = self.noise(sample, "critic_noise", update)
            velocity = self.critic(add_noise(sample, noise, level), level, condition).velocity
            loss = velocity_loss(velocity, sample, noise, level, self.loss_floor, self.loss_huber)
            self.update("critic", {"critic": (loss * self.codec.channel_weight()).mean()}, {})
