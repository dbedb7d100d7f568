"""The discriminator: what its branches see, who learns, and that it can learn."""

import copy

import pytest
import torch
from torch import Tensor

from tests.shader_inputs import make_condition, make_noisy, make_shader, make_wan_1_3b
from visa.losses.adversarial import approximate_penalty
from visa.networks.discriminator import TokenProbe, WanDiscriminator
from visa.networks.shader import ShaderCondition, VideoShader, load_wan_state_dict


def make_discriminator(**arguments: object) -> WanDiscriminator:
    shader = make_shader()
    return WanDiscriminator(shader, **{"width": 16, "num_heads": 2, **arguments})


@pytest.mark.parametrize(
    ("num_layers", "expected"), [(1, [0]), (2, [0, 1]), (6, [2, 4, 5]), (30, [13, 20, 29]), (20, [8, 13, 19])]
)
def test_depths_become_blocks(num_layers: int, expected: list[int]) -> None:
    with torch.device("meta"):
        shader = VideoShader(num_layers=num_layers, num_heads=1, head_dim=12, ffn_dim=8, text_dim=8)
        discriminator = WanDiscriminator(shader)
    assert discriminator.layers == expected
    assert len(discriminator.local_probes) == len(expected)


@torch.no_grad()
@pytest.mark.parametrize("use_reference", [True, False])
def test_local_logits_judge_frames_and_the_clip_logit_all(use_reference: bool) -> None:
    """Given the backbone's tokens, a frame's logit reads that frame alone, the clip's logit every frame."""
    discriminator = make_discriminator(use_reference=use_reference)
    noisy, level = make_noisy()
    features = discriminator.backbone.features(noisy, level, make_condition(), discriminator.layers)
    before = discriminator.judge(features)
    assert before.local.shape == (2, 8)
    assert before.clip.shape == (2,)
    for feature in features:
        feature.frames[0, 3].neg_()
    after = discriminator.judge(features)
    changed = (after.local - before.local).abs() > 1e-6
    assert changed.nonzero().tolist() == [[0, 3]]
    assert ((after.clip - before.clip).abs() > 1e-6).tolist() == [True, False]
    for feature in features:
        feature.reference.neg_()
    assert ((discriminator.judge(features).clip - after.clip).abs() > 1e-6).tolist() == [use_reference] * 2


@torch.no_grad()
def test_probe_is_softmax_attention() -> None:
    """Independent reference: one head behind a hidden layer, written out."""
    torch.manual_seed(0)
    probe = TokenProbe(6, 4, 1, False)
    tokens = torch.randn(2, 5, 6)
    hidden = torch.nn.functional.gelu(probe.hidden[0](torch.nn.functional.layer_norm(tokens, (6,))))
    key, value = probe.key_value(hidden).chunk(2, dim=-1)
    weights = torch.softmax((key @ probe.register_token) / 2.0, dim=-1)
    torch.testing.assert_close(probe(tokens, None), (weights[..., None] * value).sum(1))


def test_a_frozen_backbone_passes_gradients_to_its_input_alone() -> None:
    discriminator = make_discriminator()
    (noisy, level), condition = make_noisy(), make_condition()
    logits = discriminator(noisy, level, condition)
    (logits.local.sum() + logits.clip.sum()).backward()
    for name, parameter in discriminator.named_parameters():
        assert (parameter.grad is None) == name.startswith("backbone."), name
    noisy.requires_grad_()
    logits = discriminator(noisy, level, condition)
    gradient = torch.autograd.grad(logits.local.sum() + logits.clip.sum(), noisy)[0]
    assert gradient.abs().amax((1, 3, 4)).min() > 0


def test_a_trained_backbone_learns() -> None:
    discriminator = make_discriminator(train_backbone=True)
    (noisy, level), condition = make_noisy(), make_condition()
    logits = discriminator(noisy, level, condition)
    (logits.local.sum() + logits.clip.sum()).backward()
    assert discriminator.backbone.transformer.blocks[0].attn1.to_q.weight.grad.abs().max() > 0
    assert discriminator.backbone.condition_head.project.weight.grad.abs().max() > 0


@pytest.mark.slow
def test_learns_whether_the_clip_shows_the_reference() -> None:
    """Real: the clip repeats its photo. Fake: the photo of another sample. Only the global branch can tell."""
    torch.manual_seed(0)
    shader = make_shader(num_layers=2)
    discriminator = WanDiscriminator(shader, width=16, num_heads=2)
    optimizer = torch.optim.Adam([p for p in discriminator.parameters() if p.requires_grad], lr=3e-3)

    def logits(batch: int) -> Tensor:
        photo = torch.randn(batch, 4, 1, 1, 1).expand(-1, -1, -1, 4, 4)
        clip = photo.expand(-1, -1, 2, -1, -1)
        both = torch.cat([photo, photo.roll(1, 0)])
        zeros = torch.zeros_like(both)
        condition = ShaderCondition(zeros.expand(-1, -1, 2, -1, -1), reference=both, reference_guide=zeros)
        level = torch.full((2 * batch, 2), 0.1)
        noisy = 0.9 * clip + 0.1 * torch.randn_like(clip)
        return discriminator(noisy.repeat(2, 1, 1, 1, 1), level, condition).clip

    for _ in range(300):
        real, fake = logits(32).chunk(2)
        optimizer.zero_grad()
        torch.nn.functional.softplus(fake - real).mean().backward()
        optimizer.step()
    with torch.no_grad():
        real, fake = logits(256).chunk(2)
    assert (real > fake).float().mean() > 0.75


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="depths"):
        make_discriminator(depths=(0.0, 0.5))
    with pytest.raises(ValueError, match="must divide"):
        make_discriminator(width=15)
    (noisy, level), condition = make_noisy(), make_condition()
    alone = ShaderCondition(guide=condition.guide, maps=condition.maps, semantic=condition.semantic)
    with pytest.raises(ValueError, match="needs a reference"):
        make_discriminator()(noisy, level, alone)
    assert make_discriminator(use_reference=False)(noisy, level, alone).clip.shape == (2,)


def test_copies_do_not_share_the_backbone() -> None:
    shader = make_shader()
    discriminator = WanDiscriminator(copy.deepcopy(shader), width=16, num_heads=2)
    assert all(parameter.requires_grad for parameter in shader.parameters())
    assert not any(parameter.requires_grad for parameter in discriminator.backbone.parameters())


def test_a_discriminator_on_wan_1_3b_has_its_keys_and_heads() -> None:
    """Meta device: the backbone keeps every published key; the heads have the stated shapes at full width."""
    shader, original = make_wan_1_3b()
    with torch.device("meta"):
        discriminator = WanDiscriminator(shader, num_heads=12)
    published = original.state_dict()
    assert len(published) == 825
    own = discriminator.state_dict()
    backbone = {n.removeprefix("backbone.transformer."): v for n, v in own.items() if n.startswith("backbone.transf")}
    assert set(backbone) == set(published)
    differing = {name for name, value in published.items() if backbone[name].shape != value.shape}
    assert differing == {"patch_embedding.weight"}  # the condition's input channels
    load_wan_state_dict(discriminator.backbone, published)
    heads = {n: v for n, v in own.items() if not n.startswith("backbone.")}
    width, depths = 1536, 3
    hidden = width * width + width
    probe = 2 * width + hidden + 2 * width * width + 2 * width  # LayerNorm, hidden layer, keys and values
    local = probe + width  # register token
    clip = probe + width * width + width + (2 * width * width + width) + (width * width + width)
    head = 2 * depths * width + (depths * width * width + width) + (width + 1)
    assert sum(value.numel() for value in heads.values()) == depths * (local + clip) + 2 * head
    trained = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert trained == set(heads)


def one_clip(copies: int) -> tuple[Tensor, Tensor, ShaderCondition]:
    """One noised clip of two frames, its level and its condition, the latter two repeated."""
    noisy, level = make_noisy(2, 1)
    condition = make_condition(2, 1).map(lambda x: x.repeat_interleave(copies, dim=0))
    return noisy, level.repeat_interleave(copies, dim=0), condition


def logits_of(discriminator: WanDiscriminator, noisy: Tensor, level: Tensor, condition: ShaderCondition) -> Tensor:
    judged = discriminator(noisy, level, condition)
    return torch.cat([judged.local, judged.clip[:, None]], dim=1)


def test_input_gradients_are_differences_of_the_logits() -> None:
    """Autograd through the frozen backbone against central differences along random directions."""
    discriminator = make_discriminator()
    noisy, level, condition = one_clip(1)
    noisy.requires_grad_()
    gradient = torch.autograd.grad(logits_of(discriminator, noisy, level, condition).sum(), noisy)[0]
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        direction = torch.randn(noisy.shape, generator=generator)
        with torch.no_grad():
            ahead, behind = (
                logits_of(discriminator, noisy + s * direction, level, condition).sum() for s in (5e-3, -5e-3)
            )
        measured = float(ahead - behind) / 1e-2
        assert measured == pytest.approx(float((gradient * direction).sum()), rel=0.03, abs=2e-3)


def test_the_approximate_penalty_is_r1_of_this_network() -> None:
    """Finite differences over many draws against the exact squared gradients of every logit."""
    discriminator = make_discriminator()
    noisy, level, condition = one_clip(1)
    noisy.requires_grad_()
    logits = logits_of(discriminator, noisy, level, condition)[0]
    exact = sum(torch.autograd.grad(x, noisy, retain_graph=True)[0].square().sum() for x in logits)
    copies, generator = 512, torch.Generator().manual_seed(0)
    noisy, level, condition = one_clip(copies)
    many = noisy.expand(copies, -1, -1, -1, -1)
    draws = torch.randn(many.shape, generator=generator)

    def judge(x: Tensor) -> Tensor:
        return logits_of(discriminator, x, level, condition)

    with torch.no_grad():
        approximate = approximate_penalty(judge, many, judge(many), draws)
    assert float(approximate.mean()) == pytest.approx(float(exact), rel=0.15)
