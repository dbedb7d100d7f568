"""Cached rollouts against one-shot forwards, gradients through one step, endless streams, and the many-step sampler."""

import pytest
import torch
from torch import Tensor

from tests.shader_inputs import make_condition, make_shader
from visa.networks.rollout import CausalRollout
from visa.networks.sampler import draw_noise, integrate, sample_bidirectional, shifted_levels
from visa.networks.shader import ShaderCondition, VideoShader, Window

LEVELS = (1.0, 0.8, 0.5)


def make_noise(num_frames: int, num_levels: int = len(LEVELS), batch: int = 2) -> Tensor:
    return torch.randn(num_levels, batch, 4, num_frames, 4, 6, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def recomputed(shader: VideoShader, condition: ShaderCondition, noise: Tensor, window: Window | None) -> Tensor:
    """The rollout without a cache: each step is one forward over the whole past, clean, and the noisy chunk."""
    clean: list[Tensor] = []
    for start in range(0, condition.num_frames, 3):
        stop = min(start + 3, condition.num_frames)
        x0 = None
        for index, s in enumerate(LEVELS):
            fresh = noise[index][:, :, start:stop]
            state = fresh if x0 is None else (1 - s) * x0 + s * fresh
            sequence = torch.cat([*clean, state], dim=2)
            level = torch.zeros(sequence.shape[0], stop)
            level[:, start:] = s
            x0 = shader(sequence, level, condition.slice(0, stop), "block_causal", window).x0[:, :, start:]
        clean.append(x0)
    return torch.cat(clean, dim=2)


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
@pytest.mark.parametrize("num_frames", [9, 11])
def test_cached_rollout_equals_the_masked_forward(num_frames: int, prediction: str) -> None:
    shader, condition = make_shader(prediction=prediction), make_condition(num_frames)
    noise = make_noise(num_frames)
    latents = CausalRollout(shader, LEVELS)(condition, noise=noise)
    torch.testing.assert_close(latents, recomputed(shader, condition, noise, None), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("window", [Window(3, 6), Window(0, 3), Window(3, 3)])
def test_sliding_rollout_equals_the_banded_forward(window: Window) -> None:
    """17 frames pass the window two to four times over; the forward sees the whole sequence under the banded mask."""
    shader, condition, noise = make_shader(), make_condition(17), make_noise(17)
    latents = CausalRollout(shader, LEVELS, window)(condition, noise=noise)
    torch.testing.assert_close(latents, recomputed(shader, condition, noise, window), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(latents, recomputed(shader, condition, noise, None), atol=1e-4)


@torch.no_grad()
def test_streaming_chunk_by_chunk_equals_the_call() -> None:
    """Pixel maps arrive with their chunk, at a codec's temporal stride of 4 with a lone first frame."""
    shader, condition = make_shader(temporal_stride=4), make_condition(8, temporal_stride=4)
    noise = make_noise(8)
    rollout = CausalRollout(shader, LEVELS, Window(3, 3))
    whole = rollout(condition, noise=noise)
    rollout.start(condition)
    parts = []
    for start, stop in ((0, 3), (3, 6), (6, 8)):
        chunk = ShaderCondition(
            guide=condition.guide[:, :, start:stop],
            maps=condition.maps[:, max(0, 4 * start - 3) : 4 * stop - 3],
            starts_clip=start == 0,
        )
        parts.append(rollout.step(chunk, noise=noise[:, :, :, start:stop]))
    torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="ends the video"):
        rollout.step(chunk)


@torch.no_grad()
def test_the_future_never_changes_the_past() -> None:
    shader, condition, noise = make_shader(), make_condition(14), make_noise(14)
    rollout = CausalRollout(shader, LEVELS, Window(3, 3))
    before = rollout(condition, noise=noise)
    condition.guide[:, :, 10] += 1
    condition.maps[:, 10] += 1
    after = rollout(condition, noise=noise)
    assert torch.equal(after[:, :, :9], before[:, :, :9])
    assert (after - before).abs().amax((0, 1, 3, 4))[9:].min() > 0


@torch.no_grad()
def test_reference_sink_and_semantic_tokens_reach_the_last_chunk() -> None:
    shader, condition, noise = make_shader(), make_condition(15), make_noise(15)
    rollout = CausalRollout(shader, (1.0,), Window(3, 3))
    before = rollout(condition, noise=noise)[:, :, 12:]
    for name in ("reference", "semantic"):
        changed = condition.map(lambda tensor: tensor.clone())
        getattr(changed, name).neg_()
        assert (rollout(changed, noise=noise)[:, :, 12:] - before).abs().max() > 1e-4
    assert rollout.window.held(12) == [0, 1, 2, 9, 10, 11]


@torch.no_grad()
def test_a_long_stream_keeps_its_memory() -> None:
    shader, condition = make_shader(), make_condition(3, batch=1)
    rollout = CausalRollout(shader, (1.0,), Window(3, 6))
    rollout.start(condition)
    generator = torch.Generator().manual_seed(0)
    cache = rollout._cache
    places = [tensor.data_ptr() for tensor in (*cache.keys, *cache.rotated_keys, *cache.values)]
    held = []
    for _ in range(200):
        latents = rollout.step(condition, generator)
        held.append(cache.num_held)
    assert held[:5] == [4, 7, 10, 10, 10]
    assert held[-1] == 10
    assert torch.isfinite(latents).all()
    rollout.start(condition)
    assert rollout._cache is cache
    assert places == [tensor.data_ptr() for tensor in (*cache.keys, *cache.rotated_keys, *cache.values)]


def rollout_gradients(shader: VideoShader, keep_rolling: bool) -> dict[str, Tensor]:
    """Gradient of the third chunk's exit step, taken at once or after the cache has slid on."""
    condition, noise = make_condition(15), make_noise(15)
    rollout = CausalRollout(shader, LEVELS, Window(0, 3))
    shader.zero_grad()
    rollout.start(condition)
    result = None
    for start in range(0, 15 if keep_rolling else 9, 3):
        chunk, chunk_noise = condition.slice(start, start + 3), noise[:, :, :, start : start + 3]
        is_third = start == 6
        latents = rollout.step(chunk, noise=chunk_noise, exit_step=1, requires_grad=is_third)
        assert latents.requires_grad == is_third
        result = latents if is_third else result
    result.square().sum().backward()
    return {name: p.grad.clone() for name, p in shader.named_parameters() if p.grad is not None}


def test_gradient_of_one_step_survives_the_moving_cache() -> None:
    shader = make_shader()
    at_once = rollout_gradients(shader, keep_rolling=False)
    assert {"semantic_projection.weight", "condition_head.project.weight", "skip"} <= at_once.keys()
    assert len(at_once) == len(list(shader.parameters())) - 2  # nothing was dropped: the two null vectors rest
    for checkpointing in (False, True):
        shader.gradient_checkpointing = checkpointing
        later = rollout_gradients(shader, keep_rolling=True)
        for name, gradient in at_once.items():
            torch.testing.assert_close(later[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_gradient_is_that_of_the_exit_step_alone() -> None:
    """Independent reference: the state before the exit step, held fixed, through the masked one-shot forward."""
    shader, condition, noise = make_shader(), make_condition(3), make_noise(3)
    with torch.no_grad():
        first = CausalRollout(shader, LEVELS)(condition, noise=noise, exit_step=0)
    state = 0.2 * first + 0.8 * noise[1]
    # The reference's keys carry no gradient in a rollout, and none reaches the guide through the other frames.
    expected_guide = condition.guide.clone().requires_grad_()
    expected = shader(
        state, torch.full((2, 3), 0.8), ShaderCondition(**{**vars(condition), "guide": expected_guide}), "block_causal"
    ).x0
    expected.square().sum().backward()
    guide = condition.guide.clone().requires_grad_()
    shader.zero_grad()
    latents = CausalRollout(shader, LEVELS)(
        ShaderCondition(**{**vars(condition), "guide": guide}), noise=noise, exit_step=1, requires_grad=True
    )
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    latents.square().sum().backward()
    torch.testing.assert_close(guide.grad, expected_guide.grad, atol=1e-5, rtol=1e-5)


def test_training_goes_on_after_a_rollout_in_inference_mode() -> None:
    shader, condition, noise = make_shader(), make_condition(9), make_noise(9)
    rollout = CausalRollout(shader, LEVELS, Window(0, 3))
    with torch.inference_mode():
        before = rollout(condition, noise=noise)
    cache = rollout._cache
    latents = rollout(condition, noise=noise, requires_grad=True)
    assert rollout._cache is cache
    latents.sum().backward()
    torch.testing.assert_close(latents, before.clone())


def test_autocast_loses_no_gradient() -> None:
    """Weights that autocast cast without gradient, in the earlier steps, must not serve the step that learns."""
    shader, condition, noise = make_shader(), make_condition(6), make_noise(6)
    with torch.autocast("cpu", torch.bfloat16):
        CausalRollout(shader, LEVELS)(condition, noise=noise, exit_step=1, requires_grad=True).sum().backward()
    missing = [name for name, parameter in shader.named_parameters() if parameter.grad is None]
    assert missing == ["null_maps", "null_semantic"]


@torch.no_grad()
def test_guidance_extrapolates_from_the_dropped_branch() -> None:
    shader, condition, noise = make_shader(), make_condition(3), make_noise(3)
    x0 = sample_bidirectional(shader, condition, num_steps=1, noise=noise[0], guidance=3.0)
    level = torch.ones(2, 3)
    both = [shader(noise[0], level, case).x0 for case in (condition, condition.drop())]
    torch.testing.assert_close(x0, both[1] + 3.0 * (both[0] - both[1]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generators_decide_the_result() -> None:
    shader, condition = make_shader(), make_condition(6)
    rollout = CausalRollout(shader, LEVELS)
    first, second = (rollout(condition, torch.Generator().manual_seed(seed)) for seed in (0, 0))
    assert torch.equal(first, second)
    assert not torch.equal(first, rollout(condition, torch.Generator().manual_seed(1)))
    noise = draw_noise(condition.guide, torch.Generator().manual_seed(5))
    drawn = sample_bidirectional(shader, condition, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(sample_bidirectional(shader, condition, 3, noise=noise), drawn)


def test_levels_shift_towards_noise() -> None:
    assert shifted_levels(4, 1.0) == [1.0, 0.75, 0.5, 0.25, 0.0]
    torch.testing.assert_close(torch.tensor(shifted_levels(4, 5.0)), torch.tensor([1, 15 / 16, 5 / 6, 5 / 8, 0]))


@torch.no_grad()
def test_sampler_takes_eulers_steps() -> None:
    shader, condition, noise = make_shader(), make_condition(4), make_noise(4, 1)[0]
    states = dict(integrate(shader, condition, [1.0, 0.6, 0.0], noise))
    middle = noise - 0.4 * shader(noise, torch.ones(2, 4), condition).velocity
    torch.testing.assert_close(states[0.6], middle)
    torch.testing.assert_close(states[0.0], shader(middle, torch.full((2, 4), 0.6), condition).x0)


@torch.no_grad()
@pytest.mark.parametrize("is_cast", [True, False])
def test_bfloat16_rolls_out(is_cast: bool) -> None:
    """Under autocast and with weights of bfloat16."""
    shader, condition, noise = make_shader(), make_condition(8), make_noise(8)
    exact = CausalRollout(shader, LEVELS, Window(3, 3))(condition, noise=noise)
    if is_cast:
        shader.bfloat16()
        condition = condition.map(lambda tensor: tensor.bfloat16())
    rollout = CausalRollout(shader, LEVELS, Window(3, 3))
    with torch.autocast("cpu", torch.bfloat16, enabled=not is_cast):
        latents = rollout(condition, noise=noise)
    assert rollout._cache.keys[0].dtype == torch.bfloat16
    assert (latents - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_misuse_is_named() -> None:
    shader, condition = make_shader(), make_condition(6)
    for levels in ((), (0.9, 0.5), (1.0, 0.5, 0.7), (1.0, 0.0)):
        with pytest.raises(ValueError, match="noise_levels"):
            CausalRollout(shader, levels)
    with pytest.raises(ValueError, match="call start"):
        CausalRollout(shader).step(condition.slice(0, 3))
    for window in (Window(2, 9), Window(3, 7), Window(3, 0), Window(-3, 9)):
        with pytest.raises(ValueError, match="multiples of the chunk's 3 frames"):
            CausalRollout(shader, window=window)
    rollout = CausalRollout(shader)
    with pytest.raises(ValueError, match="no reference"):
        rollout.start(ShaderCondition(guide=condition.guide))
    rollout.start(condition)
    with pytest.raises(ValueError, match="1 to 3 latent frames"):
        rollout.step(condition)
    with pytest.raises(ValueError, match="exit_step 4"):
        rollout.step(condition.slice(0, 3), exit_step=4)
