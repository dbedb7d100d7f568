"""Photos of any kind become upright 8-bit RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visa.artifacts.photos import MOST_PIXELS, read_grey, read_photo

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def corners(picture: np.ndarray) -> np.ndarray:
    return picture[[8, 8, -8, -8], [8, -8, 8, -8]].reshape(2, 2, 3).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_the_camera_s_orientation_is_undone(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = Image.fromarray(CORNERS.repeat(40, 0).repeat(60, 1))
    # What the camera stores is the inverse of what a viewer does with it (EXIF 2.32, tag 274).
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"photo{suffix}"
    (upright if stored is None else upright.transpose(stored)).save(path, exif=exif)
    picture = read_photo(path)
    if suffix == ".avif" and picture.shape != (80, 120, 3):
        pytest.skip("this Pillow stores AVIF turned, without the tag")
    assert picture.shape == (80, 120, 3)
    assert np.abs(corners(picture) - CORNERS).max() < 40


def test_sixteen_bits_keep_their_brightness(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_allclose(read_photo(tmp_path / "deep.png")[..., 0], np.arange(256)[None].repeat(4, 0), atol=1)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_photo(tmp_path / "clear.png") == 255).all()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert read_photo(tmp_path / "print.jpg").shape == (4, 4, 3)


def test_a_huge_photo_is_scaled_down_and_a_bomb_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (3000, 1000), "red").save(tmp_path / "wide.jpg")
    assert read_photo(tmp_path / "wide.jpg", largest=300).shape == (100, 300, 3)
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr("visa.artifacts.photos.MOST_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"large\.png has more than 0 megapixels: scale it down"):
        read_photo(tmp_path / "large.png")
    assert limit == Image.MAX_IMAGE_PIXELS
    assert MOST_PIXELS > 200_000_000


def test_what_is_no_picture_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "note.jpg"
    for content in (b"", b"not a picture", b"\xff\xd8\xff\xe0" + bytes(64)):
        path.write_bytes(content)
        for read in (read_photo, read_grey):
            with pytest.raises(ValueError, match=r"^\S*note\.jpg cannot be read as an image [^\n]*PNG or JPEG$"):
                read(path)
