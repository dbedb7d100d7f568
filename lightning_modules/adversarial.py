"""Stage 4: adversarial distribution preservation, so that the student stays as sharp and varied as real video."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import VideoBatch
from lightning_modules.distillation import Distillation
from losses.adversarial import Pairing, approximate_penalty, discriminator_loss, generator_loss, logit_accuracy
from losses.flow import add_noise, sample_levels
from networks.discriminator import WanDiscriminator
from networks.shader import ShaderCondition


class Adversarial(Distillation):
    """Distribution matching + an adversarial term against real video, on the student's own rollouts.

    Args:
        adversarial_weight: of the adversarial term beside distribution matching.
        penalty_weight: of the approximate R1 and R2.
        pairing: relativistic, hinge or non_saturating.
        discriminator_learning_rate: of AdamW.
        use_reference: let the reference's features judge the whole clip.
        train_backbone: train the discriminator's backbone as well as its heads.
        distillation: as in `Distillation`, whose student this stage starts from.
    """

    stage = "adversarial"
    shipped = "assets/weights/student_adversarial.safetensors"

    def __init__(
        self,
        adversarial_weight: float = 0.05,
        penalty_weight: float = 0.1,
        pairing: Pairing = "relativistic",
        discriminator_learning_rate: float = 1e-4,
        use_reference: bool = True,
        train_backbone: bool = False,
        **distillation: Any,
    ) -> None:
        super().__init__(**distillation)
        if self.objective != "distribution_matching":
            raise ValueError(f"the adversarial stage needs objective distribution_matching, not {self.objective}")
        self.adversarial_weight, self.penalty_weight, self.pairing = adversarial_weight, penalty_weight, pairing
        self.discriminator_learning_rate = discriminator_learning_rate
        if not train_backbone:
            self.frozen = (*self.frozen, "discriminator.backbone.")
        self.discriminator = WanDiscriminator(
            copy.deepcopy(self.teacher), use_reference=use_reference, train_backbone=train_backbone
        )

    def networks(self) -> list[str]:
        """Student, critic, discriminator."""
        return ["student", "critic", "discriminator"]

    def configure_optimizers(self) -> list[dict[str, Any]]:
        """Those of the distillation, and AdamW for the discriminator's trained part."""
        trained = [p for p in self.discriminator.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.discriminator_learning_rate, betas=(0.0, 0.99), weight_decay=1e-2
        )
        return [
            *super().configure_optimizers(),
            {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer)}},
        ]

    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Generator, critic, discriminator: all on one rollout."""
        condition, real, _ = self.read(batch)
        terms, sample = self.matching_terms(condition)
        level, noise = self.judged_noise(sample)
        with torch.no_grad():
            real_logits = self.logits(add_noise(real, noise, level), level, condition)
        fake_logits = self.logits(add_noise(sample, noise, level), level, condition)
        terms["adversarial"] = generator_loss(real_logits, fake_logits, self.pairing).mean()
        weights = {**self.loss_weights, "adversarial": self.adversarial_weight}
        self.update("student", terms | self.paired_terms(sample, batch), weights)
        self.critic_step(condition, sample.detach())
        self.discriminator_step(condition, real, sample.detach())
        self.step += 1

    def judged_noise(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Level `[B,T]` and noise at which real and fake are judged, the same for both."""
        level = sample_levels((like.shape[0],), 1.0, self.generator(20), like.device) * 0.5
        return level[:, None].expand(-1, like.shape[2]), self.noise(like, 21)

    def logits(self, noisy: Tensor, level: Tensor, condition: ShaderCondition) -> Tensor:
        """`[B,T+1]`: one logit a latent frame and one for the clip."""
        judged = self.discriminator(noisy, level, condition)
        return torch.cat([judged.local, judged.clip[:, None]], dim=1)

    def discriminator_step(self, condition: ShaderCondition, real: Tensor, fake: Tensor) -> None:
        """Tell real from fake, with approximate R1 and R2."""
        level, noise = self.judged_noise(fake)
        noisy_real, noisy_fake = add_noise(real, noise, level), add_noise(fake, noise, level)
        real_logits, fake_logits = self.logits(noisy_real, level, condition), self.logits(noisy_fake, level, condition)

        def judge(x: Tensor) -> Tensor:
            return self.logits(x, level, condition)

        terms = {
            "discriminator": discriminator_loss(real_logits, fake_logits, self.pairing).mean(),
            "r1": approximate_penalty(judge, noisy_real, real_logits, self.noise(real, 22)).mean(),
            "r2": approximate_penalty(judge, noisy_fake, fake_logits, self.noise(fake, 23)).mean(),
        }
        self.log("adversarial/real_logit", real_logits.mean())
        self.log("adversarial/fake_logit", fake_logits.mean())
        self.log("adversarial/accuracy", logit_accuracy(real_logits, fake_logits), prog_bar=True)
        self.update("discriminator", terms, {"r1": self.penalty_weight, "r2": self.penalty_weight})
