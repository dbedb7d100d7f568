"""The video shader against diffusers' own transformer, and its conditions, causality and weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanRotaryPosEmbed
from torch import Tensor

from tests.shader_inputs import MAP_CHANNELS, SMALL, make_condition, make_noisy, make_shader, make_wan_1_3b
from visa.networks.shader import RotaryTable, ShaderCondition, VideoShader, Window, load_wan_state_dict


class MaskedProcessor(WanAttnProcessor):
    """diffusers' processor under a dense boolean mask: the independent reference of ours."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        del attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)


def masked_reference(
    shader: VideoShader, noisy: Tensor, level: Tensor, condition: ShaderCondition, mask: Tensor
) -> Tensor:
    """Velocity by diffusers' forward on [reference, frames] with one timestep a token; `mask` [frames, frames]."""
    encoded = shader.encode_condition(condition)
    skip = shader.skip.view(-1, 1, 1, 1)
    residual = noisy - (1 - level)[:, None, :, None, None] * skip * encoded.guide
    frames = torch.cat([residual, encoded.guide, encoded.encoded], dim=1)
    photo = condition.reference - skip * encoded.reference_guide
    photo = torch.cat([photo, encoded.reference_guide, encoded.reference_encoded], dim=1)
    sequence = torch.cat([photo, frames], dim=2)
    tokens = (noisy.shape[-2] // 2) * (noisy.shape[-1] // 2)
    plain = WanTransformer3DModel(**dict(shader.transformer.config)).eval()
    plain.load_state_dict(shader.transformer.state_dict())
    for block in plain.blocks:
        block.attn1.set_processor(MaskedProcessor(mask.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)))
    timestep = torch.nn.functional.pad(level, (1, 0)).repeat_interleave(tokens, dim=1) * 1000
    raw = plain(sequence, timestep, shader.semantic_projection(condition.semantic)).sample[:, :, 1:]
    return raw - skip * encoded.guide


def frame_mask(num_frames: int, chunk_frames: int | None) -> Tensor:
    """Who sees whom among [reference, frames]; the reference sees itself, chunks their past (None: everything)."""
    chunk = torch.arange(num_frames) // (chunk_frames or num_frames)
    mask = torch.zeros(num_frames + 1, num_frames + 1, dtype=torch.bool)
    mask[1:, 1:] = chunk[:, None] >= chunk[None]
    mask[:, 0] = True
    return mask


@torch.no_grad()
def test_equals_the_pretrained_network_where_conditions_are_zero() -> None:
    torch.manual_seed(0)
    plain = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3,
    ).eval()  # fmt: skip
    shader = VideoShader(**{**SMALL, "guide_skip_init": 0.0, "semantic_dim": 16}).eval()
    load_wan_state_dict(shader, plain.state_dict())
    shader.semantic_projection.weight.copy_(torch.eye(16))
    shader.semantic_projection.bias.zero_()
    noisy, _ = make_noisy()
    level, text = torch.rand(2), torch.randn(2, 7, 16)
    expected = plain(noisy, level * 1000, text).sample
    condition = ShaderCondition(guide=torch.zeros_like(noisy), semantic=text)
    prediction = shader(noisy, level[:, None].expand(-1, 8), condition)
    torch.testing.assert_close(prediction.velocity, expected, atol=1e-5, rtol=0)
    # The added inputs start at zero, so that conditions change nothing before training.
    told = make_condition()
    told = ShaderCondition(guide=told.guide, maps=told.maps, semantic=text)
    prediction = shader(noisy, level[:, None].expand(-1, 8), told)
    torch.testing.assert_close(prediction.velocity, expected, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("attention", "chunk_frames"), [("full", None), ("block_causal", 3)])
def test_equals_diffusers_under_a_dense_mask(attention: str, chunk_frames: int | None) -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(), make_noisy()
    expected = masked_reference(shader, noisy, level, condition, frame_mask(8, chunk_frames))
    prediction = shader(noisy, level, condition, attention)
    torch.testing.assert_close(prediction.velocity, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["velocity", "x0", "preconditioned"])
def test_prediction_follows_the_flow(prediction: str) -> None:
    shader, condition, (noisy, level) = make_shader(prediction=prediction), make_condition(), make_noisy()
    level = level.clamp(min=0.1)
    output = shader(noisy, level, condition)
    s = level[:, None, :, None, None]
    torch.testing.assert_close(output.x0, noisy - s * output.velocity, atol=1e-5, rtol=1e-5)
    # A network that answers zero says "the guide, scaled": x0 = k g, or e - x0 + k g = 0; preconditioned it gives the
    # best linear estimate of a residual of unit variance, r (1 - s) / ((1 - s)^2 + s^2).
    shader.transformer.proj_out.weight.zero_()
    shader.transformer.proj_out.bias.zero_()
    output = shader(noisy, level, condition)
    skipped = shader.skip.view(-1, 1, 1, 1) * shader.encode_condition(condition).guide
    if prediction == "x0":
        torch.testing.assert_close(output.x0, skipped)
    elif prediction == "velocity":
        torch.testing.assert_close(output.velocity, -skipped)
    else:
        residual = noisy - (1 - s) * skipped
        torch.testing.assert_close(output.x0, skipped + residual * (1 - s) / ((1 - s) ** 2 + s**2))


@torch.no_grad()
def test_raw_output_is_read_by_its_equation() -> None:
    """The target of each mode, as the module states it, gives back the x0 and velocity that noised it.

    The two modes that do not divide by s hold at its ends as well; preconditioned, the target keeps unit variance.
    """
    generator = torch.Generator().manual_seed(4)
    x0, noise, guide = (torch.randn(2, 4, 6, 16, 24, generator=generator) for _ in range(3))
    level = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.8, 1.0]).expand(2, -1)
    s = level[:, None, :, None, None]
    noisy = (1 - s) * x0 + s * noise
    power = (1 - s) ** 2 + s**2
    for prediction in ("velocity", "x0", "preconditioned"):
        shader = make_shader(prediction=prediction)
        skipped = shader.skip.view(-1, 1, 1, 1) * guide
        residual = x0 - skipped
        raw = {
            "velocity": noise - residual,
            "x0": residual,
            "preconditioned": (s * residual - (1 - s) * noise) / power.sqrt(),
        }[prediction]
        output = shader.interpret(raw, noisy, level, guide)
        torch.testing.assert_close(output.x0, x0, atol=2e-6, rtol=1e-5)
        first = 1 if prediction == "x0" else 0
        velocity = (noise - x0)[:, :, first:]
        torch.testing.assert_close(output.velocity[:, :, first:], velocity, atol=2e-5, rtol=1e-5)
    unit = (s * x0 - (1 - s) * noise) / power.sqrt()  # of a residual of unit variance
    torch.testing.assert_close(unit.std((0, 1, 3, 4)), torch.ones(6), atol=0.03, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, Window(sink_frames=3, recent_frames=3)])
def test_later_frames_never_change_earlier_chunks(window: Window | None) -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(14), make_noisy(14)
    before = shader(noisy, level, condition, "block_causal", window).x0
    for frame in (4, 11):
        noisy2, level2 = noisy.clone(), level.clone()
        noisy2[:, :, frame] += 1
        level2[:, frame] *= 0.5
        changed = condition.map(lambda tensor: tensor.clone())
        changed.guide[:, :, frame] += 1
        changed.maps[:, frame] += 1
        after = shader(noisy2, level2, changed, "block_causal", window).x0
        start = frame // 3 * 3
        assert torch.equal(after[:, :, :start], before[:, :, :start])
        assert not torch.allclose(after[:, :, start:], before[:, :, start:])


@torch.no_grad()
def test_the_reference_reaches_every_frame() -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(14), make_noisy(14)
    other = condition.map(lambda tensor: tensor.clone())
    other.reference.neg_()
    window = Window(sink_frames=0, recent_frames=3)
    for arguments in (("full",), ("block_causal",), ("block_causal", window)):
        difference = shader(noisy, level, condition, *arguments).x0 - shader(noisy, level, other, *arguments).x0
        assert difference.abs().amax((0, 1, 3, 4)).min() > 1e-5


@torch.no_grad()
def test_a_window_that_holds_everything_changes_nothing() -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(11), make_noisy(11)
    whole = shader(noisy, level, condition, "block_causal").x0
    torch.testing.assert_close(shader(noisy, level, condition, "block_causal", Window(3, 6)).x0, whole)
    assert not torch.allclose(shader(noisy, level, condition, "block_causal", Window(3, 3)).x0, whole)


@torch.no_grad()
def test_dropped_signals_are_gone_and_by_sample() -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(), make_noisy()
    whole = shader(noisy, level, condition).x0
    assert torch.equal(shader(noisy, level, condition.drop(torch.tensor([False, False]))).x0, whole)
    corrected = shader.encode_condition(condition).guide
    other = shader.encode_condition(condition.map(lambda tensor: tensor + 1))
    other.guide = corrected  # the skip path stays, dropped or not
    for which in (("maps",), ("semantic",), ("reference",)):
        mixed = shader(noisy, level, condition.drop(torch.tensor([True, False]), which)).x0
        assert torch.equal(mixed[1], whole[1])
        assert not torch.allclose(mixed[0], whole[0])
    one = shader(noisy, level, condition.drop()).x0
    torch.testing.assert_close(shader(noisy, level, other.drop()).x0, one)
    # Absent and dropped are one thing; the skip of the guide remains.
    absent = ShaderCondition(
        guide=corrected, reference=condition.reference, reference_guide=condition.reference_guide
    ).drop(which=["reference"])
    torch.testing.assert_close(shader(noisy, level, absent).x0, one, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="no such signal"):
        condition.drop(which=["text"])


def test_conditions_slice_and_join() -> None:
    condition = make_condition()
    part = condition.slice(2, 5)
    assert part.guide.shape[2] == part.maps.shape[1] == 3
    assert not part.starts_clip
    joined = ShaderCondition.cat([condition, condition.drop(which=["maps"])])
    assert joined.batch_size == 4
    assert joined.maps_dropped.tolist() == [False, False, True, True]
    assert joined.semantic_dropped is None
    with pytest.raises(ValueError, match="encode_condition"):
        make_condition(temporal_stride=4).slice(0, 2)
    with pytest.raises(ValueError, match="differ in 'semantic'"):
        ShaderCondition.cat([condition, ShaderCondition(**{**vars(condition), "semantic": None})])


@torch.no_grad()
def test_condition_head_keeps_the_codecs_time() -> None:
    shader = make_shader(temporal_stride=4)
    maps = torch.randn(1, 13, MAP_CHANNELS, 32, 48)
    head = shader.condition_head
    for output, channels in enumerate((3, 4)):  # the encoded maps, the guide's correction
        whole = head(maps, True)[output]
        assert whole.shape == (1, channels, 4, 4, 6)
        parts = [head(maps[:, :5], True)[output], head(maps[:, 5:], False)[output]]
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-6, rtol=1e-6)
        changed = maps.clone()
        changed[:, 5:9] += 1  # the pixel frames of latent frame 2, and of no other
        is_changed = (head(changed, True)[output] - whole).abs().amax((0, 1, 3, 4)) > 0
        assert is_changed.tolist() == [False, False, True, False]
    with pytest.raises(ValueError, match="temporal stride"):
        shader.condition_head(maps[:, :4], True)


def gradients(shader: VideoShader, attention: str) -> dict[str, Tensor]:
    condition, (noisy, level) = make_condition(), make_noisy()
    shader.zero_grad()
    condition = condition.drop(torch.tensor([True, False]))
    shader(noisy, level, condition, attention).velocity.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in shader.named_parameters()}


@pytest.mark.parametrize("attention", ["full", "block_causal"])
def test_checkpointing_changes_no_gradient(attention: str) -> None:
    shader = make_shader()
    plain = gradients(shader, attention)  # every parameter has one, or this raises
    shader.gradient_checkpointing = True
    for name, gradient in gradients(shader, attention).items():
        assert torch.equal(gradient, plain[name]), name
        assert gradient.abs().max() > 0, name


@torch.no_grad()
def test_features_are_those_of_the_forward_pass() -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(), make_noisy()
    features = shader.features(noisy, level, condition, [0, 2])
    assert features[0].frames.shape == (2, 8, 6, 24)
    assert features[0].reference.shape == (2, 1, 6, 24)
    tokens = torch.cat([features[1].reference, features[1].frames], dim=1).flatten(0, 1)
    embedded = shader.embed_level(torch.nn.functional.pad(level, (1, 0)))
    raw = shader.project_out(tokens, embedded, 9, (4, 6))[:, :, 1:]
    torch.testing.assert_close(
        shader.interpret(raw, noisy, level, shader.encode_condition(condition).guide).x0,
        shader(noisy, level, condition).x0,
    )
    with pytest.raises(ValueError, match="ascending"):
        shader.features(noisy, level, condition, [2, 0])


@pytest.mark.parametrize("head_dim", [12, 64, 128])
def test_rotary_positions_are_wans_and_have_no_end(head_dim: int) -> None:
    table = RotaryTable(head_dim, 3, 5, torch.device("cpu"))
    cosine, sine = WanRotaryPosEmbed(head_dim, (1, 2, 2), 64)(torch.zeros(1, 1, 7, 6, 10))
    ours = table.at(range(7))[:, 0]
    torch.testing.assert_close(ours.real, cosine[0, :, 0, ::2], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.imag, sine[0, :, 0, ::2], atol=1e-6, rtol=0)
    near, far = table.at([0, 3]), table.at([100_000, 100_003])
    torch.testing.assert_close(near[15:] * near[:15].conj(), far[15:] * far[:15].conj(), atol=1e-5, rtol=0)


def test_wan_1_3b_has_the_published_keys_and_shapes() -> None:
    """Shapes of Wan-AI/Wan2.1-T2V-1.3B-Diffusers: 30 layers of width 1536, checked against numbers stated here."""
    shader, original = make_wan_1_3b()
    state = original.state_dict()
    assert len(state) == 825
    assert sum(value.numel() for value in state.values()) == 1_418_996_800
    assert state["patch_embedding.weight"].shape == (1536, 16, 1, 2, 2)
    load_wan_state_dict(shader, state)
    added = sum(value.numel() for value in shader.transformer.parameters()) - 1_418_996_800
    assert added == (16 + 32) * 1536 * 4  # the new inputs of the patch embedding and nothing else


def test_wan_weights_must_fit() -> None:
    shader = VideoShader(**SMALL)
    state = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3,
    ).state_dict()  # fmt: skip
    load_wan_state_dict(shader, state)
    assert torch.equal(shader.transformer.patch_embedding.weight[:, :4], state["patch_embedding.weight"])
    assert not shader.transformer.patch_embedding.weight[:, 4:].any()
    name = "blocks.1.attn1.to_q.weight"
    with pytest.raises(ValueError, match=f"lack 1 tensors \\({name}"):
        load_wan_state_dict(shader, {key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match="unknown tensors"):
        load_wan_state_dict(shader, {**state, "blocks.9.more": torch.zeros(1)})
    with pytest.raises(ValueError, match="check its sizes"):
        load_wan_state_dict(shader, {**state, name: torch.zeros(2, 2)})


def test_misuse_is_named() -> None:
    shader, condition, (noisy, level) = make_shader(), make_condition(), make_noisy()
    for keyword, match in (
        ({"prediction": "noise"}, "choose velocity"),
        ({"patch_size": (2, 2, 2)}, "one latent frame"),
    ):
        with pytest.raises(ValueError, match=match):
            VideoShader(**{**SMALL, **keyword})
    with pytest.raises(ValueError, match="level has shape"):
        shader(noisy, level[:, 0], condition)
    with pytest.raises(ValueError, match="8 latent frames, the latents 7"):
        shader(noisy[:, :, :7], level[:, :7], condition)
    with pytest.raises(ValueError, match="attention 'causal' is unknown"):
        shader(noisy, level, condition, "causal")
    with pytest.raises(ValueError, match="set semantic_dim to the semantic encoder's width"):
        shader(noisy, level, ShaderCondition(**{**vars(condition), "semantic": torch.zeros(2, 5, 9)}))
    with pytest.raises(ValueError, match="block_causal attention only"):
        shader(noisy, level, condition, "full", Window())
