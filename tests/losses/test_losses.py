"""Flow, distillation and adversarial losses against closed forms and exact gradients."""

import pytest
import torch
import torch.nn.functional as F

from visa.losses.adversarial import approximate_penalty, discriminator_loss, generator_loss, logit_accuracy
from visa.losses.distillation import distribution_matching_loss, ode_regression_loss
from visa.losses.flow import add_noise, sample_levels, shift_levels, velocity_loss
from visa.networks.sampler import shifted_levels

PAIRINGS = ["relativistic", "hinge", "non_saturating"]


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_training_and_sampling_shift_alike() -> None:
    even = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    expected = torch.tensor(shifted_levels(4, 3.0), dtype=torch.float64)
    torch.testing.assert_close(shift_levels(even, 3.0), expected)


def test_levels_follow_the_shifted_uniform_distribution() -> None:
    drawn = sample_levels((20000,), 3.0, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert (drawn > 0).all()
    assert (drawn <= 1).all()
    assert abs(float((drawn < 0.75).float().mean()) - 0.5) < 0.02  # 3 * 0.5 / (1 + 2 * 0.5)


def test_velocity_is_the_derivative_of_the_noising() -> None:
    x0, noise = latents(0), latents(1)
    level = torch.full((2, 3), 0.4, dtype=torch.float64)
    step = 1e-6
    derivative = (add_noise(x0, noise, level + step) - add_noise(x0, noise, level - step)) / (2 * step)
    assert velocity_loss(derivative, x0, noise, level).max() < 1e-12


def test_the_floor_bounds_the_loss_of_x0_predictions() -> None:
    x0, noise, guess = latents(0), latents(1), latents(2)
    level = torch.full((2, 3), 0.05, dtype=torch.float64)
    velocity = (add_noise(x0, noise, level) - guess) / 0.05
    expected = (guess - x0).square() / 0.25**2
    torch.testing.assert_close(velocity_loss(velocity, x0, noise, level, floor=0.25), expected)
    plain = velocity_loss(velocity, x0, noise, level)
    torch.testing.assert_close(plain, (guess - x0).square() / 0.05**2)
    torch.testing.assert_close(velocity_loss(velocity, x0, noise, level * 0 + 0.5, floor=0.25), plain)


def test_the_pseudo_huber_loss_is_a_parabola_near_zero_and_a_line_far_away() -> None:
    x0, noise, velocity = latents(0), latents(1), latents(2)
    level = torch.full((2, 3), 0.4, dtype=torch.float64)
    robust = velocity_loss(velocity, x0, noise, level, huber=1e-3)
    torch.testing.assert_close(robust, (velocity - (noise - x0)).abs(), atol=1e-3, rtol=0)
    near = velocity_loss(noise - x0 + 1e-2, x0, noise, level, huber=10.0)
    torch.testing.assert_close(near, torch.full_like(near, 1e-4 / 20), atol=1e-6, rtol=0.2)


def test_distribution_matching_has_the_normalised_score_difference_as_gradient() -> None:
    x, real, fake = latents(0).requires_grad_(), latents(1), latents(2)
    distribution_matching_loss(x, real, fake).sum().backward()
    scale = (x.detach() - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(x.grad, (fake - real) / scale)


def test_ode_regression_counts_noisy_frames_only() -> None:
    x0, target = latents(0), latents(1)
    counts = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    expected = (F.mse_loss(x0[0, :, 0], target[0, :, 0]) + F.mse_loss(x0[1, :, 2], target[1, :, 2])) / 2
    torch.testing.assert_close(ode_regression_loss(x0, target, counts, torch.ones(4, 1, 1, 1)), expected)
    robust = ode_regression_loss(x0, target, counts, torch.ones(4, 1, 1, 1), huber=1e-4)
    expected = (x0 - target)[counts.bool()[:, None, :, None, None].expand_as(x0)].abs().mean()
    torch.testing.assert_close(robust, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_pairings_pull_real_up_and_fake_down(pairing: str) -> None:
    real = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    fake = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a, b: discriminator_loss(a, b, pairing), (real, fake))
    torch.autograd.gradcheck(lambda a, b: generator_loss(a, b, pairing), (real, fake))
    discriminator_loss(real, fake, pairing).sum().backward()
    assert (real.grad <= 0).all()
    assert (fake.grad >= 0).all()
    fake.grad = None
    generator_loss(real.detach(), fake, pairing).sum().backward()
    assert (fake.grad < 0).all()


def test_relativistic_losses_agree_with_binary_cross_entropy() -> None:
    real, fake = torch.randn(5), torch.randn(5)
    expected = F.binary_cross_entropy_with_logits(real - fake, torch.ones(5), reduction="none")
    torch.testing.assert_close(discriminator_loss(real, fake, "relativistic"), expected)


def test_an_unknown_pairing_is_an_error() -> None:
    for loss in (discriminator_loss, generator_loss):
        with pytest.raises(ValueError, match="choose relativistic"):
            loss(torch.zeros(1), torch.zeros(1), "nonsense")


def test_the_approximate_penalty_tends_to_the_gradient_norm() -> None:
    torch.manual_seed(0)
    judge = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(judge(x).sum(), x)
    exact = gradient.square().sum(dim=1)
    noise = torch.randn(4000, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        draws = torch.stack([approximate_penalty(judge, x, judge(x), one, sigma=1e-4) for one in noise])
    torch.testing.assert_close(draws.mean(dim=0), exact, rtol=0.1, atol=0)


def test_accuracy_is_the_share_of_pairs_told_apart() -> None:
    assert logit_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 0.5
