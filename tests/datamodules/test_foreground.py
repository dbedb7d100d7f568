"""Colours without their background: against a picture that was composed of known parts."""

import pytest
import torch
import torch.nn.functional as F

from visa.datamodules.foreground import foreground

SIZE = 64


def disc(softness: float) -> torch.Tensor:
    """A matte `[1,1,H,W]`."""
    steps = torch.arange(SIZE) - SIZE / 2 + 0.5
    return ((20 - (steps[:, None] ** 2 + steps[None] ** 2).sqrt()) / softness + 0.5).clamp(0, 1)[None, None]


@pytest.mark.parametrize(("softness", "left"), [(1.0, 0.1), (6.0, 0.35)])
def test_a_composed_picture_gives_its_foreground_back(softness: float, left: float) -> None:
    own, behind = torch.tensor([0.2, 0.15, 0.1]), torch.tensor([0.1, 0.9, 0.2])
    matte = disc(softness)
    image = own.view(1, 3, 1, 1) * matte + behind.view(1, 3, 1, 1) * (1 - matte)
    found = foreground(image, matte)
    edge = ((matte > 0.1) & (matte < 0.9)).expand(-1, 3, -1, -1)
    before = (image - own.view(1, 3, 1, 1)).abs()[edge].mean()
    after = (found - own.view(1, 3, 1, 1)).abs()[edge].mean()
    assert after < left * before


def test_what_is_whole_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    torch.testing.assert_close(foreground(image, torch.ones(2, 1, SIZE, SIZE)), image, atol=1e-4, rtol=0)
    inside = F.max_pool2d(1 - disc(6.0), 3, 1, 1) == 0
    found = foreground(image[:1], disc(6.0))
    torch.testing.assert_close(found[:, :, inside[0, 0]], image[:1][:, :, inside[0, 0]], atol=1e-4, rtol=0)


def test_a_matte_of_nothing_is_no_division_by_nothing() -> None:
    image = torch.rand(1, 3, SIZE, SIZE)
    assert foreground(image, torch.zeros(1, 1, SIZE, SIZE)).isfinite().all()
