"""Lids that close leave the photo's pixels, which are lashes and iris there, and take no iris for skin."""

import torch

from tests.reconstructors import untrained
from visa.networks.body import BodyParams
from visa.networks.lids import LEAVING, lids_of
from visa.networks.photo_colour import LASHES, LID_SPREAD, lid_colours

BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")


def test_the_part_codes_of_lids_leave_as_they_close() -> None:
    anchors = untrained(True, 4, 64).anchors
    body, ids = anchors.body, anchors.template.vertex_ids
    lids, part = lids_of(body, ids), anchors.part
    upper = body.v_template[ids[lids.lid], 1] > body.v_template[ids[lids.across], 1]
    assert 0.2 < upper.float().mean() < 0.8
    assert 0.004 < lids.opening.median() < 0.012  # m; at the corners less
    others = torch.ones(len(ids), dtype=torch.bool).index_fill_(0, lids.lid, False)

    def points(blink: float) -> torch.Tensor:
        params = BodyParams.zeros((1,), body.num_expressions)
        params.expression[:, [body.expression_names.index(name) for name in BLINKS]] = blink
        return anchors.template.points(body(params)[0][0])

    def codes(blink: float) -> torch.Tensor:
        return lids.part(part, points(blink))

    torch.testing.assert_close(codes(0.0), part, atol=1e-4, rtol=0)
    shut, squint = codes(1.0), codes(0.25)
    assert bool((shut[others] == part[others]).all())
    left = (part - shut)[lids.lid]
    assert left.max() <= LEAVING + 1e-5
    # Upper rims, which a blink draws over the eye.
    moved = (points(1.0) - points(0.0)).norm(dim=-1)[lids.lid]
    is_rim = upper & (moved > 0.005)
    assert is_rim.sum() >= 10
    assert left[is_rim].median() > 0.7 * LEAVING
    assert 0.1 * LEAVING < (part - squint)[lids.lid][is_rim].median() < left[is_rim].median()
    none = lids_of(body, torch.nonzero(body.part != body.part_names.index("skin"))[:, 0])
    assert len(none.lid) == 0
    assert torch.equal(none.part(part, anchors.template.points(body.v_template)), part)


def test_lids_take_no_iris_for_skin() -> None:
    """Of each eye apart: one may lie in the shade."""
    anchors = untrained(True, 4, 64).anchors
    count = len(anchors.is_lid)
    is_left = anchors.cluster_points[anchors.cluster_of, 0] > 0
    colors = torch.where(is_left[:, None], torch.tensor([0.7, 0.5, 0.4]), torch.tensor([0.4, 0.3, 0.2]))[None].clone()
    lids = torch.nonzero(anchors.is_lid)[:, 0]
    colors[0, lids[::5]] = 0.05
    bounded = lid_colours(anchors, colors, torch.ones(1, count))
    lash = lids_of(anchors.body, anchors.template.vertex_ids).lash
    assert 40 < len(lash) < len(lids) / 3
    is_lash = torch.zeros(count, dtype=torch.bool).index_fill_(0, lash, True)
    for side, skin in ((is_left, [0.7, 0.5, 0.4]), (~is_left, [0.4, 0.3, 0.2])):
        near = (bounded[0, anchors.is_lid & side & ~is_lash] - torch.tensor(skin)).abs()
        assert near.max() < LID_SPREAD + 1e-5
        assert (bounded[0, side & is_lash] - LASHES * torch.tensor(skin)).abs().max() < 1e-5
    assert torch.equal(bounded[:, ~anchors.is_lid], colors[:, ~anchors.is_lid])
    # Of lids that the photo does not show it says nothing.
    assert torch.equal(lid_colours(anchors, colors, torch.zeros(1, count)), colors)
