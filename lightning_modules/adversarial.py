"""Stage 4: adversarial distribution preservation, so that the student stays as sharp and varied as real video."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.distillation import Distillation
from visa.lightning_modules.student import Subcommand, Trained
from visa.losses.adversarial import Pairing, approximate_penalty, discriminator_loss, generator_loss, logit_accuracy
from visa.losses.flow import add_noise, sample_levels
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.discriminator import WanDiscriminator
from visa.networks.fit import FitOptions
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.shader import ShaderCondition, VideoShader, Window
from visa.networks.splat_maps import MatteOptions, SplatMaps

MENDS = {
    "won": "raise penalty_weight or largest_level, or lower discriminator_learning_rate or discriminator_updates",
    "collapsed": "lower discriminator_learning_rate or penalty_weight, and start the stage again",
    "fooled": "raise discriminator_learning_rate or discriminator_updates, or lower adversarial_weight",
}


class Verdict:
    """Watches whether the discriminator still teaches, and says so once for each change.

    Over the last `window` updates: `won` where it told at least 98 % of the pairs apart (the generator then gets the
    direction from saturated logits alone), `collapsed` where its logits no longer depend on what it is shown, or are
    not finite, `fooled` where it prefers the fake nine times of ten. The device is waited for once a window.
    """

    def __init__(self, window: int = 50) -> None:
        self.window, self.state = window, "learning"
        self._seen: list[Tensor] = []

    def update(self, real: Tensor, fake: Tensor) -> str:
        """Take the logits `[B,...]` of one update; returns the state after it."""
        logits = torch.cat([real.flatten(), fake.flatten()]).detach().float()
        spread = logits.max() - logits.min()
        self._seen.append(torch.stack([logit_accuracy(real, fake).float(), spread]))
        if len(self._seen) == self.window:
            accuracy, spread = torch.stack(self._seen).mean(dim=0).tolist()
            self._seen = []
            self._judge(accuracy, spread)
        return self.state

    def _judge(self, accuracy: float, spread: float) -> None:
        if not spread > 1e-3:  # also true for NaN
            state = "collapsed"
        elif accuracy >= 0.98:
            state = "won"
        elif accuracy <= 0.1:
            state = "fooled"
        else:
            state = "learning"
        if state not in ("learning", self.state):
            rank_zero_warn(
                f"the discriminator has {'been ' if state == 'fooled' else ''}{state}: over {self.window} updates its "
                f"accuracy was {accuracy:.2f}, the spread of its logits {spread:.2g}; {MENDS[state]}"
            )
        self.state = state


class Adversarial(Distillation):
    """Distribution matching + an adversarial term against real video, on the student's own rollouts.

    Args:
        shader, codec, num_steps, teacher_weights, student_weights, body_model, remove_neck, feature_channels,
            reconstruction_weights, reconstructor_options, fit, avatar_cache, matte, noise_levels, rollout_window,
            learning_rate, critic_learning_rate, critic_updates, loss_weights, guidance, shift, loss_floor, loss_huber,
            clip_norm, teacher_test_steps, student_test_steps, test_window, out, seed, subcommand: as in `Distillation`,
            whose student this stage starts from.
        adversarial_weight: of the adversarial term beside distribution matching; 0 trains no discriminator, and the
            student as the distillation does, bit for bit.
        adversarial_start: generator updates before the term counts, while the discriminator learns its heads.
        penalty_weight: of the approximate R1 and R2.
        pairing: relativistic, hinge or non_saturating.
        discriminator_learning_rate: of AdamW.
        discriminator_updates: discriminator updates for each generator update, on the generator's rollout.
        largest_level: real and fake are judged at noise levels uniform in (0, largest_level], the same for both.
        depths: shares of the backbone's blocks after which the discriminator reads tokens.
        head_width: of its branches; None for the backbone's token width.
        use_reference: let the reference's features judge the whole clip.
        show_guide: let the discriminator see the splat as well as photo and video. It then asks how far a video is from
            its guide, in which a student that paints the mean always differs from life, and the cheapest answer is
            flicker; without, how real it looks.
        train_backbone: train the discriminator's backbone, a copy of the teacher, as well as its heads; otherwise it is
            the frozen teacher itself.
    """

    stage = "adversarial"
    shipped = None

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
        adversarial_weight: float = 0.05,
        adversarial_start: int = 0,
        penalty_weight: float = 0.1,
        pairing: Pairing = "relativistic",
        discriminator_learning_rate: float = 1e-4,
        discriminator_updates: int = 1,
        largest_level: float = 0.5,
        depths: Sequence[float] = (0.45, 0.70, 0.97),
        head_width: int | None = None,
        use_reference: bool = True,
        show_guide: bool = False,
        train_backbone: bool = False,
    ) -> None:
        super().__init__(
            shader=shader, codec=codec, num_steps=num_steps, teacher_weights=teacher_weights,
            student_weights=student_weights, body_model=body_model, remove_neck=remove_neck,
            feature_channels=feature_channels, reconstruction_weights=reconstruction_weights,
            reconstructor_options=reconstructor_options, fit=fit, avatar_cache=avatar_cache, matte=matte,
            noise_levels=noise_levels, rollout_window=rollout_window,
            learning_rate=learning_rate, critic_learning_rate=critic_learning_rate,
            critic_updates=critic_updates, loss_weights=loss_weights, guidance=guidance, shift=shift,
            loss_floor=loss_floor, loss_huber=loss_huber, clip_norm=clip_norm, teacher_test_steps=teacher_test_steps,
            student_test_steps=student_test_steps, test_window=test_window, out=out, seed=seed, subcommand=subcommand,
        )  # fmt: skip
        if not 0 < largest_level <= 1:
            raise ValueError(f"largest_level {largest_level} is no noise level: choose one above 0 and up to 1")
        if discriminator_updates < 1:
            raise ValueError("discriminator_updates must be 1 or more; without a discriminator use configs/shader.yaml")
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.penalty_weight, self.pairing, self.largest_level = penalty_weight, pairing, largest_level
        self.discriminator_learning_rate = discriminator_learning_rate
        self.discriminator_updates, self.show_guide = discriminator_updates, show_guide
        self.verdict = Verdict()
        if not train_backbone:
            self.frozen = (*self.frozen, "discriminator.backbone.")
        self.discriminator: WanDiscriminator | None = None
        if self.is_trained and self.teacher is not None:
            self.discriminator = WanDiscriminator(
                # A frozen backbone is the teacher itself: at full size a copy would take another 5 GiB.
                copy.deepcopy(self.teacher) if train_backbone else self.teacher,
                depths=depths,
                width=head_width,
                use_reference=use_reference,
                train_backbone=train_backbone,
            )

    def trained(self) -> dict[str, Trained]:
        """Student, critic, discriminator."""
        assert self.discriminator is not None
        judge = Trained(self.discriminator, self.discriminator_learning_rate, self.discriminator_updates)
        return {**super().trained(), "discriminator": judge}

    def training_step(self, batch: VideoBatch, batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """Generator, critic, discriminator: all on one rollout."""
        condition, real, splat = self.read(batch)
        terms, sample = self.matching_terms(condition)
        weights = dict(self.loss_weights)
        use_discriminator = self.adversarial_weight > 0
        shown = sample
        if use_discriminator:
            real, shown = self.shown(real, splat), self.shown(sample, splat)
        if use_discriminator and self.step >= self.adversarial_start:
            terms["adversarial"] = self.adversarial_term(condition, real, shown)
            weights["adversarial"] = self.adversarial_weight
        terms |= self.paired_terms(sample, splat, batch)
        if "adversarial" in terms and self.step % 10 == 0:
            self.log("adversarial/pull", self.pull(terms, weights, sample))
        self.update("student", terms, weights)
        self.critic_step(condition, sample.detach())
        for update in range(self.discriminator_updates if use_discriminator else 0):
            self.discriminator_step(condition, real, shown.detach(), update)
        self.step += 1

    def shown(self, sample: Tensor, splat: SplatMaps) -> Tensor:
        """Latents of real or painted frames under the matte, which alone must not tell the two apart.

        A learned codec would have to run forth and back with its graph; its latents are judged as they are.
        """
        if isinstance(self.codec, BlockCodec):
            return self.codec.encode(splat.matted(self.codec.decode(sample)))
        return sample

    def adversarial_term(self, condition: ShaderCondition, real: Tensor, sample: Tensor) -> Tensor:
        """The generator's loss on its own rollout, with its graph; the discriminator gets no gradient."""
        assert self.discriminator is not None
        level, noise = self.judged_noise(sample, "generator")
        with held(self.discriminator):
            with torch.no_grad():
                real_logits = self.logits(add_noise(real, noise, level), level, condition)
            fake_logits = self.logits(add_noise(sample, noise, level), level, condition)
        return generator_loss(real_logits, fake_logits, self.pairing).mean()

    @staticmethod
    def pull(terms: dict[str, Tensor], weights: dict[str, float], sample: Tensor) -> Tensor:
        """Norm of the weighted adversarial term's gradient at the sample, over that of all other terms together."""
        weighted = {name: weights.get(name, 1.0) * value for name, value in terms.items()}
        own = weighted.pop("adversarial")
        others = torch.stack(list(weighted.values())).sum()
        norms = [torch.autograd.grad(loss, sample, retain_graph=True)[0].norm() for loss in (own, others)]
        return norms[0] / norms[1].clamp_min(torch.finfo(norms[1].dtype).tiny)

    def judged_noise(self, like: Tensor, whose: str, update: int = 0) -> tuple[Tensor, Tensor]:
        """Level `[B,T]` and noise at which real and fake are judged, the same for both, anew for each update."""
        generator = self.generator(f"{whose}_level", update)
        level = self.largest_level * sample_levels((like.shape[0],), 1.0, generator, like.device)
        return level[:, None].expand(-1, like.shape[2]), self.noise(like, f"{whose}_noise", update)

    def logits(self, noisy: Tensor, level: Tensor, condition: ShaderCondition) -> Tensor:
        """`[B,T+1]`: one logit a latent frame and one for the clip."""
        if not self.show_guide:
            condition = replace(
                condition.drop(which=["maps"]), guide=torch.zeros_like(condition.guide), maps=None, encoded=None
            )
        assert self.discriminator is not None
        judged = self.discriminator(noisy, level, condition)
        return torch.cat([judged.local, judged.clip[:, None]], dim=1)

    def discriminator_step(self, condition: ShaderCondition, real: Tensor, fake: Tensor, update: int) -> None:
        """Tell real from fake, with approximate R1 and R2."""
        level, noise = self.judged_noise(fake, "discriminator", update)
        noisy_real, noisy_fake = add_noise(real, noise, level), add_noise(fake, noise, level)
        real_logits, fake_logits = self.logits(noisy_real, level, condition), self.logits(noisy_fake, level, condition)

        def judge(x: Tensor) -> Tensor:
            return self.logits(x, level, condition)

        terms = {
            "discriminator": discriminator_loss(real_logits, fake_logits, self.pairing).mean(),
            "r1": approximate_penalty(judge, noisy_real, real_logits, self.noise(real, "penalty_real", update)).mean(),
            "r2": approximate_penalty(judge, noisy_fake, fake_logits, self.noise(fake, "penalty_fake", update)).mean(),
        }
        self.log("adversarial/real_logit", real_logits.mean())
        self.log("adversarial/fake_logit", fake_logits.mean())
        self.log("adversarial/accuracy", logit_accuracy(real_logits, fake_logits), prog_bar=True)
        self.log("adversarial/accuracy_clip", logit_accuracy(real_logits[:, -1], fake_logits[:, -1]))
        self.verdict.update(real_logits, fake_logits)
        self.update("discriminator", terms, {"r1": self.penalty_weight, "r2": self.penalty_weight})


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """Graphs built inside pass gradients through `network` and leave none in it."""
    learning = [p for p in network.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
