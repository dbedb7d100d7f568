"""Lids grow as a blink stretches them, and leave the photo as they close: found once a body, for every pose."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from visa.networks.anatomy import Kind, read_anatomy
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians

# B people, T frames, N Gaussians of the template, R of them on lids, K edges around one.

LEFT = 0.3  # share of the opening that is left in lids that count as shut: trackers of landmarks rarely see less
LEAVING = 1.0  # by how much the part code of shut lids differs from that of open ones
UPRIGHT = 5.0  # how much more a distance along the eye counts than one across it
BESIDE, RIM = 0.002, 0.001  # m along the eye and across it
MOST_GROWN = 4.0  # closed lids grow to 2.5 times their size; more is a Gaussian gone astray


@dataclass(frozen=True)
class Lids:
    """Gaussians of lids, the mesh's edges around them, which a blink stretches, and the lid across the eye.

    A lid that lies folded above the open eye is drawn down over the eyeball by a blink; Gaussians as large as the fold
    would leave gaps through which the eyeball shows. And the photo's pixels beside the fold are lashes and iris: a lid
    that closes would draw them out over the eye.

    Attributes:
        lid: `[R]` Gaussians of lids.
        ends: `[R,K,2]` the Gaussians at both ends of each edge; those of a missing edge are equal.
        across: `[R]` the Gaussian of the other lid that lies above or below each.
        opening: `[R]` m to that one in the body model's open eye.
        lash: `[L]` Gaussians of the upper lids' rims, where the lashes grow.
    """

    lid: Tensor
    ends: Tensor
    across: Tensor
    opening: Tensor
    lash: Tensor

    def shut(self, means: Tensor) -> Tensor:
        """`[...,R]` how far lids at `means [...,N,3]` are closed: 0 as in the body model's open eye, 1 shut."""
        gap = (means[..., self.lid, :] - means[..., self.across, :]).norm(dim=-1)
        return ((1 - gap / self.opening) / (1 - LEFT)).clamp(0, 1)

    def part(self, part: Tensor, means: Tensor) -> Tensor:
        """Part codes `[...,N]` of Gaussians at `means [...,N,3]`, whose codes with open eyes are `part`.

        Those of lids leave the codes of open lids as they close, so that the photo stands where it shows lids that are
        as far open, and the Gaussians' own colours elsewhere.
        """
        part = part.expand(means.shape[:-1])
        if len(self.lid) == 0:
            return part
        return part.index_copy(-1, self.lid, part[..., self.lid] - LEAVING * self.shut(means))

    def stretched(self, canonical: Gaussians, means: Tensor) -> Tensor:
        """Scales `[B,T,N,3]`: those of `canonical [B,N,...]` grown as the edges to their neighbours at `means` are.

        By the square of the edges' mean growth: lids are stretched one way, so that half of the edges grow.
        """
        scales = canonical.scales[:, None].expand(-1, means.shape[1], -1, -1)
        if len(self.lid) == 0:
            return scales
        stretch = self._length(means) / self._length(canonical.means[:, None]).clamp_min(1e-6)
        grown = scales[:, :, self.lid] * stretch.square().clamp(1, MOST_GROWN)[..., None]
        return scales.index_copy(2, self.lid, grown)

    def _length(self, means: Tensor) -> Tensor:
        """`[B,T,R]` sum of the edges' lengths around each Gaussian."""
        first, second = means[:, :, self.ends].unbind(-2)
        return (first - second).norm(dim=-1).sum(dim=-1)


# Found once for a body and a template: it takes most of a second.
_found: weakref.WeakKeyDictionary[BodyModel, list[tuple[Tensor, Lids]]] = weakref.WeakKeyDictionary()


def lids_of(body: BodyModel, vertex_ids: Tensor) -> Lids:
    """The lids of `body` among Gaussians that the vertices `vertex_ids [N]` carry."""
    found = _found.setdefault(body, [])
    for known, lids in found:
        if known.device == vertex_ids.device and torch.equal(known, vertex_ids):
            return lids
    found.append((vertex_ids, _find_lids(body, vertex_ids)))
    return found[-1][1]


@torch.inference_mode(False)  # they are kept, and a fit, which needs gradients, may be the next to read them
def _find_lids(body: BodyModel, vertex_ids: Tensor) -> Lids:
    device = vertex_ids.device
    carried = torch.full((len(body.v_template),), -1, device=device)
    carried[vertex_ids] = torch.arange(len(vertex_ids), device=device)
    is_lid = read_anatomy(body).is_lid.to(device)
    lid = torch.nonzero(is_lid[vertex_ids])[:, 0]
    around: dict[int, set[int]] = {}
    for a, b, c in carried[body.faces[is_lid[body.faces].any(dim=1)]].tolist():
        for one, other in ((a, b), (b, c), (c, a)):
            if min(one, other) >= 0:
                around.setdefault(one, set()).add(other)
                around.setdefault(other, set()).add(one)
    centres = carried[vertex_ids[lid]].tolist()  # several Gaussians may share a vertex: one of them stands for it
    rows = [[[centre, other] for other in sorted(around.get(centre, ()))] for centre in centres]
    most = max(map(len, rows), default=0)
    rows = [row + [[centre, centre]] * (most - len(row)) for row, centre in zip(rows, centres, strict=True)]
    ends = torch.tensor(rows, dtype=torch.long, device=device).view(len(lid), most, 2)
    across = _across(body, vertex_ids, lid)
    opening = (body.v_template[vertex_ids[lid]] - body.v_template[vertex_ids[across]]).norm(dim=-1)
    return Lids(lid, ends, across, opening.clamp_min(1e-4), lid[_is_rim(body, vertex_ids, lid, across, opening)])


def _is_rim(body: BodyModel, vertex_ids: Tensor, lid: Tensor, across: Tensor, opening: Tensor) -> Tensor:
    """`[R]` bool: of the upper lids those nearest to the lower one, among what lies above the same place."""
    points = body.v_template[vertex_ids[lid]]
    is_upper = points[:, 1] > body.v_template[vertex_ids[across], 1]
    is_beside = ((points[:, None, 0] - points[None, :, 0]).abs() < BESIDE) & is_upper
    nearest = torch.where(is_beside, opening, torch.inf).amin(dim=1) if len(lid) else opening
    return is_upper & (opening < nearest + RIM)


def _across(body: BodyModel, vertex_ids: Tensor, lid: Tensor) -> Tensor:
    """`[R]` for each of Gaussians `lid [R]` the one above or below it in the other lid; itself where there is none."""
    eyeballs = read_anatomy(body).kind.to(vertex_ids.device) == int(Kind.EYEBALL)
    if len(lid) == 0 or not bool(eyeballs.any()):
        return lid
    points = body.v_template[vertex_ids[lid]]
    is_upper = points[:, 1] > body.v_template[eyeballs, 1].mean()
    if bool(is_upper.all()) or not bool(is_upper.any()):
        return lid
    is_same = is_upper[:, None] == is_upper[None]
    upright = points * points.new_tensor([UPRIGHT, 1.0, 1.0])  # lids meet along their length, not at the corner
    return lid[torch.cdist(upright, upright).masked_fill(is_same, torch.inf).argmin(dim=1)]
