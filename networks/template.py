"""The template that carries Gaussians: which vertices of the body model are anchors.

The neck-removed template (ViSA, section on the neck remove strategy) drops the band where head and torso meet: the head
is tracked by the face, the torso by the shoulders, and skinning between the two shows every disagreement. The paper
gives no rule; ours is by skinning weight, see `build_template`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visa.networks.body import BodyModel
from visa.networks.joints import HAND_JOINTS, HEAD, HEAD_JOINTS, LEG_JOINTS, NECK

LATTICE = 4  # steps along the edge of a triangle that is covered evenly


@dataclass(frozen=True)
class Template:
    """Anchors of the avatar.

    Attributes:
        vertex_ids: `[N]` int64 vertices of the body model that carry Gaussians.
        neck_ids: `[M]` int64 vertices of the removed band (empty if the neck stays).
        mirror: `[N]` int64, index into the anchors of each anchor's left-right counterpart.
        corners: `[N,3]` int64 vertices of the triangle that each anchor lies in; None where all lie on their vertices.
        corner_weights: `[N,3]` barycentric coordinates in it.
        share: `[N]` anchors that share a vertex; None where each has its own.
    """

    vertex_ids: Tensor
    neck_ids: Tensor
    mirror: Tensor
    corners: Tensor | None = None
    corner_weights: Tensor | None = None
    share: Tensor | None = None

    def points(self, vertices: Tensor) -> Tensor:
        """Where the anchors `[...,N,3]` lie on a mesh of `vertices [...,V,3]`."""
        if self.corners is None or self.corner_weights is None:
            return vertices[..., self.vertex_ids, :]
        weights = self.corner_weights.to(vertices)
        return (vertices[..., self.corners, :] * weights[..., None]).sum(dim=-2)


def build_template(body: BodyModel, remove_neck: bool = True, neck_weight: float = 0.5) -> Template:
    """Choose the anchors of the upper body.

    A vertex is an anchor when the legs hold less than half of its skinning weight. The neck band is where the neck
    joint holds more than `neck_weight` of it.

    Args:
        body: the body model.
        remove_neck: drop the neck band.
        neck_weight: skinning weight of the neck joint above which a vertex belongs to the band.
    """
    weights = body.lbs_weights
    upper = weights[:, list(LEG_JOINTS)].sum(dim=1) < 0.5
    band = (weights[:, NECK] > neck_weight) & upper
    keep = upper & ~band if remove_neck else upper
    vertex_ids = torch.nonzero(keep)[:, 0]
    neck_ids = torch.nonzero(band)[:, 0] if remove_neck else vertex_ids.new_empty(0)
    return Template(vertex_ids=vertex_ids, neck_ids=neck_ids, mirror=_mirror(body.v_template[vertex_ids]))


def part_vertices(body: BodyModel) -> dict[str, Tensor]:
    """Vertices of `face`, `left_hand` and `right_hand`, int64: those that the part's joints hold by more than half.

    The face is the front of the head: what lies before the head's joint in the T-pose, which looks along +z.
    """
    weights = body.lbs_weights
    is_head = weights[:, list(HEAD_JOINTS)].sum(dim=1) > 0.5
    is_front = body.v_template[:, 2] > body.joint_template[HEAD, 2]
    parts = {"face": is_head & is_front}
    parts |= {name: weights[:, list(joints)].sum(dim=1) > 0.5 for name, joints in HAND_JOINTS.items()}
    return {name: torch.nonzero(chosen)[:, 0] for name, chosen in parts.items()}


def refine_template(template: Template, body: BodyModel, counts: Tensor, even: Tensor | None = None) -> Template:
    """Several anchors a vertex where detail needs them.

    Each vertex keeps its anchor and gets `counts - 1` more, half way to the centres of triangles around it (as many as
    there are), so that all lie on the surface of any shape. They ride on the vertex that they belong to. Triangles that
    are to be covered evenly, their edges too, have a lattice instead, of which each vertex has what lies nearest.

    Args:
        template: one anchor a vertex.
        body: the body model.
        counts: `[V]` int64, anchors of each vertex of the body model, 1 or more.
        even: `[F]` bool, triangles with a lattice; None for none.
    """
    lattice = {} if even is None else _lattice(body.faces[even].tolist())
    around: dict[int, list[list[int]]] = {}
    for triangle in body.faces[(counts > 1)[body.faces].any(dim=1)].tolist():
        for k in range(3):
            around.setdefault(triangle[k], []).append([triangle[k], triangle[k - 2], triangle[k - 1]])
    rows: list[tuple[list[int], tuple[float, float, float]]] = []
    repeats = []
    for vertex, count in zip(template.vertex_ids.tolist(), counts[template.vertex_ids].tolist(), strict=True):
        found = [([vertex] * 3, (1.0, 0.0, 0.0))]
        if vertex in lattice:
            found += lattice[vertex]
        elif count > 1:
            ring = _in_order(around.get(vertex, []))
            extra = min(count - 1, len(ring))
            found += [(ring[k * len(ring) // extra], (4 / 6, 1 / 6, 1 / 6)) for k in range(extra)]
        rows += found
        repeats.append(len(found))
    share = torch.tensor(repeats)
    ids, weights = torch.tensor([corners for corners, _ in rows]), torch.tensor([weights for _, weights in rows])
    refined = Template(
        vertex_ids=ids[:, 0],
        neck_ids=template.neck_ids,
        mirror=ids[:, 0],
        corners=ids,
        corner_weights=weights,
        share=share.repeat_interleave(share),
    )
    return replace(refined, mirror=_mirror(refined.points(body.v_template)))


def _lattice(triangles: list[list[int]]) -> dict[int, list[tuple[list[int], tuple[float, float, float]]]]:
    """Vertex -> corners and barycentric weights of what lies nearest to it of the triangles' lattices, but itself."""
    found: dict[int, list[tuple[list[int], tuple[float, float, float]]]] = {}
    known: set[frozenset[tuple[int, int]]] = set()
    for triangle in triangles:
        for i in range(LATTICE + 1):
            for j in range(LATTICE + 1 - i):
                steps = (i, j, LATTICE - i - j)
                point = frozenset((vertex, step) for vertex, step in zip(triangle, steps, strict=True) if step)
                if len(point) == 1 or point in known:  # triangles share their edges
                    continue
                known.add(point)
                near = max(range(3), key=lambda k: steps[k])
                order = [near, near - 2, near - 1]
                first, second, third = (steps[k] / LATTICE for k in order)
                found.setdefault(triangle[near], []).append(([triangle[k] for k in order], (first, second, third)))
    return found


def _in_order(ring: list[list[int]]) -> list[list[int]]:
    """Triangles `[centre, a, b]` around a vertex as they follow each other, so that every n-th ones lie spread out."""
    left = {row[1]: row for row in ring}
    ends = {row[2] for row in ring}
    ordered: list[list[int]] = []
    while left:
        follows = left.pop(ordered[-1][2], None) if ordered else None
        if follows is None:  # the first one, or a gap at the mesh's border
            start = next((a for a in left if a not in ends), next(iter(left)))
            follows = left.pop(start)
        ordered.append(follows)
    return ordered


def _mirror(points: Tensor) -> Tensor:
    """`[N]` index of the nearest point to each point reflected in x = 0, `points [N,3]`."""
    flipped = points * points.new_tensor([-1.0, 1.0, 1.0])
    return torch.cat([torch.cdist(chunk, points).argmin(dim=1) for chunk in flipped.split(2048)])
