"""Lips that part grow to their full size, leave the photo as they close, and light the teeth by their width."""

import torch

from tests.reconstructors import untrained
from visa.networks.gaussians import Gaussians
from visa.networks.joints import JAW
from visa.networks.lips import FOLD_SHARE, LEAVING, NARROW, OPEN, PARTED, REACH, SHADE, WIDE, lips_of


def test_lips_grow_with_the_gap_between_them() -> None:
    anchors = untrained(True, 4, 64).anchors
    body, ids = anchors.body, anchors.template.vertex_ids
    lips, rest = lips_of(body, ids), anchors(torch.zeros(1, 10))
    assert 50 < len(lips.fold) < len(ids) / 20
    is_lower = body.lbs_weights[ids, JAW] > 0.5
    assert bool((is_lower[lips.fold] != is_lower[lips.across]).all())
    scales = torch.ones(1, 1, len(ids), 3)
    canonical = Gaussians(rest, *(torch.zeros(1, len(ids), n) for n in (4, 3)), *(torch.zeros(1, len(ids)),) * 3)
    assert torch.equal(lips.opened(scales, canonical, rest[:, None]), scales)
    direction = torch.nn.functional.normalize(rest[0, lips.fold] - rest[0, lips.across], dim=-1)
    for share in (0.5, 1.0, 3.0):
        means = rest[:, None].clone()
        lower = is_lower[lips.fold]
        means[0, 0, lips.fold[lower]] += share * OPEN * direction[lower]
        grown = lips.opened(scales, canonical, means)[0, 0]
        # The gap of a lower one to its upper one, which stays, has grown by just so much.
        expected = 1 + (1 / FOLD_SHARE - 1) * min(share, 1.0)
        torch.testing.assert_close(grown[lips.fold[lower]], torch.full_like(grown[lips.fold[lower]], expected))
        others = torch.ones(len(ids), dtype=torch.bool).index_fill_(0, lips.fold, False)
        assert bool((grown[others] == 1).all())
    none = lips_of(body, torch.nonzero(body.part != body.part_names.index("skin"))[:, 0])
    assert len(none.fold) == 0
    assert none.opened(scales, canonical, rest[:, None]) is scales


def test_teeth_are_lit_by_a_smile_and_lie_in_the_shade_of_a_narrow_mouth() -> None:
    anchors = untrained(True, 4, 64).anchors
    body, ids = anchors.body, anchors.template.vertex_ids
    lips, rest = lips_of(body, ids), anchors(torch.zeros(1, 10))
    is_teeth = torch.tensor([name.startswith("teeth") for name in body.part_names])[body.part[ids]]
    assert torch.equal(lips.teeth, torch.nonzero(is_teeth)[:, 0])
    right, left = lips.corners
    across = rest[0, left].mean(dim=0) - rest[0, right].mean(dim=0)
    assert 0.04 < across.norm() < 0.06  # m: a mouth's
    colors = torch.full((1, 1, len(ids), 3), 0.8)
    canonical = Gaussians(rest, *(torch.zeros(1, len(ids), n) for n in (4, 3)), *(torch.zeros(1, len(ids)),) * 3)
    shade = torch.tensor(SHADE)
    for share, light in ((0.8, shade), (WIDE, torch.ones(3)), ((NARROW + WIDE) / 2, (1 + shade) / 2)):
        means = rest[:, None].clone()
        means[0, 0, left] += (share - 1) * across
        lit = lips.lit(colors, canonical, means)[0, 0]
        torch.testing.assert_close(lit[is_teeth], (0.8 * light).expand(int(is_teeth.sum()), 3), atol=1e-5, rtol=1e-5)
        assert bool((lit[~is_teeth] == 0.8).all())


def test_the_part_codes_of_lips_leave_as_they_close() -> None:
    anchors = untrained(True, 4, 64).anchors
    body, ids, part = anchors.body, anchors.template.vertex_ids, anchors.part
    lips, rest = lips_of(body, ids), body.v_template[ids]
    is_lower = body.lbs_weights[ids, JAW] > 0.5

    def left(opening: float) -> torch.Tensor:
        means = rest.clone()
        # By their middle, as a whole: who lies above whom stays.
        means[is_lower] += opening * torch.tensor([0.0, -1.0, 0.0])
        return part - lips.part(part, means)

    closed = left(0.0)
    torch.testing.assert_close(closed[lips.fold], torch.full_like(closed[lips.fold], LEAVING), atol=1e-5, rtol=0)
    far = torch.cdist(rest, rest[lips.fold]).amin(dim=1) > 1.5 * REACH
    assert bool((closed[far] == 0).all())
    assert bool((closed >= 0).all())
    assert closed[~far].std() > 0  # it fades around them
    assert left(10 * PARTED).abs().max() == 0
    assert closed[lips.fold].mean() > left(0.5 * PARTED)[lips.fold].mean() > 0
    none = lips_of(body, torch.nonzero(body.part != body.part_names.index("skin"))[:, 0])
    assert torch.equal(none.part(part, rest), part)
