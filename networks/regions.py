"""Parts of the body: a code that tells them apart, and the boxes of face and hands that losses weight up."""

from __future__ import annotations

import torch
from torch import Tensor

from visa.losses.image import box_weight
from visa.networks.body import BodyModel
from visa.networks.template import part_vertices
from visa.networks.view import View

# By joints of SMPL-X. Parts that pass before each other lie apart, parts that grow into each other lie side by side:
# then one channel of a splat tells them apart.
_PART_CODES = {
    0.25: (12,),  # neck
    0.5: (15, 23, 24),  # head
    1.0: (22,),  # jaw
    -0.5: (13, 14, 16, 17),  # collars and upper arms
    -1.0: (19, 21, *range(40, 55)),  # right forearm and hand
    -1.5: (18, 20, *range(25, 40)),  # left forearm and hand; torso and legs have 0
}
_INSIDE_CODE = 1.5  # eyeballs, teeth, tongue: what lids and lips uncover


def part_code(body: BodyModel) -> Tensor:
    """`[V]` a number for the part of the body that each vertex belongs to, smooth over the skin.

    The skin's is the mean of its joints' codes by skinning weight. A licensed file labels its eyeballs alone.
    """
    code = torch.zeros_like(body.lbs_weights[:, 0])
    for value, joints in _PART_CODES.items():
        code += value * body.lbs_weights[:, list(joints)].sum(dim=-1)
    is_skin = body.part == body.part_names.index("skin")
    return torch.where(is_skin, code, torch.full_like(code, _INSIDE_CODE))


class DetailRegions:
    """Boxes of face, left hand and right hand.

    Args:
        body: the body model of the tracks.
        every: project every n-th vertex of a part; the boxes lose a millimetre or two.
        margin: added to each side, as a share of the box's own width and height.
    """

    def __init__(self, body: BodyModel, every: int = 4, margin: float = 0.1) -> None:
        parts = [ids[::every] for ids in part_vertices(body).values()]
        self._carrier, self._sizes, self.margin = body.subset(torch.cat(parts)), [len(ids) for ids in parts], margin

    @torch.no_grad()
    def boxes(self, view: View) -> Tensor:
        """`[...,3,4]` left, top, right, bottom in px of face, left and right hand of the bodies of a `[...]` view.

        They are empty where a part is behind the camera.
        """
        if self._carrier.v_template.device != view.intrinsics.device:
            self._carrier = self._carrier.to(view.intrinsics.device)
        vertices, _ = self._carrier(view.body)
        inside = vertices @ view.world_to_camera[..., :3, :3].mT + view.world_to_camera[..., None, :3, 3]
        projected = inside @ view.intrinsics.mT
        pixels = projected[..., :2] / projected[..., 2:].clamp_min(1e-3)
        boxes = []
        for part, depth in zip(
            pixels.split(self._sizes, dim=-2), inside[..., 2].split(self._sizes, dim=-1), strict=True
        ):
            low, high = part.amin(dim=-2), part.amax(dim=-2)
            room = self.margin * (high - low)
            is_ahead = (depth > 1e-3).all(dim=-1, keepdim=True)
            boxes.append(torch.cat([low - room, torch.where(is_ahead, high + room, low - room)], dim=-1))
        return torch.stack(boxes, dim=-2)

    def mask(self, view: View) -> Tensor:
        """`[B,T,1,H,W]` 1 inside any of the boxes, else 0, for a `[B,T]` view."""
        boxes = self.boxes(view)
        weight = box_weight(boxes.flatten(0, 2), view.size, view.size, inside=1.0, outside=0.0)
        return weight.unflatten(0, boxes.shape[:3]).amax(dim=2)
