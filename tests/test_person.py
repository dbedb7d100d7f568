"""The Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from visa.networks.fit import FitOptions
from visa.person import Person

PHOTO = ROOT / "assets/photos/astronaut.png"


@pytest.fixture(scope="module")
def person() -> Person:
    return Person.from_photos(PHOTO, resolution=48, fit=FitOptions(steps=3))


def test_the_photo_s_own_view_shows_the_photo(person: Person) -> None:
    photo = person.photos[0]
    drawn = person.render(photo.view())
    assert drawn.shape == (1, 1, 3, 48, 48)
    assert float((drawn[:, 0] - photo.image).abs().mean()) < 0.05


@pytest.mark.parametrize("size", [48, 96])
def test_a_motion_moves_the_person(size: int, person: Person, clip_path: Path) -> None:
    frames = list(person.frames(clip_path, size, num_frames=6))
    assert len(frames) == 6
    assert frames[0].shape == (3, size, size)
    assert all(frame.isfinite().all() and frame.min() >= 0 and frame.max() <= 1 for frame in frames)
    assert not torch.equal(frames[0], frames[5])


def test_files_are_written_and_wrong_ones_named(person: Person, tmp_path: Path, clip_path: Path) -> None:
    for suffix in (".ply", ".safetensors"):
        assert person.export(tmp_path / f"person{suffix}").stat().st_size > 1000
    with pytest.raises(ValueError, match="size is 32: give 48 px or more"):
        next(person.frames(clip_path, 32))
    with pytest.raises(FileNotFoundError, match=r"no file at nobody\.jpg"):
        Person.from_photos("nobody.jpg")
