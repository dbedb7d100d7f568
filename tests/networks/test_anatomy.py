"""What each vertex is, against the body file's own labels, the detector's outlines and the expressions' reach."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from visa.networks.anatomy import LEAST_OPACITY, OFFSET_BOUNDS, Anatomy, Kind, read_anatomy
from visa.networks.body import BodyModel
from visa.tools.track.correspond import LOWER_INNER_LIP, LOWER_LIDS, UPPER_INNER_LIP, UPPER_LIDS

BODY = ROOT / "assets/body/smplx_anny.npz"


@pytest.fixture(scope="module")
def anatomy(body: BodyModel) -> Anatomy:
    return read_anatomy(body)


def test_inner_parts_are_those_that_the_file_labels(anatomy: Anatomy) -> None:
    with np.load(BODY) as file:
        name = file["part_names"][file["part"]]
    kinds = {
        "eyeball_left": Kind.EYEBALL, "eyeball_right": Kind.EYEBALL, "teeth_upper": Kind.TEETH,
        "teeth_lower": Kind.TEETH, "tongue": Kind.TONGUE, "mouth_cavity": Kind.CAVITY, "eye_socket": Kind.CAVITY,
    }  # fmt: skip
    for part, kind in kinds.items():
        assert (anatomy.kind.numpy()[name == part] == kind).all()
    assert np.array_equal(anatomy.is_inner.numpy(), name != "skin")


def test_lids_and_lips_are_where_the_detector_outlines_them(body: BodyModel, anatomy: Anatomy) -> None:
    """The nearest skin vertex to each point of the outlines is a rim; rims lie nowhere else."""
    with np.load(ROOT / "assets/body/landmarks.npz") as file:
        corners = body.v_template[body.faces[torch.from_numpy(file["face_index"])]]
        points = (corners * torch.from_numpy(file["face_barycentric"])[..., None]).sum(dim=1)
    lids, lips = points[list(UPPER_LIDS + LOWER_LIDS)], points[list(UPPER_INNER_LIP + LOWER_INNER_LIP)]
    skin = torch.nonzero(~anatomy.is_inner)[:, 0]
    for outline in (lids, lips):
        nearest = skin[torch.cdist(outline, body.v_template[skin]).argmin(dim=1)]
        assert (anatomy.kind[nearest] == int(Kind.RIM)).all()
        assert anatomy.is_lid[nearest].all() == (outline is lids)
    rims = body.v_template[anatomy.kind == int(Kind.RIM)]
    away = torch.minimum(torch.cdist(rims, lids).amin(dim=1), torch.cdist(rims, lips).amin(dim=1))
    assert away.max() < 0.035
    assert 0.01 < len(rims) / len(body.v_template) < 0.1


def test_face_is_skin_of_the_head_that_expressions_move(body: BodyModel, anatomy: Anatomy) -> None:
    with np.load(BODY) as file:
        reach = np.linalg.norm(file["shapedirs"][..., 10:], axis=1).max(axis=1)
    kind = anatomy.kind.numpy()
    skin = ~anatomy.is_inner.numpy()
    assert (reach[kind == Kind.FACE] > 0.5e-3).all()
    assert (reach[skin & (kind == Kind.BODY)] <= 0.5e-3).all()
    assert body.lbs_weights[anatomy.kind == int(Kind.FACE)][:, [12, 15, 22, 23, 24]].sum(dim=1).min() > 0.5


def test_the_iris_is_a_cap_in_the_middle_of_each_eyeball_s_front(body: BodyModel, anatomy: Anatomy) -> None:
    for name in ("eyeball_left", "eyeball_right"):
        ball = body.part == body.part_names.index(name)
        cap = body.v_template[ball & anatomy.iris]
        others = body.v_template[ball & ~anatomy.iris]
        assert 6 < len(cap) < 0.4 * int(ball.sum())
        assert cap[:, 2].min() > others[:, 2].median()
        low, high = body.v_template[ball].amin(dim=0), body.v_template[ball].amax(dim=0)
        assert (cap.mean(dim=0) - (low + high) / 2)[:2].abs().max() < 1e-3
    assert not anatomy.iris[body.part == 0].any()


def test_bounds_opacity_and_colours_by_kind(anatomy: Anatomy) -> None:
    kind = anatomy.kind.tolist()
    assert anatomy.offset_bound.tolist() == pytest.approx([OFFSET_BOUNDS[Kind(k)] for k in kind])
    assert anatomy.least_opacity.tolist() == pytest.approx([LEAST_OPACITY[Kind(k)] for k in kind])
    color = anatomy.prior_color
    assert (color[~anatomy.is_inner] == 0).all()
    luminance = color.mean(dim=1)
    teeth, cavity, tongue = (luminance[anatomy.kind == int(k)].mean() for k in (Kind.TEETH, Kind.CAVITY, Kind.TONGUE))
    assert teeth > cavity + 0.15
    assert teeth > tongue + 0.1 > cavity + 0.1
    white = (anatomy.kind == int(Kind.EYEBALL)) & ~anatomy.iris
    assert luminance[white].min() > luminance[anatomy.iris].max() + 0.3


def test_the_mouth_is_darker_the_deeper_and_upper_teeth_are_the_brightest(body: BodyModel, anatomy: Anatomy) -> None:
    light, depth = anatomy.prior_color.mean(dim=1), -body.v_template[:, 2]
    upper, lower = (body.part == body.part_names.index(name) for name in ("teeth_upper", "teeth_lower"))
    for part in (upper, lower, anatomy.kind == int(Kind.TONGUE)):
        order = light[part][depth[part].argsort()]
        assert (order.diff() <= 1e-6).all()
        assert order[-1] < order[0]
    cavity = light[anatomy.kind == int(Kind.CAVITY)].max()
    assert light[upper].max() > light[lower].max() + 0.1
    assert light[lower].max() > cavity + 0.3


def test_a_file_without_labels_and_names_has_eyeballs_and_face_alone(body: BodyModel, tmp_path: Path) -> None:
    """As a licensed file: eyeballs follow their joints alone, components of expression have no names."""
    with np.load(BODY) as file:
        arrays = {name: file[name] for name in file.files if name not in ("part", "part_names", "expression_names")}
    np.savez(tmp_path / "licensed.npz", **arrays)
    licensed = read_anatomy(BodyModel.from_file(tmp_path / "licensed.npz"))
    eyeballs = (body.lbs_weights[:, [23, 24]] > 0.99).any(dim=1)
    assert torch.equal(licensed.kind == int(Kind.EYEBALL), eyeballs)
    assert set(licensed.kind.unique().tolist()) == {Kind.BODY, Kind.FACE, Kind.RIM, Kind.EYEBALL}
    rims = body.v_template[licensed.kind == int(Kind.RIM)]  # lids alone: nothing tells lips
    assert torch.cdist(rims, body.v_template[eyeballs]).amin(dim=1).max() < 0.004
    assert licensed.iris.any()
    assert not (licensed.iris & ~eyeballs).any()


def test_lips_touch_in_folds_and_teeth_end_near_them(body: BodyModel, anatomy: Anatomy) -> None:
    fold, is_lower = anatomy.is_fold, body.lbs_weights[:, 22] > 0.5
    assert bool((anatomy.kind[fold] == int(Kind.RIM)).all())
    assert not bool((fold & anatomy.is_lid).any())
    middle = fold & (body.v_template[:, 0].abs() < 0.01)
    upper, lower = (body.v_template[middle & side, 1] for side in (~is_lower, is_lower))
    assert min(len(upper), len(lower)) > 5
    teeth = body.v_template[body.part == body.part_names.index("teeth_upper")]
    assert teeth[:, 1].min() < upper.min() - 0.001
    teeth = body.v_template[body.part == body.part_names.index("teeth_lower")]
    assert abs(teeth[:, 1].max() - lower.max()) < 0.004  # higher, they hide the tongue in an open mouth
