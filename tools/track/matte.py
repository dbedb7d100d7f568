"""From the segmentation network's coarse mask to a soft foreground mask that holds still in time and follows hair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from visa.tools.track.detect import Detections

Floats = NDArray[np.float32]
LEAST_SHARE, MOST_SHARE = 0.03, 0.9  # of the picture that a person's mask may cover


def steady_masks(detections: Detections, frame_valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Coarse masks [T, h, w] * 255, averaged over three frames of one shot and cut down to what hangs together with
    the person.

    Frames without a person are empty.
    """
    masks, shot = detections.mask, detections.shot
    result = np.zeros_like(masks)
    scale = np.array([masks.shape[2] / detections.width, masks.shape[1] / detections.height])
    for t in np.flatnonzero(frame_valid):
        total, weight = masks[t] * 2.0, 2.0
        for other in (t - 1, t + 1):
            if 0 <= other < len(masks) and shot[other] == shot[t] and frame_valid[other]:
                total, weight = total + masks[other], weight + 1
        mask = total / weight
        labels, _ = ndimage.label(mask > 64)
        known = np.concatenate([detections.face[t, :, :2], detections.pose[t, 11:13, :2]])
        known = (known[np.isfinite(known).all(-1)] * scale).astype(int)
        inside = ((known >= 0) & (known < masks.shape[:0:-1])).all(-1)
        names = np.unique(labels[known[inside, 1], known[inside, 0]])
        if len(names[names > 0]):
            # Soft edges lie outside the labelled core; anything nearer to another core is not the person's.
            person = np.isin(labels, names[names > 0])
            others = (labels > 0) & ~person
            mine = ndimage.distance_transform_edt(~person)
            mask = np.where(mine < (ndimage.distance_transform_edt(~others) if others.any() else np.inf), mask, 0)
            mask = np.where(mine < 0.05 * max(masks.shape[1:]), mask, 0)
        result[t] = np.round(mask)
    return result


def check_share(masks: NDArray[np.uint8], source: str) -> None:
    """ValueError where the person of `masks [T,h,w]` is too small in the picture, or the mask is all of it."""
    share = float((masks > 127).mean()) if len(masks) else 0.0
    if not LEAST_SHARE <= share <= MOST_SHARE:
        mend = "crop the picture to the person" if share < LEAST_SHARE else "show the person before a background"
        raise ValueError(f"{source}: the person was found in {share:.1%} of the picture: {mend}")


def refine(mask: NDArray[np.uint8], frame: NDArray[np.uint8], epsilon: float = 2e-4) -> Floats:
    """Soft mask [H, W] in [0, 1] of the frame's size whose edge follows the edges of `frame` [H, W, 3].

    Guided filter: He, Sun and Tang, "Guided Image Filtering", ECCV 2010, with the colour picture as guide.
    """
    height, width = frame.shape[:2]
    coarse = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    if not mask.any():
        return coarse
    radius = max(2, round(0.008 * max(height, width)))
    guide = frame.astype(np.float32) / 255

    def mean(values: Floats) -> Floats:
        return ndimage.uniform_filter(
            values, (2 * radius + 1, 2 * radius + 1, *[0] * (values.ndim - 2)), mode="nearest"
        )

    middle, coarse_middle = mean(guide), mean(coarse)
    cross = mean(guide * coarse[..., None]) - middle * coarse_middle[..., None]
    # Where the mask is constant the slope is zero: solve at its edge alone.
    edge = mean(np.abs(coarse - coarse_middle)) > 1e-4
    covariance = np.zeros((int(edge.sum()), 3, 3), np.float32)
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
        product = mean(guide[..., i] * guide[..., j])[edge] - middle[edge, i] * middle[edge, j]
        covariance[:, i, j] = covariance[:, j, i] = product
    covariance += epsilon * np.eye(3, dtype=np.float32)
    slope = np.zeros_like(guide)
    slope[edge] = np.linalg.solve(covariance, cross[edge][..., None])[..., 0]
    offset = coarse_middle - (slope * middle).sum(-1)
    refined = (mean(slope) * guide).sum(-1) + mean(offset)
    # The filter spreads a faint halo over textured background: steepen, and keep what the network is sure of.
    refined = np.clip((refined - 0.1) / 0.8, 0, 1)
    return np.where(coarse > 0.98, np.maximum(refined, coarse), np.where(coarse < 0.02, 0, refined)).astype(np.float32)
