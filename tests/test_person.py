"""The Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from visa.networks.fit import FitOptions
from visa.person import Person
from visa.runtime.avatar_files import save_avatar

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


def test_a_saved_person_moves_as_before(person: Person, tmp_path: Path, clip_path: Path) -> None:
    again = Person.load(person.save(tmp_path / "person.safetensors"))
    assert (again.size, again.resolution) == (512, 48)
    for before, after in zip(person.frames(clip_path, 96, 3), again.frames(clip_path, 96, 3), strict=True):
        assert float((before - after).abs().max()) < 1.5 / 255  # detail is kept in 8 bits
    motion, rate = again.motion(clip_path, 3)
    assert (motion.batch_shape, rate) == ((3,), 25)


def test_an_avatar_without_photos_is_no_person(person: Person, tmp_path: Path) -> None:
    path = save_avatar(tmp_path / "avatar.safetensors", person.avatar, person.body, "body.npz")
    with pytest.raises(ValueError, match="is an avatar without its photos"):
        Person.load(path)


def test_files_are_written_and_wrong_ones_named(person: Person, tmp_path: Path, clip_path: Path) -> None:
    for suffix in (".ply", ".safetensors"):
        assert person.export(tmp_path / f"person{suffix}").stat().st_size > 1000
    with pytest.raises(ValueError, match="size is 32: give 48 px or more"):
        next(person.frames(clip_path, 32))
    with pytest.raises(FileNotFoundError, match=r"no file at nobody\.jpg"):
        Person.from_photos("nobody.jpg")
