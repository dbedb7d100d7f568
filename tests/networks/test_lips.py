"""Lips that part grow to their full size; closed ones stay small, and nothing else changes."""

import torch

from tests.reconstructors import untrained
from visa.networks.gaussians import Gaussians
from visa.networks.joints import JAW
from visa.networks.lips import FOLD_SHARE, OPEN, lip_folds


def test_lips_grow_with_the_gap_between_them() -> None:
    anchors = untrained(True, 4, 64).anchors
    body, ids = anchors.body, anchors.template.vertex_ids
    folds, rest = lip_folds(body, ids), anchors(torch.zeros(1, 10))
    assert 50 < len(folds.fold) < len(ids) / 20
    is_lower = body.lbs_weights[ids, JAW] > 0.5
    assert bool((is_lower[folds.fold] != is_lower[folds.across]).all())
    scales = torch.ones(1, 1, len(ids), 3)
    canonical = Gaussians(rest, *(torch.zeros(1, len(ids), n) for n in (4, 3)), *(torch.zeros(1, len(ids)),) * 3)
    assert torch.equal(folds.opened(scales, canonical, rest[:, None]), scales)
    direction = torch.nn.functional.normalize(rest[0, folds.fold] - rest[0, folds.across], dim=-1)
    for share in (0.5, 1.0, 3.0):
        means = rest[:, None].clone()
        lower = is_lower[folds.fold]
        means[0, 0, folds.fold[lower]] += share * OPEN * direction[lower]
        grown = folds.opened(scales, canonical, means)[0, 0]
        # The gap of a lower one to its upper one, which stays, has grown by just so much.
        expected = 1 + (1 / FOLD_SHARE - 1) * min(share, 1.0)
        torch.testing.assert_close(grown[folds.fold[lower]], torch.full_like(grown[folds.fold[lower]], expected))
        others = torch.ones(len(ids), dtype=torch.bool).index_fill_(0, folds.fold, False)
        assert bool((grown[others] == 1).all())
    none = lip_folds(body, torch.nonzero(body.part != body.part_names.index("skin"))[:, 0])
    assert len(none.fold) == 0
    assert none.opened(scales, canonical, rest[:, None]) is scales
