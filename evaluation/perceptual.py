"""Perceptual measures of several videos against one truth, each frame through the network once."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from visa.evaluation.frechet import FRECHET_STAGE, change_features, frechet_features
from visa.losses.perceptual import PerceptualDistance


class PerceptualMeasures(NamedTuple):
    """distance [T] to the truth; step [T-1] to the own frame before; features [T, D] for the Fréchet distance, and
    changes [T-1, D] for that of videos.
    """

    distance: Tensor
    step: Tensor
    features: Tensor
    changes: Tensor


@lru_cache(maxsize=2)
def metric_network(backend: Literal["stlpips", "lpips"], device: torch.device) -> PerceptualDistance:
    """The network of the reported metric (`vgg`), loaded once a process."""
    return PerceptualDistance("vgg", backend).to(device)


@torch.no_grad()
def perceptual_measures(
    network: PerceptualDistance, truth: Tensor, rows: Mapping[str, Tensor], batch_size: int | None = None
) -> dict[str, PerceptualMeasures]:
    """Measures of each row and, under the name `truth`, of the truth itself; all videos are [T, 3, H, W] in [0, 1].

    `batch_size` frames pass through the network at once; by default as many as make four pictures of 128x128, at which
    its activations take about 0.1 GB. Videos may be of any float type: they are widened batch by batch.
    """
    batch_size = batch_size or max(1, 4 * 128 * 128 // (truth.shape[-2] * truth.shape[-1]))
    videos = {"truth": truth, **rows}
    parts: dict[str, list[PerceptualMeasures]] = {name: [] for name in videos}
    last: dict[str, list[Tensor]] = {}
    last_stage: dict[str, Tensor] = {}
    for start in range(0, len(truth), batch_size):
        truth_features: list[Tensor] = []
        for name, video in videos.items():
            activations = network.activations(video[start : start + batch_size].float().clamp(0, 1))
            frechet = frechet_features(activations)
            features = network.normalized(activations)
            stage = torch.cat([last_stage[name], activations[FRECHET_STAGE]]) if start else activations[FRECHET_STAGE]
            changes, last_stage[name] = change_features(stage), stage[-1:].clone()
            del activations, stage
            if name == "truth":
                truth_features = features
            steps = [network.between([x[1:] for x in features], [x[:-1] for x in features])]
            if start:
                steps.insert(0, network.between([x[:1] for x in features], last[name]))
            distance = network.between(features, truth_features)
            parts[name].append(PerceptualMeasures(distance, torch.cat(steps), frechet, changes))
            last[name] = [x[-1:].clone() for x in features]
    return {
        name: PerceptualMeasures(*(torch.cat(column) for column in zip(*measures, strict=True)))
        for name, measures in parts.items()
    }


@torch.no_grad()
def perceptual_difference(network: PerceptualDistance, first: Tensor, second: Tensor, every: int = 1) -> float:
    """Mean perceptual distance of every n-th frame of two videos [T, 3, H, W] in [0, 1], one frame at a time."""
    pairs = zip(first[::every].split(1), second[::every].split(1), strict=True)
    return float(torch.cat([network(a.float().clamp(0, 1), b.float().clamp(0, 1)) for a, b in pairs]).mean())
