"""LPIPS as other papers print it, where its trunks' weights are on the machine; nothing here downloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from visa.evaluation.inception import check_weights, missing_reason, weights_path
from visa.evaluation.perceptual import perceptual_difference
from visa.losses.perceptual import PerceptualDistance

# Column -> (trunk, torchvision's file of its weights).
TRUNKS: dict[str, tuple[Literal["alex", "vgg"], str]] = {
    "lpips_vgg": ("vgg", "vgg16-397923af.pth"),
    "lpips_alex": ("alex", "alexnet-owt-7be5be79.pth"),
}


def lpips_distances(
    truth: Tensor, rows: Mapping[str, Tensor], every: int = 1
) -> dict[str, tuple[dict[str, float], str]]:
    """{column: (distance of each row, "")}; an empty mapping and the reason where it cannot be measured.

    Args:
        truth: [T, 3, H, W] in [0, 1].
        rows: of the same frames.
        every: read every n-th frame.
    """
    results: dict[str, tuple[dict[str, float], str]] = {}
    for column, (trunk, name) in TRUNKS.items():
        reason = missing_reason(column, "lpips", "lpips", name, extra="lpips")
        if reason is not None:
            results[column] = ({}, reason)
            continue
        try:
            check_weights(weights_path(name))
            network = PerceptualDistance(trunk, "lpips").to(truth.device)
            found = {row: perceptual_difference(network, video, truth, every) for row, video in rows.items()}
            results[column] = (found, "")
        except ValueError as error:
            results[column] = ({}, str(error))
    return results
