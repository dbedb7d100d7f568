"""A person drawn live: looks, chunks, and parameters that are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conftest import ROOT
from visa.live.performer import LOOKS, Look, Performer
from visa.live.shading import Shading
from visa.networks.body import BodyParams
from visa.person import Person

DRIVING = ROOT / "assets/clips/webcam_man.track.npz"


@pytest.fixture(scope="module")
def poses(person: Person) -> BodyParams:
    return person.motion(DRIVING, 8)[0]


def test_a_textured_picture_is_the_person_s_own(person: Person, poses: BodyParams) -> None:
    drawn = Performer(person, "textured", 128).push(poses[:3])
    for one, other in zip(drawn, person.frames(DRIVING, 128, 3), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("look", LOOKS)
def test_every_look_gives_a_picture_a_pose(look: Look, person: Person, poses: BodyParams, shading: Shading) -> None:
    performer = Performer(person, look, 128, shading)
    counts = [len(performer.push(poses[t : t + 1])) for t in range(6)]
    assert counts == ([0, 0, 3, 0, 0, 3] if look == "shaded" else [1] * 6)
    assert performer.chunk == (3 if look == "shaded" else 1)


def test_a_pushed_stream_is_the_stepped_one(person: Person, poses: BodyParams, shading: Shading) -> None:
    one, other = (Performer(person, "shaded", 128, shading) for _ in range(2))
    whole = one.push(poses[:6])
    parts = torch.cat([other.push(poses[t : t + 2]) for t in (0, 2, 4)])
    assert torch.equal(whole, parts)


def test_geometry_is_drawn_finer_than_what_the_shader_paints(
    person: Person, poses: BodyParams, shading: Shading
) -> None:
    shading = replace(shading, resolution=32)
    one, other = (Performer(person, "shaded", 128, shading, geometry) for geometry in (64, 32))
    assert one.stream is not None
    assert other.stream is not None
    finer = one.stream.push(poses[:3]) - other.stream.push(poses[:3])  # the same change on both
    textured, coarse = (Performer(person, "textured", 128, geometry=px).push(poses[:3]) for px in (64, 32))
    assert float(finer.abs().max()) > 0.1
    torch.testing.assert_close(finer, textured - coarse, atol=1e-3, rtol=0)  # a grey level is 4e-3


def test_a_stream_begins_without_a_performer(person: Person, poses: BodyParams, shading: Shading) -> None:
    pictures = shading.stream(person, 128).push(poses[:3])
    assert torch.equal(pictures.clamp(0, 1), Performer(person, "shaded", 128, shading).push(poses[:3]))


def test_pictures_may_be_smaller_than_the_person(person: Person, poses: BodyParams) -> None:
    small = Performer(person, "textured", 32)
    assert (small.geometry, small.push(poses[:1]).shape) == (32, (1, 3, 32, 32))


@pytest.mark.parametrize("look", ["textured", "shaded"])
def test_a_bad_parameter_is_refused_and_the_stream_goes_on(
    look: Look, person: Person, poses: BodyParams, shading: Shading
) -> None:
    performer, other = (Performer(person, look, 128, shading) for _ in range(2))
    drawn = [performer.push(poses[:2])]
    with pytest.raises(ValueError, match="jaw_pose is not finite"):
        performer.push(replace(poses[:1], jaw_pose=torch.full((1, 3), torch.nan)))
    with pytest.raises(ValueError, match=r"expression is \[1, 3\]: give \[1, 40\]"):
        performer.push(replace(poses[:1], expression=torch.zeros(1, 3)))
    drawn.append(performer.push(poses[2:3]))
    assert torch.equal(torch.cat(drawn), other.push(poses[:3]))


def test_a_shader_s_steps_are_chosen_evenly(shading: Shading) -> None:
    four = replace(shading, noise_levels=(1.0, 0.9, 0.75, 0.5))
    assert [four.levels(steps) for steps in (None, 2, 1)] == [(1.0, 0.9, 0.75, 0.5), (1.0, 0.75), (1.0,)]
    with pytest.raises(ValueError, match="--steps is 3: give a number that divides the 4 noise_levels"):
        four.levels(3)


def test_without_the_clean_pass_the_first_chunk_is_the_same(
    person: Person, poses: BodyParams, shading: Shading
) -> None:
    whole = Performer(person, "shaded", 128, shading).push(poses[:6])
    assert shading.fast().window == shading.window  # the small one's is a chunk already
    fast = Performer(person, "shaded", 128, shading.fast()).push(poses[:6])
    assert torch.equal(whole[:3], fast[:3])  # nothing of it was kept yet
    assert not torch.equal(whole[3:], fast[3:])


def test_what_cannot_be_had_is_named(person: Person) -> None:
    with pytest.raises(ValueError, match="size is 0: give 1 px or more"):
        Performer(person, "textured", 0)
    with pytest.raises(ValueError, match="needs a shader"):
        Performer(person, "shaded", 128)
