"""Cloth that goes on beyond the photo: mirrored pixels, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visa.networks.avatar import Avatar
from visa.networks.avatar_batch import mix_colours, stack_avatars
from visa.networks.body import BodyModel
from visa.networks.continuation import REACH, continued, median_color, opened, without_alike
from visa.networks.gaussians import Gaussians
from visa.networks.texture import Pattern, Texture
from visa.runtime.avatar_files import load_avatar, save_avatar

SIZE = 16


def striped() -> tuple[Tensor, Tensor]:
    """A photo whose rows are all different, and the lower half of it as cloth."""
    rows = torch.arange(SIZE) / SIZE
    photo = rows.view(1, 1, SIZE, 1).expand(1, 3, SIZE, SIZE).clone()
    cloth = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    cloth[:, SIZE // 2 :] = True
    return photo, cloth


def test_rows_come_again_mirrored_below_the_photo() -> None:
    photo, cloth = striped()
    picture, has_any = continued(photo, cloth)
    above = (picture.shape[-2] - SIZE) // 2
    assert picture.shape[-1] == REACH * SIZE
    assert bool(has_any)
    column = picture[0, 0, above:, above + 4] * SIZE
    torch.testing.assert_close(column[SIZE // 2 : SIZE], torch.arange(8.0, 16.0))  # what the photo shows stays
    assert column[SIZE:].tolist() == [14, 13, 12, 11, 10, 9, 8, 9]  # and at the strip's upper edge mirrored once more


def test_a_hole_is_filled_from_its_border() -> None:
    photo, cloth = striped()
    photo = photo.transpose(2, 3).contiguous()
    cloth = torch.ones_like(cloth)
    cloth[:, :, 6:9] = False
    picture, _ = continued(photo, cloth)
    above = (picture.shape[-2] - SIZE) // 2
    filled = picture[0, 0, above + 8, above : above + SIZE] * SIZE
    assert filled[6] == 4  # 5 is the border, 6 lies one beyond it
    assert filled[8] == 10
    assert filled[7] in (3, 11)


def test_photos_without_cloth_have_no_pattern() -> None:
    photo, cloth = striped()
    picture, has_any = continued(torch.cat([photo, photo]), torch.cat([cloth, cloth & False]))
    assert has_any.tolist() == [True, False]
    assert picture[1].abs().max() == 0


def test_hair_on_cloth_is_no_cloth() -> None:
    cloth = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    photo = torch.full((1, 3, SIZE, SIZE), 0.8)
    photo[:, :, :4, 3:9] = 0.1  # hair falls on the shoulders
    hair, none = torch.full((1, 3), 0.12), torch.full((1, 3), torch.nan)
    kept = without_alike(photo, cloth, [hair, none])
    assert not kept[0, :4, 3:9].any()
    assert kept.sum() == SIZE * SIZE - 24
    torch.testing.assert_close(median_color(photo, cloth), torch.full((1, 3), 0.8))


def test_opening_drops_what_is_thin() -> None:
    area = torch.zeros(1, 64, 64, dtype=torch.bool)
    area[:, 10:30, 10:30] = True
    area[:, 40, 5:60] = True
    kept = opened(area)
    assert kept[0, 10:30, 10:30].all()
    assert kept.sum() == 400


def avatar_with_pattern() -> Avatar:
    """Nothing but the record: Gaussians, a texture that shows none of them, and a pattern."""
    grid = torch.zeros(1, 4, 3)
    gaussians = Gaussians(
        grid, torch.tensor([1.0, 0, 0, 0]).expand(1, 4, 4), grid + 0.1, grid[..., 0] + 0.9, grid, grid
    )
    ones = torch.ones(1, 1, 8, 8)
    none = torch.zeros(1, 4)
    texture = Texture(ones.expand(-1, 3, -1, -1), ones, torch.zeros(1, 4, 2), none, none, none, ones * 0)
    pattern = Pattern(torch.full((1, 3, 16, 16), 0.25), torch.zeros(1, 4, 2), none + 1)
    return Avatar(gaussians, torch.zeros(1, 10), torch.arange(4), torch.full((1, 3), 0.5), texture, pattern=pattern)


def test_stacked_avatars_keep_their_patterns() -> None:
    avatar = avatar_with_pattern()
    plain = replace(avatar, pattern=None)
    both = stack_avatars([plain, avatar])
    assert both.pattern is not None
    assert both.pattern.weight.sum(dim=1).tolist() == [0.0, 4.0]
    assert both.pattern.picture[1].mean() == 0.25
    assert stack_avatars([plain, plain]).pattern is None


def test_colours_of_a_pattern_are_mixed_as_pixels_are() -> None:
    avatar = avatar_with_pattern()
    colour = torch.diag(torch.tensor([2.0, 1.0, 0.5]))[None]
    mixed = mix_colours(avatar, colour)
    assert mixed.pattern is not None
    expected = ((torch.tensor([0.25] * 3) - 0.5) * torch.tensor([2.0, 1.0, 0.5]) + 0.5).clamp(0, 1)
    torch.testing.assert_close(mixed.pattern.picture[0].mean(dim=(1, 2)), expected)


def test_a_saved_pattern_is_the_same_and_older_files_have_none(tmp_path: Path) -> None:
    body = BodyModel.from_file("assets/body/smplx_anny.npz")
    avatar = avatar_with_pattern()
    read = load_avatar(save_avatar(tmp_path / "a.safetensors", avatar, body, "anny"), body)
    assert read.pattern is not None
    assert avatar.pattern is not None
    for name, value in vars(avatar.pattern).items():
        assert torch.equal(getattr(read.pattern, name), value)
    old = save_avatar(tmp_path / "b.safetensors", replace(avatar, pattern=None), body, "anny")
    assert load_avatar(old, body).pattern is None


@pytest.mark.parametrize("edge", ["left", "below"])
def test_a_mirrored_edge_is_continuous(edge: str) -> None:
    """Across the photo's border neighbours differ by no more than neighbours within it do."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), SIZE, mode="bilinear")
    picture, _ = continued(smooth, torch.ones(1, SIZE, SIZE, dtype=torch.bool))
    steps = picture[0].diff(dim=2 if edge == "left" else 1).abs()
    assert steps.max() <= max(smooth[0].diff(dim=axis).abs().max() for axis in (1, 2)) + 1e-6
