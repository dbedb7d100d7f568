"""Mattes and colours without their background: against a picture that was composed of known parts."""

import subprocess
import sys

import torch

from tests.conftest import ROOT
from visa.datamodules.foreground import cleaned

SIZE = 96
OWN, BEHIND = torch.tensor([0.2, 0.15, 0.1]), torch.tensor([0.1, 0.9, 0.2])


def disc(radius: float, softness: float) -> torch.Tensor:
    """A matte `[1,1,H,W]`."""
    steps = torch.arange(SIZE) - SIZE / 2 + 0.5
    return ((radius - (steps[:, None] ** 2 + steps[None] ** 2).sqrt()) / softness + 0.5).clamp(0, 1)[None, None]


def composed(matte: torch.Tensor) -> torch.Tensor:
    """A person of one colour before a wall of another."""
    return OWN.view(1, 3, 1, 1) * matte + BEHIND.view(1, 3, 1, 1) * (1 - matte)


def test_a_matte_that_is_too_wide_is_cut_to_the_person() -> None:
    truth, coarse = disc(30, 4.0), disc(33, 4.0)
    _, found = cleaned(composed(truth), coarse)
    assert (found - truth).abs().mean() < 0.3 * (coarse - truth).abs().mean()


def test_colours_at_the_edge_are_the_persons() -> None:
    truth = disc(30, 4.0)
    image = composed(truth)
    found, _ = cleaned(image, disc(32, 4.0))
    edge = ((truth > 0.2) & (truth < 0.9)).expand(-1, 3, -1, -1)
    own = OWN.view(1, 3, 1, 1)
    assert (found - own).abs()[edge].mean() < 0.2 * (image - own).abs()[edge].mean()


def test_what_is_sure_stays() -> None:
    image = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    whole = torch.ones(2, 1, SIZE, SIZE)
    for found, given in zip(cleaned(image, whole), (image, whole), strict=True):
        torch.testing.assert_close(found, given, atol=0, rtol=0)
    found, matte = cleaned(image[:1], disc(30, 4.0))
    core = disc(20, 1.0)[0, 0] == 1
    torch.testing.assert_close(found[:, :, core], image[:1][:, :, core])
    assert bool((matte[0, 0][core] > 0.99).all())


def test_a_thin_part_is_not_taken_for_background() -> None:
    truth = torch.zeros(1, 1, SIZE, SIZE)
    truth[..., 20:, 30:66] = 1.0
    truth[..., 5:20, 46:50] = 1.0  # a finger
    _, found = cleaned(composed(truth), truth)
    assert bool((found[..., 8:18, 47:49] > 0.9).all())


def test_where_the_picture_does_not_tell_the_coarse_matte_counts() -> None:
    """Dark hair before a wall as dark: a small head keeps it, and does not grow."""
    coarse = disc(9, 3.0)
    _, found = cleaned(OWN.view(1, 3, 1, 1).expand(-1, -1, SIZE, SIZE), coarse)
    assert bool((found[0, 0][disc(7, 1.0)[0, 0] == 1] > 0.5).all())
    assert found.sum() < coarse.sum()


def test_a_matte_of_nothing_changes_nothing() -> None:
    image, nothing = torch.rand(1, 3, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE)
    colors, mattes = cleaned(image, nothing)
    assert torch.equal(colors, image)
    assert torch.equal(mattes, nothing)


def test_torch_keeps_its_threads() -> None:
    """In a process of its own: OpenMP is started once."""
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "from tests.datamodules.test_foreground import composed, disc\n"
        "from visa.datamodules.foreground import cleaned\n"
        "cleaned(composed(disc(30, 4.0)), disc(32, 4.0)); print(torch.get_num_threads())"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1"
