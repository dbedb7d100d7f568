"""Stage 3, start of the student: regression of the end of the teacher's trajectories (CausVid, arXiv:2412.07772)."""

from __future__ import annotations

import torch
from torch import Tensor

from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.student import StudentStage, Subcommand, Trained
from visa.losses.distillation import ode_regression_loss
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.sampler import integrate, shifted_levels
from visa.networks.shader import ShaderCondition, VideoShader, Window
from visa.networks.splat_maps import MatteOptions


class OdeRegression(StudentStage):
    """Teacher -> causal few-step student, from states of the teacher's trajectories alone.

    Args:
        shader, codec, num_steps, teacher_weights, student_weights, body_model, remove_neck, feature_channels,
            reconstruction_weights, reconstructor_options, fit, avatar_cache, matte, noise_levels, rollout_window,
            learning_rate, loss_weights, guidance, shift, clip_norm, teacher_test_steps, student_test_steps,
            test_window, out, seed, subcommand: as in `StudentStage`.
        loss_huber: c of the pseudo-Huber error; 0 for the squared one.
        trajectory_steps: Euler steps of the teacher's trajectories.
    """

    stage = "shader_ode"

    def __init__(
        self,
        shader: VideoShader,
        codec: BlockCodec | WanCodec,
        num_steps: int = 100,
        teacher_weights: str | None = "assets/weights/teacher.safetensors",
        student_weights: str | None = "assets/weights/teacher.safetensors",
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
        learning_rate: float = 2e-4,
        loss_weights: dict[str, float] = {"ode": 0.2, "l1": 10.0, "perceptual": 1.0},  # noqa: B006
        guidance: float = 1.0,
        shift: float = 3.0,
        loss_huber: float = 0.1,
        trajectory_steps: int = 8,
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
        self.loss_huber, self.trajectory_steps = loss_huber, trajectory_steps

    def trained(self) -> dict[str, Trained]:
        """The student, with the teacher's momentum: a regression needs no caution."""
        return {"student": Trained(self.student, self.learning_rate, betas=(0.9, 0.98))}

    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """One update of the student."""
        condition, _, splat = self.read(batch)
        terms, sample = self.ode_terms(condition)
        self.update("student", terms | self.paired_terms(sample, splat, batch), self.loss_weights)
        self.step += 1

    def ode_terms(self, condition: ShaderCondition) -> tuple[dict[str, Tensor], Tensor]:
        """Regression from states of the teacher's trajectory, each chunk at its own level (or clean, as context).

        Returns:
            the term and the student's x0.
        """
        assert self.teacher is not None
        levels = sorted({*shifted_levels(self.trajectory_steps, self.shift), *self.noise_levels}, reverse=True)
        start = self.noise(condition.guide, "trajectory")
        states: dict[float, Tensor] = {}
        with torch.no_grad():
            for reached, state in integrate(self.teacher, condition, levels, start, self.guidance):
                if reached in self.noise_levels or reached == 0.0:
                    states[reached] = state
        kept = sorted(states, reverse=True)  # the last is 0: clean
        stacked, table = torch.stack([states[one] for one in kept]), torch.tensor(kept)
        size, total = self.student.chunk_frames, condition.num_frames
        generator = self.generator("chunk_levels")
        choice = torch.randint(len(kept), (condition.batch_size, -(-total // size)), generator=generator)
        # Without a noisy chunk there is nothing to learn from: the last is never clean.
        choice[:, -1] = choice[:, -1].clamp(max=len(kept) - 2)
        per_frame = choice.repeat_interleave(size, dim=1)[:, :total]
        level = table[per_frame].to(condition.guide)
        index = per_frame.to(condition.guide.device)[None, :, None, :, None, None].expand(1, *stacked.shape[1:])
        noisy = stacked.gather(0, index)[0]
        prediction = self.student(noisy, level, condition, "block_causal")
        counts = level.gt(0).float()
        weight = self.codec.channel_weight()
        loss = ode_regression_loss(prediction.x0, states[0.0], counts, weight, self.loss_huber)
        return {"ode": loss}, prediction.x0
