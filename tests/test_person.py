"""The Python interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from visa import command
from visa.artifacts.media import write_pictures
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


def test_alpha_puts_the_person_before_any_background(person: Person, clip_path: Path) -> None:
    plain = list(person.frames(clip_path, 96, 2))
    cut_out = list(person.frames(clip_path, 96, 2, has_alpha=True))
    grey = person.avatar.background[0, :, None, None]
    for whole, part in zip(plain, cut_out, strict=True):
        color, alpha = part.split([3, 1])
        assert float(alpha.min()) == 0
        assert float(alpha.max()) > 0.99
        assert float((color * alpha + grey * (1 - alpha) - whole).abs().mean()) < 1 / 255


def test_pictures_fill_a_new_folder_or_none(
    person: Person, clip_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, out = str(person.save(tmp_path / "person.safetensors")), tmp_path / "out"
    words = ["frames", saved, "--driving", str(clip_path), "--size", "64", "--num_frames", "2", "--out"]
    assert command.main([*words, str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png"]
    with Image.open(out / "00001.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (64, 64))
    assert command.main([*words, str(out)]) == 1
    assert "is there already: give a new folder" in capsys.readouterr().err

    def torn() -> Iterator[torch.Tensor]:
        yield torch.zeros(4, 2, 2)
        raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        write_pictures(tmp_path / "torn", torn())
    assert not [path.name for path in tmp_path.iterdir() if "torn" in path.name]


def test_an_avatar_without_photos_is_no_person(person: Person, tmp_path: Path) -> None:
    path = save_avatar(tmp_path / "avatar.safetensors", person.avatar, person.body, "body.npz")
    with pytest.raises(ValueError, match="is an avatar without its photos"):
        Person.load(path)


def test_files_are_written_and_wrong_ones_named(person: Person, tmp_path: Path, clip_path: Path) -> None:
    for suffix in (".ply", ".safetensors"):
        assert person.export(tmp_path / f"person{suffix}").stat().st_size > 1000
    with pytest.raises(ValueError, match="size is 0: give 1 px or more"):
        next(person.frames(clip_path, 0))
    with pytest.raises(FileNotFoundError, match=r"no file at nobody\.jpg"):
        Person.from_photos("nobody.jpg")
