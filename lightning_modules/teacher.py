"""Stage 2: the bidirectional teacher, a many-step video shader trained by flow matching."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.shading import ShadingStage, TeacherSampling
from visa.losses.flow import add_noise, sample_levels, velocity_loss
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.shader import SIGNALS, Signal, VideoShader, load_wan_checkpoint
from visa.networks.splat_maps import MatteOptions
from visa.runtime.shipped import COMMANDS


class Teacher(ShadingStage):
    """Flow matching on whole windows with the splatted conditions.

    Args:
        shader: the network.
        codec: frames <-> latents.
        num_steps: training batches; the data module owns the number.
        body_model: SMPL-X-format file.
        remove_neck, feature_channels: as the reconstruction was trained.
        reconstruction_weights: the first stage's file.
        weights: start from this file; None starts from the network's own initialisation.
        wan_checkpoint: or start from this local folder of Wan 2.1 text-to-video in diffusers' format.
        reconstructor_options: as the reconstruction was trained.
        fit: how avatars are fitted to their photo in validation and test; training takes them as the network gives
            them, or from the cache.
        avatar_cache, matte: as in `ShadingStage`.
        learning_rate: of AdamW.
        shift: timestep shift of training and sampling.
        loss_floor: noise level below which the loss stops growing (`losses.flow.velocity_loss`); 0 for pretrained
            weights.
        loss_huber: c of the pseudo-Huber flow loss; 0 for the squared one.
        loss_weights: weight of each raw term; terms not named count once. `l1`, `detail`, `perceptual` and `fine`
            (perceptual, of enlarged frames) compare the decoded x0 estimate with the true frames: residuals are
            heavy-tailed, and few batches alone leave noise.
        dropout: probability of dropping each signal, for guidance.
        validation_sampling_steps: numbers of Euler steps, each a row of the validation.
        test_sampling_steps: most Euler steps of `test`.
        test_window: frames that one teacher window paints in `test`.
        seed: of the noise.
    """

    stage = "teacher"
    shipped = "assets/weights/teacher.safetensors"
    network = "shader"

    def __init__(
        self,
        shader: VideoShader,
        codec: BlockCodec | WanCodec,
        num_steps: int = 1000,
        body_model: str = "assets/body/smplx_anny.npz",
        remove_neck: bool = True,
        feature_channels: int = 16,
        reconstruction_weights: str = "assets/weights/reconstruction.safetensors",
        weights: str | None = None,
        wan_checkpoint: str | None = None,
        reconstructor_options: ReconstructorOptions = ReconstructorOptions(),  # noqa: B008
        fit: FitOptions = FitOptions(),  # noqa: B008
        avatar_cache: str | None = None,
        matte: MatteOptions | None = None,
        learning_rate: float = 4e-4,
        shift: float = 3.0,
        loss_floor: float = 0.5,
        loss_huber: float = 0.1,
        loss_weights: dict[str, float] = {"flow": 0.3, "l1": 10.0, "perceptual": 3.0},  # noqa: B006
        dropout: dict[str, float] = {"maps": 0.05, "semantic": 0.1, "reference": 0.1},  # noqa: B006
        validation_sampling_steps: list[int] = [1, 8],  # noqa: B006
        test_sampling_steps: int = 50,
        test_window: int = 9,
        seed: int = 0,
    ) -> None:
        super().__init__(
            num_steps, body_model, codec, reconstruction_weights, remove_neck, feature_channels, seed,
            reconstructor_options, fit, avatar_cache, matte,
        )  # fmt: skip
        if weights is not None and wan_checkpoint is not None:
            raise ValueError("teacher: give either `weights` or `wan_checkpoint`, not both")
        if unknown := sorted(set(dropout) - set(SIGNALS)):
            raise ValueError(f"dropout: no such signal '{unknown[0]}'; choose from {', '.join(SIGNALS)}")
        self.dropout: dict[Signal, float] = {signal: dropout[signal] for signal in SIGNALS if signal in dropout}
        self.check_shader(shader)
        self.loss_floor, self.loss_huber, self.loss_weights = loss_floor, loss_huber, dict(loss_weights)
        self.shader, self.learning_rate, self.shift = shader, learning_rate, shift
        self.validation_sampling_steps, self.test_sampling_steps, self.test_window = (
            list(validation_sampling_steps),
            test_sampling_steps,
            test_window,
        )
        if weights is not None:
            load_weights(self.shader, weights, COMMANDS[self.stage])
        if wan_checkpoint is not None:
            load_wan_checkpoint(self.shader, wan_checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over the shader."""
        optimizer = torch.optim.AdamW(
            self.shader.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=1e-2
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:  # noqa: ARG002 (Lightning's signature)
        """One noise level a window, velocity loss on every latent."""
        condition, x0, splat = self.read(batch)
        level = sample_levels((x0.shape[0],), self.shift, self.generator("level"), x0.device)
        level = level[:, None].expand(-1, x0.shape[2])
        noise = self.noise(x0, "noise")
        condition = self.drop_conditions(condition, self.dropout)
        prediction = self.shader(add_noise(x0, noise, level), level, condition)
        error = velocity_loss(prediction.velocity, x0, noise, level, self.loss_floor, self.loss_huber)
        terms = {"flow": (error * self.codec.channel_weight()).mean()}
        terms |= self.paired_terms(prediction.x0, splat, batch)
        loss = self.weighted_sum(terms, self.loss_weights)
        self.step += 1
        return loss

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        """Samples of one and of many steps against the truth of the validation block."""
        window = batch.frames.shape[1]
        painted = {
            f"teacher_{num_steps}": self.paint_teacher(
                self.shader, batch, TeacherSampling(num_steps, window, self.shift)
            )
            for num_steps in self.validation_sampling_steps
        }
        self.log_validation(batch, batch_idx, self.read(batch)[2], painted)

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002
        """Rows: splat and the teacher at many, four, two and one steps."""
        assert self.report is not None
        self.test_splat(batch)
        for num_steps in (self.test_sampling_steps, 4, 2, 1):
            how = TeacherSampling(num_steps, self.test_window, self.shift)
            self.test_teacher(f"teacher {num_steps}", self.shader, batch, how)
        self.report.close_block(batch)
