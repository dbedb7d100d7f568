"""The command that writes a person's pictures with alpha."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.conftest import ROOT
from visa.exports import frames
from visa.person import Person

DRIVING = ROOT / "assets/clips/webcam_man.track.npz"


def test_pictures_have_alpha_and_the_size_that_is_told(person: Person, tmp_path: Path) -> None:
    saved, out = str(person.save(tmp_path / "person.safetensors")), tmp_path / "out"
    words = ["--driving", str(DRIVING), "--out", str(out), "--size", "96", "--num_frames", "2"]
    assert frames.main([saved, *words]) == 0
    assert len(list(out.iterdir())) == 2
    for path in out.iterdir():
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (96, 96))
            assert picture.getextrema()[3] == (0, 255)
