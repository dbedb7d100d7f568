"""Where the photo's pixels stand and where the splat takes over, by small maps made by hand."""

import pytest
import torch
import torch.nn.functional as F

from visa.networks.rasterizer.cpu import filtered
from visa.networks.standing import (
    Splats,
    _density,
    _of_person,
    covered_by_photo,
    greatest,
    standing,
    standing_by_tensors,
)


def test_an_outline_of_the_photo_does_not_stand_amid_the_person() -> None:
    """A square of the person, 32 px wide in 64, whose right half the photo does not show; its matte ends before that.

    The matte is half at the square's left border, too, and across a part that the photo shows all around.
    """
    alpha = torch.zeros(1, 1, 1, 64, 64)
    alpha[..., 16:48, 16:48] = 1
    seen = alpha.clone()
    seen[..., 34:] = 0
    matte = seen.clone()
    matte[..., 16:48, 16] = matte[..., 16:48, 31:34] = matte[..., 20:40, 21] = 0.5
    shown = _of_person(matte, covered_by_photo(seen, alpha), alpha)[0, 0, 0]
    assert (shown[20:44, 32:34] == 0).all()
    assert (shown[16:48, 16:30] == 1).all()  # the outline of the picture is that of the photo


def test_a_surface_seen_at_a_slant_is_left_to_the_splat() -> None:
    """A flow that widens the photo by a quarter stands, one that widens it eightfold does not."""
    columns = (2 * torch.arange(64) + 1) / 64 - 1
    for stretch, expected in ((1.0, 1.0), (1.25, 1.0), (8.0, 0.0)):
        flow = torch.zeros(1, 1, 2, 64, 64)
        flow[0, 0, 0] = columns * (1 / stretch - 1)
        shown = _density(flow, torch.ones(1, 1, 1, 64, 64))[0, 0, 0, 8:-8, 8:-8]
        assert (shown - expected).abs().max() < 1e-4, stretch


@pytest.mark.parametrize("size", [32, 96, 250])
def test_the_kernel_finds_what_tensors_find(size: int) -> None:
    """Two people of two photos each: smooth random maps, motion that leads out of the photos, holes in all of them."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, cells: int = 8) -> torch.Tensor:
        """0 to 1, smooth."""
        coarse = torch.rand(2 * 3 * shape[0], 1, cells, cells, generator=generator)
        maps = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
        return maps.view(2, 3, *shape, size, size)

    alpha = (3 * drawn(1) - 1).clamp(0, 1)
    shown = alpha * (3 * drawn(1) - 1).clamp(0, 1)
    weight = shown[:, :, None] * drawn(2)[:, :, :, None]
    moved = torch.stack([drawn(2) - 0.5, drawn(2) - 0.5], dim=3) * weight
    splats = Splats(alpha, shown, drawn(1) * alpha, moved, weight, weight * drawn(2)[:, :, :, None])
    masks, parts = (torch.rand(2, 2, 1, 40, 40, generator=generator) for _ in range(2))
    found, expected = standing(splats, masks, parts / 4), standing_by_tensors(splats, masks, parts / 4)
    for name in ("covered", "weight", "trusted"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=0)
    is_there = (alpha > 0)[:, :, None].expand_as(expected.fits)
    assert 0.1 < float((expected.fits[is_there] > 0).float().mean()) < 0.95
    differs = (found.fits - torch.where(is_there, expected.fits, 0)).abs() > 2e-3
    assert float(differs.float().mean()) < 1e-4  # whether a place lies within the photo is a hair's decision


def test_filters_are_those_of_torch() -> None:
    maps = torch.rand(3, 1, 50, 130, generator=torch.Generator().manual_seed(0)) - 0.5
    torch.testing.assert_close(filtered(maps, 4, "mean"), F.avg_pool2d(maps, 9, 1, 4))
    assert torch.equal(greatest(maps, 5), F.max_pool2d(maps, 11, 1, 5))


def test_gradients_reach_weight_and_trust_and_not_what_fits() -> None:
    ones = torch.ones(1, 1, 1, 16, 16)
    weight = (0.5 * ones[:, :, None]).requires_grad_()
    splats = Splats(ones, ones, ones, torch.zeros(1, 1, 1, 2, 16, 16), weight, weight * 0.5)
    found = standing(splats, torch.ones(1, 1, 1, 8, 8), torch.ones(1, 1, 1, 8, 8))
    assert not found.fits.requires_grad
    found.trusted.sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0
