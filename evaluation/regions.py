"""Where eyes and mouth are: boxes around the points of the tracked face."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visa.artifacts.files import shipped
from visa.losses.image import box_weight
from visa.networks.body import BodyModel
from visa.networks.view import View

LANDMARKS = "assets/body/landmarks.npz"  # places of MediaPipe's face mesh on the shipped body model
NUM_FACES = 27612  # of that model: on another one they would lie anywhere
# The outlines' outermost points: corners and the middles of the lids, corners and middles of the lips.
PARTS = {
    "eyes": ((33, 133, 159, 145), (263, 362, 386, 374)),
    "mouth": ((61, 291, 0, 17),),
}
AROUND = 0.7  # half of the side of a square around a face, in sides of the face
MARGIN = 0.3  # of a box's larger side, added all around


def face_places(body: BodyModel) -> tuple[Tensor, Tensor]:
    """Where the points of the face mesh lie on the body: corners `[478,3]` of their triangles, and their weights.

    Raises:
        ValueError: the body model is not the one that the points are known on.
    """
    with np.load(shipped(LANDMARKS), allow_pickle=False) as archive:
        index, weights = torch.from_numpy(archive["face_index"]), torch.from_numpy(archive["face_barycentric"])
    if len(body.faces) != NUM_FACES:
        raise ValueError(f"{LANDMARKS} knows places on the shipped body model alone")
    return body.faces[index], weights.float()


def face_points(body: BodyModel, view: View) -> Tensor:
    """Points of the face mesh in the picture, `[...,478,2]` px, of the bodies of a `[...]` view.

    Raises:
        ValueError: as `face_places`.
    """
    corners, weights = face_places(body)
    vertices, _ = body(view.body, corners.flatten())
    points = (vertices.unflatten(-2, corners.shape) * weights[..., None].to(vertices)).sum(dim=-2)
    seen = points @ view.world_to_camera[..., :3, :3].mT + view.world_to_camera[..., None, :3, 3]
    pixels = seen @ view.intrinsics.mT
    return pixels[..., :2] / pixels[..., 2:].clamp_min(1e-3)


def face_squares(frames: Tensor, points: Tensor, side: int) -> Tensor:
    """Squares `[T,3,side,side]` in [0,1] of `frames [T,3,P,P]` around a face's points `[T,478,2]` px, enlarged."""
    low, high = points.amin(dim=1), points.amax(dim=1)
    middle, half = (low + high) / 2, AROUND * (high - low).amax(dim=1)
    steps = torch.linspace(-1, 1, side, device=frames.device)
    square = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)
    grid = middle[:, None, None] + half[:, None, None, None] * square
    grid = grid / (frames.shape[-1] / 2) - 1
    return F.grid_sample(frames, grid, "bicubic", padding_mode="border", align_corners=False).clamp(0, 1)


def face_regions(points: Tensor, size: int) -> dict[str, Tensor]:
    """Masks `[T,1,H,W]`, 1 inside the boxes of `eyes` and of `mouth`, from points `[T,478,2]` in a square picture."""
    masks = {}
    for part, groups in PARTS.items():
        inside = torch.zeros(len(points), 1, size, size)
        for group in groups:
            chosen = points[:, list(group)]
            low, high = chosen.amin(dim=1), chosen.amax(dim=1)
            room = MARGIN * (high - low).amax(dim=1, keepdim=True)
            boxes = torch.cat([low - room, high + room], dim=1)
            inside = inside.maximum(box_weight(boxes, size, size, inside=1.0, outside=0.0))
        masks[part] = inside
    return masks
