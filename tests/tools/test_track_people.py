"""Of several people one is followed: who is chosen, what is covered, what is said."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.tools.detected import needs_mediapipe
from visa.datamodules.clip import Clip
from visa.tools.track.detect import detect
from visa.tools.track.people import COVER, People, strip_of

WIDTH, HEIGHT = 200, 100


def people(person: int = 1) -> People:
    face_detection = SimpleNamespace(FaceDetection=lambda **_: None)
    mediapipe: Any = SimpleNamespace(solutions=SimpleNamespace(face_detection=face_detection))
    return People(mediapipe, person, "two.png")


def faces(*rows: tuple[float, float]) -> np.ndarray:
    """Square faces by centre and width."""
    return np.array([(centre - width / 2, 20, width, width) for centre, width in rows], np.float32)


def test_the_border_divides_the_way_as_the_faces_are_wide() -> None:
    found = faces((50, 30), (110, 10), (170, 30))
    assert strip_of(faces((50, 30)), 0, WIDTH) == (0, WIDTH)
    assert strip_of(found[[0, 2]], 0, WIDTH) == (0, 110)
    assert strip_of(found[[0, 2]], 1, WIDTH) == (110, WIDTH)
    assert strip_of(found, 0, WIDTH) == (0, 110)  # a face a third as wide is background
    assert strip_of(found, 1, WIDTH) == (95, 125)
    assert strip_of(faces((50, 30), (55, 30)), 0, WIDTH) == (0, WIDTH)  # one face found twice


def test_the_largest_face_is_taken_and_followed() -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    chosen = people()
    with pytest.warns(UserWarning, match=r"two\.png shows 2 people: the one with the largest face .* --person N"):
        covered = chosen.cover(frame, faces((150, 30), (50, 20)))
    assert (covered[:, :80] == COVER).all()  # 150 - 100 * 30 / 50 = 90 is the border
    assert (covered[:, 95:] == 0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        covered = chosen.cover(frame, faces((148, 20), (50, 28)))  # still the same person, now smaller
        assert (covered[:, :100] == COVER).all()
        assert chosen.cover(frame, faces((150, 20))) is frame
        assert chosen.cover(frame, faces()) is frame
    assert chosen.most == 2


def test_another_person_is_asked_for_by_number() -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    with pytest.warns(UserWarning, match="number 2 in size"):
        covered = people(2).cover(frame, faces((150, 30), (50, 20)))
    assert (covered[:, 95:] == COVER).all()
    with pytest.raises(ValueError, match=r"two\.png: --person 3: its first frame with a face shows 2"):
        people(3).cover(frame, faces((150, 30), (50, 20)))
    with pytest.raises(ValueError, match="--person 0: give 1"):
        people(0)


@needs_mediapipe
@pytest.mark.slow
def test_two_real_people_are_told_apart(tmp_path: Path) -> None:
    woman = np.asarray(Image.open(ROOT / "assets/photos/astronaut.png").convert("RGB").resize((384, 384)))
    man = Clip(ROOT / "assets/clips/webcam_man.mp4").pixels(np.array([0]))[0, ..., :3]
    man = np.asarray(Image.fromarray(man).resize((384, 384)))
    Image.fromarray(np.concatenate([woman, man], axis=1)).save(tmp_path / "two.png")
    middles = []
    for person in (1, 2):
        with pytest.warns(UserWarning, match="shows 2 people"):
            found = detect(tmp_path / "two.png", person=person)
        assert found.num_people == 2
        middles.append(float(found.face[0, :, 0].mean()))
        strip = found.mask[0].astype(float).sum(0)
        halves = strip[: len(strip) // 2].sum(), strip[len(strip) // 2 :].sum()
        is_left = middles[-1] < 384
        assert halves[0 if is_left else 1] > 5 * halves[1 if is_left else 0]
    assert min(middles) < 384 < max(middles)
