"""Lids grow as a blink stretches them: found once a body, applied in every pose."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from visa.networks.anatomy import read_anatomy
from visa.networks.body import BodyModel
from visa.networks.gaussians import Gaussians

# B people, T frames, N Gaussians of the template, R of them on lids, K edges around one.

MOST_GROWN = 4.0  # closed lids grow to 2.5 times their size; more is a Gaussian gone astray


@dataclass(frozen=True)
class LidEdges:
    """The mesh's edges around Gaussians of lids, which a blink stretches.

    A lid that lies folded above the open eye is drawn down over the eyeball by a blink; Gaussians as large as the fold
    would leave gaps through which the eyeball shows.

    Attributes:
        lid: `[R]` Gaussians of lids.
        ends: `[R,K,2]` the Gaussians at both ends of each edge; those of a missing edge are equal.
    """

    lid: Tensor
    ends: Tensor

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
_found_edges: weakref.WeakKeyDictionary[BodyModel, list[tuple[Tensor, LidEdges]]] = weakref.WeakKeyDictionary()


def lid_edges(body: BodyModel, vertex_ids: Tensor) -> LidEdges:
    """Edges of `body` around its lids, between Gaussians that the vertices `vertex_ids [N]` carry."""
    found = _found_edges.setdefault(body, [])
    for known, edges in found:
        if known.device == vertex_ids.device and torch.equal(known, vertex_ids):
            return edges
    found.append((vertex_ids, _find_lid_edges(body, vertex_ids)))
    return found[-1][1]


@torch.inference_mode(False)  # they are kept, and a fit, which needs gradients, may be the next to read them
def _find_lid_edges(body: BodyModel, vertex_ids: Tensor) -> LidEdges:
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
    return LidEdges(lid, torch.tensor(rows, dtype=torch.long, device=device).view(len(lid), most, 2))
