"""The person's colours in a photo: which of its pixels are skin or cloth, and what colour it lends to what it hides.

Anchors that the photo does not show take their colour from their mirrored counterpart, else from what it shows of
their region, so that the untrained network already gives an avatar in the person's own colours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visa.networks.anatomy import Kind, Region
from visa.networks.anchors import Anchors
from visa.networks.continuation import median_color, opened, without_alike
from visa.networks.lids import lids_of
from visa.networks.photo import Photo
from visa.networks.skin import SkinTone, before_trunk, skin_tone

# B photos, N anchors, K clusters of anchors, D channels.

EDGE = 1 / 128  # share of the photo's side: colours so near the matte's edge hold what lies behind
OUTLINE = 4  # times EDGE
UPRIGHT = 0.35  # cosine between normal and view, from which on a head's colour stands for what is hidden
LEAST_SEEN = 20  # anchors of hands in the colour of skin, from which on they stand for the others
LEAST_HAIR = 0.3  # share of what the photo shows of a scalp, from which on it takes no skin: foreheads reach into it
LEAST_CLOTH = 0.5  # share of what the photo shows of a trunk, from which on it is clothed below the neckline too
# Skin of luminance 1 as most photos have it (9 people); what differs is mostly the light, which teeth and eyes share.
SKIN_CHROMA = (1.25, 0.92, 0.83)
TINT_SHARE, MOST_TINTED = 0.7, (0.3, 2.0)
LEAST_LIT = 0.3  # share of the prior's brightness
LID_SPREAD = 0.1  # by how much a lid's colour may differ from the median of the same eye's lids
LASHES = 0.5  # of that median: lashes
DIFFUSION_STEPS = 100  # of Jacobi's iteration


def skin_pixels(
    anchors: Anchors, photo: Photo, grid: Tensor, visible: Tensor, face: Tensor
) -> tuple[SkinTone, Tensor, Tensor]:
    """What of a photo has the colour of the face.

    Args:
        anchors: of the template.
        photo: what shows it.
        grid: `[B,N,2]` as `Projection.grid`.
        visible: `[B,N]` bool, anchors that the photo shows.
        face: `[B,H,W]` the template's front triangle at each pixel, -1 where there is none.

    Returns:
        the colour, its pixels `[B,H,W]` bool, and those of hands before the trunk, `[B,H,W]` bool.
    """
    colors = F.grid_sample(photo.image, grid[:, :, None], padding_mode="border", align_corners=False)[..., 0].mT
    tone = skin_tone(colors, visible & (anchors.kind == int(Kind.FACE)))
    skin = tone.is_skin(photo.image.permute(0, 2, 3, 1)) & (photo.mask[:, 0] > 0.8)
    is_head = (anchors.face_region[face.clamp_min(0)] == int(Region.FACE)) & (face >= 0)
    is_chest = anchors.is_chest[face.clamp_min(0)] & (face >= 0)
    return tone, skin, before_trunk(skin, is_head, is_chest)


def cloth_pixels(anchors: Anchors, photo: Photo, skin: Tensor, before: Tensor, face: Tensor) -> Tensor:
    """`[B,H,W]` bool, pixels of the clothes of trunk and arms; arguments are what `skin_pixels` gives and takes."""
    region = torch.where(face >= 0, anchors.face_region[face.clamp_min(0)], -1)
    is_own = (_eroded(photo.mask, 3)[:, 0] > 0.9) & ~skin
    trunk = is_own & ~before & ((region == int(Region.TORSO)) | (region == int(Region.ARMS)))
    hair, head = is_own & (region == int(Region.SCALP)), region == int(Region.FACE)
    return opened(without_alike(photo.image, trunk, [median_color(photo.image, part) for part in (hair, head)]))


def colour_sources(
    anchors: Anchors, photo: Photo, grid: Tensor, colors: Tensor, visible: Tensor, facing: Tensor
) -> Tensor:
    """`[B,N]` 1 where the colour of a seen anchor may stand for others, which the photo does not show.

    Not at the matte's edge, where colours are mixed with what lies behind, nor where the photo sees a head at a slant:
    its rim is in the shade. Hands take skin alone; a trunk of which the photo shows cloth takes no skin: the chest
    below a neckline is clothed. Nor does a scalp of which it shows hair: the back of a head has hair.

    Args:
        anchors: of the template.
        photo: what shows the anchors.
        grid: `[B,N,2]` as `Projection.grid`.
        colors: `[B,N,3]` the photo's at the anchors.
        visible: `[B,N]` 1 where the photo shows the anchor.
        facing: `[B,N]` cosine between its normal and the view.
    """
    matte = _eroded(photo.mask)
    inside = F.grid_sample(matte, grid[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0] > 0.8
    is_seen = visible > 0
    is_skin = skin_tone(colors, is_seen & (anchors.kind == int(Kind.FACE))).is_skin(colors)
    hands, trunk = anchors.region == int(Region.HANDS), anchors.region == int(Region.TORSO)
    head = (anchors.region == int(Region.FACE)) | (anchors.region == int(Region.SCALP))
    found = is_seen & (inside | trunk) & (is_skin | ~hands) & ((facing > UPRIGHT) | ~head)
    found &= ~hands | ((found & hands).sum(dim=1, keepdim=True) >= LEAST_SEEN)
    cloth, most = (found & trunk & ~is_skin).sum(dim=1, keepdim=True), (found & trunk).sum(dim=1, keepdim=True)
    is_clothed = cloth >= LEAST_CLOTH * most
    found &= ~(is_clothed & trunk & is_skin)
    scalp = anchors.region == int(Region.SCALP)
    hair, most = (found & scalp & ~is_skin).sum(dim=1, keepdim=True), (found & scalp).sum(dim=1, keepdim=True)
    has_hair = hair >= LEAST_HAIR * most
    return (found & ~(has_hair & scalp & is_skin)).float()


def lid_colours(anchors: Anchors, colors: Tensor, visible: Tensor) -> Tensor:
    """Colours `[B,N,3]` with those of lids near the median of what the photo shows of the same eye's lids.

    A template's lid lies a pixel beside the photo's, on lashes and iris, and would draw them over the eye as it closes.
    Lashes are a dark line where they grow: closed eyes have nothing else.

    Args:
        anchors: of the template.
        colors: `[B,N,3]` the photo's at the anchors.
        visible: `[B,N]` 1 where the photo shows the anchor.
    """
    is_left = anchors.cluster_points[anchors.cluster_of, 0] > 0
    is_lash = torch.zeros_like(is_left).index_fill_(0, lids_of(anchors.body, anchors.template.vertex_ids).lash, True)
    for lids in (anchors.is_lid & is_left, anchors.is_lid & ~is_left):
        shown = torch.where(((visible > 0) & lids)[..., None], colors, torch.nan)
        median = shown.nanmedian(dim=1, keepdim=True).values
        near = torch.where(is_lash[:, None], LASHES * median, colors.clamp(median - LID_SPREAD, median + LID_SPREAD))
        colors = torch.where(lids[:, None] & ~median.isnan(), near, colors)
    return colors


def at_outline(anchors: Anchors, photo: Photo, grid: Tensor, visible: Tensor, sources: Tensor) -> Tensor:
    """`[B,N]` bool: skin of a face that the photo shows at its outline, where the colour is its own no longer.

    Args:
        anchors: of the template.
        photo: what shows the anchors.
        grid: `[B,N,2]` as `Projection.grid`.
        visible: `[B,N]` 1 where the photo shows the anchor.
        sources: `[B,N]` see `colour_sources`.
    """
    within = _eroded(photo.mask, OUTLINE)
    is_deep = F.grid_sample(within, grid[:, :, None], padding_mode="border", align_corners=False)[:, 0, :, 0] > 0.5
    return (visible > 0) & (sources == 0) & ~is_deep & (anchors.kind == int(Kind.FACE))


def filled_colours(anchors: Anchors, colors: Tensor, visible: Tensor, sources: Tensor) -> Tensor:
    """Colour `[B,N,3]` of every anchor: seen, else the mirrored anchor's, else a mean of what is seen near it.

    Args:
        anchors: of the template.
        colors: `[B,N,3]` sampled from the photo.
        visible: `[B,N]` 1 where the photo shows the anchor.
        sources: `[B,N]` see `colour_sources`.
    """
    seen = visible[..., None] > 0
    spread = torch.where(seen, colors, diffused(anchors, colors, sources))
    return torch.where(anchors.is_inner[:, None] & ~seen, _inner_colors(anchors, colors, visible), spread)


def diffused(anchors: Anchors, values: Tensor, visible: Tensor) -> Tensor:
    """Values `[B,N,D]` of what the photo shows, spread over what it does not: harmonic on the template's surface.

    An anchor whose mirrored counterpart is seen takes that one's; eyeballs and the mouth's inside take none.
    """
    seen = visible[..., None] > 0
    mirrored = visible[:, anchors.mirror][..., None] > 0
    start = _region_means(anchors, values, visible)
    known = seen | mirrored
    values = torch.where(seen, values, torch.where(mirrored, values[:, anchors.mirror], start))
    for _ in range(DIFFUSION_STEPS):
        values = torch.where(known, values, values[:, anchors.neighbours].mean(dim=2))
    return torch.where(anchors.is_inner[:, None] & ~seen, torch.zeros_like(values), values)


def _region_means(anchors: Anchors, values: Tensor, visible: Tensor) -> Tensor:
    """`[B,N,3]`: means of what is seen of an anchor's region, weighted by the distance between clusters of anchors.

    A region of which nothing is seen takes the face's median, as hands do under sleeves; or that of all. Arms take
    the torso's cloth first.
    """
    everywhere = _mean_where(values, visible)
    is_face = (visible > 0) & (anchors.kind == int(Kind.FACE))
    face = torch.where(is_face[..., None], values, torch.nan).nanmedian(dim=1).values  # without brows and hair
    fallback = torch.where(is_face.any(dim=1, keepdim=True), face, everywhere)
    blended = fallback[:, None].expand_as(values)
    for region in Region:
        mine = anchors.region == int(region)
        seen = visible * mine
        has_any = (seen.sum(dim=1) > 0)[:, None, None]
        is_taken = mine | (anchors.region == int(Region.ARMS)) if region is Region.TORSO else mine
        blended = torch.where(is_taken[:, None] & has_any, _cluster_means(anchors, values, seen), blended)
    return blended


def _cluster_means(anchors: Anchors, values: Tensor, seen: Tensor) -> Tensor:
    """`[B,N,3]`: means of `values` where `seen [B,N]`, weighted by the distance between clusters of anchors."""
    index = anchors.cluster_of[None, :, None]
    batch, num_clusters = values.shape[0], len(anchors.cluster_points)
    weighted = torch.cat([values * seen[..., None], seen[..., None]], dim=-1)
    sums = weighted.new_zeros(batch, num_clusters, 4).scatter_add_(1, index.expand(batch, -1, 4), weighted)
    total = sums.new_zeros(batch, num_clusters, 4)
    for kernel, share in zip(anchors.spread, (1.0, 1e-2, 1e-4, 1e-6), strict=True):
        total = total + share * (kernel @ sums)  # a wider kernel counts only where the narrower ones found nothing
    smooth = total[..., :3] / total[..., 3:].clamp_min(1e-9)
    return (smooth[:, anchors.blend_index] * anchors.blend_weight[..., None]).sum(dim=2)


def _inner_colors(anchors: Anchors, colors: Tensor, visible: Tensor) -> Tensor:
    """Colour `[B,N,3]` of eyeballs and the mouth's inside that nothing shows: anybody's, in the light of the face.

    As bright as the face, to the prior's own brightness, and tinted as its skin differs from most people's.
    """
    face = _mean_where(colors, visible * (anchors.kind == int(Kind.FACE)))[:, None]
    luminance = face.mean(dim=-1, keepdim=True)
    tint = (face / luminance.clamp_min(1e-3) / face.new_tensor(SKIN_CHROMA)).clamp(*MOST_TINTED) ** TINT_SHARE
    light = tint / tint.mean(dim=-1, keepdim=True) * (2 * luminance).clamp(LEAST_LIT, 1.0)
    return (anchors.prior_color * light).clamp(0, 1)


def _mean_where(values: Tensor, seen: Tensor) -> Tensor:
    """`[B,D]` mean of `values [B,N,D]` where `seen [B,N]`; zeros where nothing is."""
    return (values * seen[..., None]).sum(dim=1) / seen.sum(dim=1)[:, None].clamp_min(1.0)


def _eroded(matte: Tensor, times: int = 1) -> Tensor:
    """A matte `[B,1,H,W]` without the pixels at its edge."""
    reach = times * max(1, round(EDGE * matte.shape[-1]))
    return -F.max_pool2d(-matte, 2 * reach + 1, 1, reach)
