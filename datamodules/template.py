"""The template that carries Gaussians: which vertices of the body model are anchors.

The neck-removed template (ViSA, section on the neck remove strategy) drops the band where head and torso meet: the head
is tracked by the face, the torso by the shoulders, and skinning between the two shows every disagreement. The paper
gives no rule; ours is by skinning weight, see `build_template`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from networks.body import BodyModel

LEG_JOINTS = (1, 2, 4, 5, 7, 8, 10, 11)
HEAD_JOINTS = (15, 22, 23, 24)
NECK_JOINT = 12


@dataclass(frozen=True)
class Template:
    """Anchors of the avatar.

    Attributes:
        vertex_ids: `[N]` int64 vertices of the body model that carry Gaussians.
        neck_ids: `[M]` int64 vertices of the removed band (empty if the neck stays).
        mirror: `[N]` int64, index into the anchors of each anchor's left-right counterpart.
    """

    vertex_ids: Tensor
    neck_ids: Tensor
    mirror: Tensor


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
    band = (weights[:, NECK_JOINT] > neck_weight) & upper
    keep = upper & ~band if remove_neck else upper
    vertex_ids = torch.nonzero(keep)[:, 0]
    neck_ids = torch.nonzero(band)[:, 0] if remove_neck else vertex_ids.new_empty(0)
    return Template(vertex_ids=vertex_ids, neck_ids=neck_ids, mirror=_mirror(body.v_template[vertex_ids]))


def _mirror(points: Tensor) -> Tensor:
    """`[N]` index of the nearest point to each point reflected in x = 0, `points [N,3]`."""
    flipped = points * points.new_tensor([-1.0, 1.0, 1.0])
    return torch.cat([torch.cdist(chunk, points).argmin(dim=1) for chunk in flipped.split(2048)])
