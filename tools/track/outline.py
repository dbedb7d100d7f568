"""The person's outline in the picture, against which the fit holds the body's.

Landmarks say where joints are, not how far the skin and cloth around them reach. Nothing of the body lies outside of
the matte; and beside torso and arms the matte's outline is where the body's surface ends, but for hair and loose cloth.

Letters in shapes: N solved frames, E places on the outline, S surface points of the body model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from visa.networks.body import BodyModel
from visa.tools.track.detect import Detections
from visa.tools.track.matte import steady_masks

NUM_PLACES = 160  # on the outline of a frame
# Every n-th vertex of the skin becomes a surface point; faces and hands have many.
_STRIDE, _FINE_STRIDE = 5, 16
_HEAD = (12, 15, 22, 23, 24)  # joints beside whose surface the outline is hair: neck, head, jaw, eyes
_HANDS = (20, 21, *range(25, 55))
_LEGS = (4, 5, 7, 8, 10, 11)


@dataclass
class Outline:
    """Mattes of the solved frames, and what of the body is held against them.

    Attributes:
        vertex_ids: `[S]` the body model's vertices that are held against the outline.
        is_head: `[S]` those of head and neck.
        spacing: of the surface points of torso and arms, m.
        distance: `[N,1,h,w]` px (of the clip) from each place to the person; 0 on it.
        places: `[N,E,2]` px, on the outline and inside of the picture; NaN where a frame has fewer.
        size: width and height of the clip, px.
    """

    vertex_ids: Tensor
    is_head: Tensor
    spacing: float
    distance: Tensor
    places: Tensor
    size: tuple[int, int]

    def rows(self, index: Tensor) -> Outline:
        """Of the frames `index` among the solved ones."""
        return replace(self, distance=self.distance[index], places=self.places[index])

    def beyond(self, points: Tensor) -> Tensor:
        """How far `[N,S]` px points `[N,S,2]` lie outside of the person, as far as they lie in the picture."""
        grid = points / points.new_tensor(self.size) * 2 - 1
        read = F.grid_sample(self.distance, grid[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0]
        return read * (grid.abs() < 1).all(-1)

    @torch.no_grad()
    def nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The surface point that is nearest to each place of the outline.

        Args:
            points: `[N,S,2]` px.

        Returns:
            index `[N,E]` among the surface points, and bool `[N,E]` whether the place counts: it is one, and what is
            nearest to it is not the head, beside which the outline is hair.
        """
        places = self.places.nan_to_num(-1e4)
        index = torch.cdist(places, points).argmin(dim=-1)
        return index, self.places.isfinite().all(-1) & ~self.is_head[index]


def outline_of(detections: Detections, frames: NDArray[np.int64], body: BodyModel) -> Outline:
    """Outlines of the mattes of `frames [N]`."""
    valid = np.zeros(detections.num_frames, bool)
    valid[frames] = True
    is_person = steady_masks(detections, valid)[frames] > 127  # [N, h, w]
    scale = detections.width / is_person.shape[2]
    distance = np.stack([ndimage.distance_transform_edt(~one) if one.any() else 0.0 * one for one in is_person])
    ids = _surface(body)
    weights = body.lbs_weights[ids]
    rest = body.v_template[ids][weights[:, [*_HEAD, *_HANDS]].sum(-1) < 0.5]
    apart = torch.cdist(rest, rest).fill_diagonal_(torch.inf).min(dim=1).values
    return Outline(
        vertex_ids=ids,
        is_head=weights[:, list(_HEAD)].sum(-1) > 0.5,
        spacing=float(apart.median()),
        distance=torch.from_numpy(distance.astype(np.float32) * scale)[:, None],
        places=torch.from_numpy(np.stack([_places(one) for one in is_person]) * scale),
        size=(detections.width, detections.height),
    )


def _places(is_person: NDArray[np.bool_]) -> NDArray[np.float32]:
    """`[E,2]` px, spread over the outline of a mask; what the picture's border cuts off is no outline."""
    rim = is_person & ~ndimage.binary_erosion(is_person, border_value=1)
    y, x = np.nonzero(rim)
    order = np.argsort(np.arctan2(y - is_person.shape[0], x - is_person.shape[1] / 2), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), NUM_PLACES)).astype(int)] if len(order) else order
    places = np.full((NUM_PLACES, 2), np.nan, np.float32)
    places[: len(chosen)] = np.stack([x[chosen] + 0.5, y[chosen] + 0.5], -1)
    return places


def _surface(body: BodyModel) -> Tensor:
    """`[S]` vertices of the skin above the legs."""

    def share(joints: tuple[int, ...]) -> Tensor:
        return body.lbs_weights[:, list(joints)].sum(-1)

    is_skin = (body.part == body.part_names.index("skin")) & (share(_LEGS) < 0.5)
    is_fine = share((*_HEAD, *_HANDS)) > 0.5
    rows = [torch.nonzero(is_skin & ~is_fine)[::_STRIDE, 0], torch.nonzero(is_skin & is_fine)[::_FINE_STRIDE, 0]]
    return torch.cat(rows)
