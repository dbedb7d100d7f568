"""What an avatar shows from where its photo did not look: spikes outside of the body, holes within, roughness.

There is no truth for such a view. But the person cannot reach far beyond the template, has no holes, and is about as
rough as in the photo.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.evaluation.novel_motion import orbit
from visa.networks.avatar import Avatar
from visa.networks.joints import HEAD
from visa.networks.photo import Photo
from visa.networks.reconstructor import GaussianReconstructor

YAW, PITCH = math.radians(40), math.radians(20)
VIEWS = ((YAW, 0.0), (-YAW, 0.0), (0.0, PITCH), (0.0, -PITCH))
REACH = 1 / 16  # of the picture's side: how far hair and cloth may stand off the template
MARGIN = 1 / 32  # of the picture's side: so far within the silhouette alpha should be whole


@torch.no_grad()
def turned_figures(reconstructor: GaussianReconstructor, avatar: Avatar, photo: Photo) -> dict[str, float]:
    """Columns `turned_outside`, `turned_holes` and `turned_roughness` of one person's avatar, over `VIEWS`.

    turned_outside: alpha beyond REACH of the bare template's silhouette, as a share of the silhouette's area.
    turned_holes: what alpha lacks to one within the silhouette, MARGIN from its border, as a share of that area.
    turned_roughness: mean difference of a pixel from the mean of its 3 x 3 neighbours, within the avatar, over that of
    the photo; well above one where colours run away.
    """
    body = reconstructor.body
    centre = body(photo.body)[1][0, HEAD]
    bare = reconstructor.bare(photo)
    found = []
    for yaw, pitch in VIEWS:
        camera = orbit(photo.world_to_camera[0], centre, yaw, pitch)[None, None]
        view = replace(photo.view(), world_to_camera=camera)
        maps, template = avatar.render(body, view), bare.render(body, view).alpha[0]
        alpha = maps.alpha[0]
        found.append(torch.stack([*against_template(alpha, template), _roughness(maps.textured[0], alpha)]))
    outside, holes, rough = torch.stack(found).mean(dim=0)
    own = _roughness(photo.image, photo.mask)
    return {
        "turned_outside": float(outside),
        "turned_holes": float(holes),
        "turned_roughness": float(rough / own.clamp_min(1e-6)),
    }


def against_template(alpha: Tensor, template: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha beyond REACH of a template's silhouette, and what alpha lacks to one MARGIN within it: shares of its area.

    Args:
        alpha: of the avatar, `[T,1,H,W]`.
        template: of the template in the same poses, `[T,1,H,W]`.
    """
    size = alpha.shape[-1]
    reach, margin = round(REACH * size), max(round(MARGIN * size), 1)
    far = F.max_pool2d(template, 2 * reach + 1, 1, reach) < 0.5
    within = -F.max_pool2d(-template, 2 * margin + 1, 1, margin) > 0.9
    outside = (alpha * far).sum() / (template > 0.5).sum().clamp_min(1)
    return outside, ((1 - alpha) * within).sum() / within.sum().clamp_min(1)


def _roughness(frame: Tensor, alpha: Tensor) -> Tensor:
    """Of `[1,3,H,W]` where `alpha [1,1,H,W]` is whole."""
    inside = alpha > 0.9
    off = (frame - F.avg_pool2d(frame, 3, 1, 1, count_include_pad=False)).abs().mean(dim=1, keepdim=True)
    return (off * inside).sum() / inside.sum().clamp_min(1)
