"""Where the photo's pixels stand and where the splat takes over, by small maps made by hand."""

import torch

from visa.networks.compositing import _density, _of_person


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
    shown = _of_person(matte, seen, alpha)[0, 0, 0]
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
