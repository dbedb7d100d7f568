"""The adversarial stage: every option takes a step that changes what it should; the verdict on the discriminator."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.lightning_modules.adversarial import Adversarial, Verdict, held
from visa.lightning_modules.distillation import Distillation
from visa.losses.flow import add_noise
from visa.networks.codec import BlockCodec
from visa.networks.shader import VideoShader


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def batch(clip_path: Path) -> VideoBatch:
    clip = Clip(clip_path).load()
    return WindowReader((0.5, 0.5, 0.5)).read(clip, np.arange(4), 10, 64)


def build(stage: type[Distillation], **options: Any) -> tuple[Distillation, dict[str, Tensor]]:
    """A stage of small random networks, with the trainer's part of a step done by plain PyTorch, and its log."""
    torch.manual_seed(0)
    shader = VideoShader(
        latent_channels=96, feature_channels=16, semantic_dim=128, condition_channels=8, num_heads=2, head_dim=12,
        num_layers=3, ffn_dim=32, text_dim=16, freq_dim=16, chunk_frames=3, prediction="x0", guide_skip_init=1.0,
        zero_init_conditions=False,
    )  # fmt: skip
    codec = BlockCodec(str(ROOT / "assets/weights/codec_statistics.safetensors"))
    module = stage(shader=shader, codec=codec, num_steps=4, teacher_weights=None, student_weights=None, **options)
    configured, logged = module.configure_optimizers(), {}
    optimizers = [entry["optimizer"] for entry in configured]
    schedules = [entry["lr_scheduler"]["scheduler"] for entry in configured]
    module.optimizers = lambda: optimizers
    module.lr_schedulers = lambda: schedules
    module.manual_backward = lambda loss: loss.backward()
    module.log = lambda name, value, **_: logged.__setitem__(name, torch.as_tensor(value).detach())
    return module, logged


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parts (`student`, `discriminator.heads`, ...) of which a parameter moved."""
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    parts = {name.split(".")[0] for name in moved if not name.startswith("discriminator.")}
    for name in moved:
        if name.startswith("discriminator."):
            parts.add("backbone" if name.startswith("discriminator.backbone.") else "heads")
    return parts


@pytest.mark.parametrize(
    ("pairing", "use_reference", "train_backbone", "updates", "show_guide"),
    [
        ("relativistic", True, False, 1, False),
        ("hinge", False, False, 2, True),
        ("non_saturating", True, True, 1, False),
    ],
)
def test_each_option_takes_a_step(
    pairing: str, use_reference: bool, train_backbone: bool, updates: int, show_guide: bool, batch: VideoBatch
) -> None:
    stage, logged = build(
        Adversarial, pairing=pairing, use_reference=use_reference, train_backbone=train_backbone,
        show_guide=show_guide, discriminator_updates=updates, critic_updates=2, head_width=16, depths=[0.5, 1.0],
    )  # fmt: skip
    judged: list[tuple[Tensor, Tensor]] = []
    forward = stage.discriminator.forward

    def spy(noisy: Tensor, level: Tensor, *rest: Any) -> Any:
        judged.append((noisy.detach(), level))
        return forward(noisy, level, *rest)

    stage.discriminator.forward = spy
    before = snapshot(stage)
    stage.training_step(batch, 0)
    assert changed(stage, before) == {"student", "critic", "heads"} | ({"backbone"} if train_backbone else set())
    assert stage.step == 1
    assert len(judged) == 2 + 4 * updates  # real and fake for the student; real, fake and both moved for each update
    for start in range(2, len(judged), 4):
        (real, level), (fake, fake_level), (moved, _), _ = judged[start : start + 4]
        assert torch.equal(level, fake_level)
        assert float(level.max()) <= 0.5
        # Real and fake carry the same noise: what is left of each after its own picture is taken out is equal.
        _, truth, splat = stage.read(batch)
        truth = stage.shown(truth, splat)
        noise = (real - add_noise(truth, torch.zeros_like(truth), level)) / level[:, None, :, None, None]
        assert abs(float(noise.std()) - 1) < 0.1
        assert float((moved - real).std()) == pytest.approx(0.01, rel=0.1)
        sample = (fake - level[:, None, :, None, None] * noise) / (1 - level[:, None, :, None, None])
        assert float((sample - truth).abs().mean()) < 2  # the guide's neighbourhood, and no noise left in it
    expected = {
        f"loss/{name}" for name in ("distribution_matching", "adversarial", "critic", "discriminator", "r1", "r2")
    }
    expected |= {f"adversarial/{name}" for name in ("real_logit", "fake_logit", "accuracy", "accuracy_clip", "pull")}
    expected |= {f"gradient_norm/{name}_unclipped" for name in ("student", "critic", "discriminator")}
    assert expected <= set(logged)
    assert all(bool(torch.isfinite(value).all()) for value in logged.values())


@pytest.mark.parametrize("show_guide", [False, True])
def test_the_guide_is_judged_where_it_is_shown(show_guide: bool, batch: VideoBatch) -> None:
    stage, _ = build(Adversarial, show_guide=show_guide, use_reference=False)
    condition, real, _ = stage.read(batch)
    other = replace(condition, guide=condition.guide + 1, maps=condition.maps.flip(-1))
    level = torch.full((1, real.shape[2]), 0.3)
    with torch.no_grad():
        logits = [stage.logits(real, level, given) for given in (condition, other)]
    assert torch.equal(*logits) is not show_guide


def test_what_the_matte_hides_is_not_judged(batch: VideoBatch) -> None:
    stage, _ = build(Adversarial)
    _, real, splat = stage.read(batch)
    frames = stage.codec.decode(real)
    hidden = torch.nn.functional.max_pool2d(splat.alpha[0], 3, 1, 1) == 0  # at 64 px painting reaches one pixel out
    other = stage.codec.encode(frames + 0.5 * hidden[None])
    assert not torch.allclose(other, real, atol=0.1)
    # The codec keeps half of its channels, so that hidden pixels leak a little over the silhouette's blocks.
    leak = (stage.shown(other, splat) - stage.shown(real, splat)).square().mean().sqrt()
    assert float(leak / (other - real).square().mean().sqrt()) < 0.1
    visible = splat.matted(frames)
    torch.testing.assert_close(stage.shown(real, splat), stage.codec.encode(visible))


@pytest.mark.parametrize("train_backbone", [False, True])
def test_a_frozen_backbone_is_the_teacher_and_a_trained_one_its_copy(train_backbone: bool) -> None:
    stage, _ = build(Adversarial, train_backbone=train_backbone, head_width=16)
    teacher, backbone = dict(stage.teacher.named_parameters()), dict(stage.discriminator.backbone.named_parameters())
    assert all(torch.equal(teacher[name], backbone[name]) for name in teacher)
    assert all((teacher[name] is backbone[name]) != train_backbone for name in teacher)
    assert not any(p.requires_grad for p in teacher.values())
    checkpoint = {"state_dict": stage.state_dict()}
    stage.on_save_checkpoint(checkpoint)
    saved = {name.split(".")[1] for name in checkpoint["state_dict"] if name.startswith("discriminator.")}
    assert ("backbone" in saved) == train_backbone
    assert not any(name.startswith("teacher.") for name in checkpoint["state_dict"])


def test_the_generators_term_leaves_no_gradient_in_the_discriminator(batch: VideoBatch) -> None:
    stage, _ = build(Adversarial, train_backbone=True, head_width=16)
    condition, real, _ = stage.read(batch)
    _, sample = stage.matching_terms(condition)
    stage.adversarial_term(condition, real, sample).backward()
    assert all(p.grad is None for p in stage.discriminator.parameters())
    assert all(p.requires_grad for p in stage.discriminator.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in stage.student.parameters())


def test_pull_is_the_share_of_the_gradient() -> None:
    sample = torch.ones(2, 3, requires_grad=True)
    terms = {"adversarial": (3 * sample).sum(), "a": (sample**2).sum(), "b": sample.sum()}
    measured = Adversarial.pull(terms, {"adversarial": 0.5, "a": 2.0}, sample)
    assert float(measured) == pytest.approx(1.5 / (2 * 2 + 1))
    sum(terms.values()).backward()  # the graph is still there


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"adversarial_weight": 0.0}, {"adversarial_start": 1}])
def test_without_the_term_the_student_takes_the_distillations_step(options: dict[str, Any], batch: VideoBatch) -> None:
    """The control of an experiment: the same student, rollout and critic, bit for bit."""
    plain, _ = build(Distillation, critic_updates=1)
    control, logged = build(Adversarial, critic_updates=1, head_width=16, **options)
    plain.training_step(batch, 0)
    control.training_step(batch, 0)
    assert "loss/adversarial" not in logged
    for network in ("student", "critic"):
        ours, theirs = snapshot(getattr(control, network)), snapshot(getattr(plain, network))
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_held_networks_learn_again_afterwards_even_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))

    def break_inside() -> None:
        with held(network):
            assert not any(p.requires_grad for p in network.parameters())
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        break_inside()
    assert [p.requires_grad for p in network.parameters()] == [True, True, False, False]


def test_learning_rates_end_with_the_batches_not_with_the_updates() -> None:
    stage, _ = build(Adversarial, critic_updates=3, head_width=16)
    for schedule, updates in zip(stage.lr_schedulers(), (1, 3, 1), strict=True):
        factors = [schedule.lr_lambdas[0](k) for k in range(4 * updates)]
        assert factors == [stage.learning_rate_factor(k // updates) for k in range(4 * updates)]


def play(verdict: Verdict, real: float, fake: float, spread: float = 1.0, updates: int = 10) -> list[str]:
    """The warnings while a discriminator gives logits around these means."""
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(updates):
            noise = spread * torch.randn(2, 2, 5, generator=generator)
            verdict.update(real + noise[0], fake + noise[1])
    return [str(warning.message) for warning in caught]


def test_a_discriminator_that_has_won_is_named_once() -> None:
    verdict = Verdict(window=10)
    assert play(verdict, 0.3, -0.3) == []
    assert verdict.state == "learning"
    messages = play(verdict, 20.0, -20.0, updates=40)
    assert verdict.state == "won"
    assert len(messages) == 1
    assert "has won: over 10 updates its accuracy was 1.00" in messages[0]
    assert "raise penalty_weight" in messages[0]
    assert play(verdict, 0.3, -0.3) == []
    assert verdict.state == "learning"
    assert len(play(verdict, 20.0, -20.0)) == 1  # a new victory is a new warning


def test_a_discriminator_that_collapsed_or_was_fooled_is_named() -> None:
    verdict = Verdict(window=10)
    assert "has collapsed" in play(verdict, 0.2, 0.2, spread=1e-6)[0]
    assert "has been fooled" in play(verdict, -20.0, 20.0)[0]
    assert "has collapsed" in play(verdict, float("nan"), float("nan"))[0]


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"largest_level 1\.5"):
        build(Adversarial, largest_level=1.5)
    with pytest.raises(ValueError, match="discriminator_updates"):
        build(Adversarial, discriminator_updates=0)
