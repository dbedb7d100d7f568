"""What in a photo has the colour of the person's skin: hands before the chest are not cloth, and cloth is no skin.

Skin of one person in one light varies in brightness and little in chromaticity (Jones and Rehg, "Statistical Color
Models with Application to Skin Detection", 2002). The face shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# B photos, N anchors.

ALIKE = 0.04  # distance of chromaticities (r, g of r + g + b = 1) up to which a colour is skin
DARKEST, LIGHTEST = 0.45, 1.7  # luminance of skin, in shares of the face's
THIN = 1 / 64  # share of the photo's side: half of a lock's width
RIM = 1 / 64  # share of the photo's side: what lies so near a hand has its colour too
MOST_BEFORE = 1.0  # share of the head's area: hands and forearms are smaller, cloth in the colour of skin is larger


@dataclass(frozen=True)
class SkinTone:
    """The colour of a person's skin in a photo.

    Attributes:
        chroma: `[B,2]` shares of red and green.
        luminance: `[B]` mean of the channels; not a number where the photo shows no face.
    """

    chroma: Tensor
    luminance: Tensor

    def is_skin(self, colors: Tensor) -> Tensor:
        """`[B,...]` bool for colours `[B,...,3]`; nothing is skin where the photo shows no face."""
        between = (1,) * (colors.dim() - 2)
        chroma, luminance = _chroma(colors), colors.mean(dim=-1)
        face = self.luminance.view(-1, *between)
        is_bright = (luminance > DARKEST * face) & (luminance < LIGHTEST * face)
        return is_bright & ((chroma - self.chroma.view(-1, *between, 2)).norm(dim=-1) < ALIKE)


def _chroma(colors: Tensor) -> Tensor:
    return colors[..., :2] / colors.sum(dim=-1, keepdim=True).clamp_min(1e-3)


def skin_tone(colors: Tensor, is_face: Tensor) -> SkinTone:
    """The median of what the photo shows of a face: brows, beard and lips are the smaller part of it.

    Args:
        colors: `[B,N,3]`.
        is_face: `[B,N]` bool, anchors of the face that the photo shows.
    """
    values = torch.cat([_chroma(colors), colors.mean(dim=-1, keepdim=True)], dim=-1)
    median = torch.where(is_face[..., None], values, torch.nan).nanmedian(dim=1).values
    return SkinTone(median[:, :2], median[:, 2])


def before_trunk(skin: Tensor, head: Tensor, trunk: Tensor) -> Tensor:
    """`[B,H,W]` bool: skin that the photo shows where the trunk lies, and that no skin joins to the head; with its rim.

    A neckline's skin is the trunk's; that of a hand ends at the cloth behind it. What is as thin as a lock of hair is
    no hand, and where more than MOST_BEFORE of the head's area would be hands, it is cloth in the colour of skin.

    Args:
        skin: `[B,H,W]` bool, pixels of skin.
        head: `[B,H,W]` bool, pixels where the posed template has its face or throat in front.
        trunk: `[B,H,W]` bool, where it has its chest or belly in front.
    """
    apart = skin & ~_joined(skin & head, skin)
    core = ~_dilated(~(apart & trunk), max(1, round(THIN * skin.shape[-1])))
    before = _joined(core, apart) & trunk
    rim = _dilated(before, max(1, round(RIM * skin.shape[-1]))) & trunk
    is_cloth = before.flatten(1).sum(dim=1) > MOST_BEFORE * head.flatten(1).sum(dim=1)
    return rim & ~is_cloth[:, None, None]


def _dilated(area: Tensor, reach: int) -> Tensor:
    """`[B,H,W]` bool, with the pixels up to `reach` beside it."""
    return F.max_pool2d(area.float()[:, None], 2 * reach + 1, 1, reach)[:, 0] > 0


def _joined(seed: Tensor, area: Tensor) -> Tensor:
    """What of `area [B,H,W]` the `seed` reaches within it."""
    found = seed & area
    while not torch.equal(grown := _dilated(found, 1) & area, found):
        found = grown
    return found
