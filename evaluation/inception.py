"""FID and FVD as published, through torch-fidelity / torchmetrics and cd-fvd, where their weights are on the machine.

Neither network's weights come with an installation, and nothing here downloads: put the two files into the folder that
torch keeps downloads in. Both networks have more dimensions (2048, 400) than a test has frames, so that their figures
are far above what the same videos would score in number; compare rows of one table only, and trust `frechet` first.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visa.artifacts.media import to_uint8
from visa.evaluation.frechet import frechet_distance

FID_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"  # released with torch-fidelity 0.2.0
FVD_WEIGHTS = "i3d_pretrained_400.pt"  # I3D on Kinetics-400, as cd-fvd reads it
FVD_FRAMES = 16
FVD_STRIDE = 8


def missing_reason(measure: str, module: str, wheel: str, weights: str, extra: str = "fid") -> str | None:
    """Why a measure cannot be taken, with what mends it; None where it can."""
    if importlib.util.find_spec(module) is None:
        return f"{measure} needs {wheel}: pip install '.[{extra}]'"
    path = weights_path(weights)
    return None if path.is_file() else f"{measure} needs the weights {weights} in {path.parent}"


def weights_path(name: str) -> Path:
    """Where a file of weights is looked for."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def fid_network(weights: Path) -> Any:
    """torchmetrics' FID over the original Inception; ValueError where the file is not plain weights."""
    check_weights(weights)
    from torchmetrics.image.fid import FrechetInceptionDistance

    return FrechetInceptionDistance(feature=2048, normalize=True, feature_extractor_weights_path=str(weights))


def check_weights(path: Path) -> None:
    """The libraries unpickle the file without limits: ValueError where it holds more than tensors."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a file of plain weights: download it again") from error


def fid_distances(metric: Any, truth: Tensor, rows: Mapping[str, Tensor], batch_size: int = 8) -> dict[str, float]:
    """FID of each row [T, 3, H, W] in [0, 1] against the truth, through a torchmetrics `FrechetInceptionDistance`."""
    metric.reset_real_features = False
    for batch in truth.split(batch_size):
        metric.update(batch.float().clamp(0, 1), real=True)
    result = {}
    for name, video in rows.items():
        metric.reset()  # of the row before; the truth's statistics stay
        for batch in video.split(batch_size):
            metric.update(batch.float().clamp(0, 1), real=False)
        result[name] = float(metric.compute())
    return result


def windows(video: Tensor, blocks: Sequence[int]) -> np.ndarray:
    """Windows of 16 frames, 8 apart and inside one block, uint8 [N, 16, H, W, 3]."""
    cut = []
    for block in video.split(list(blocks)):
        cut += [to_uint8(block[k : k + FVD_FRAMES]) for k in range(0, len(block) - FVD_FRAMES + 1, FVD_STRIDE)]
    if len(cut) < 2:
        raise ValueError(f"needs two windows of {FVD_FRAMES} frames, got {len(cut)}")
    return np.stack(cut)


def fvd_distances(
    weights: Path, truth: Tensor, rows: Mapping[str, Tensor], blocks: Sequence[int], device: torch.device
) -> dict[str, float]:
    """FVD of each row against the truth by cd-fvd over I3D; ValueError where there are too few frames."""
    check_weights(weights)
    real = windows(truth, blocks)
    from cdfvd import fvd

    judge = fvd.cdfvd("i3d", ckpt_path=str(weights), device=str(device))
    judge.add_real_stats(real)
    statistics = [torch.from_numpy(x) for x in judge.real_stats.get_mean_cov()]
    result = {}
    for name, video in rows.items():
        judge.empty_fake_stats()
        judge.add_fake_stats(windows(video, blocks))
        # Its own distance takes scipy's root of a singular product, which is not real; ours has the closed form.
        result[name] = frechet_distance(*(torch.from_numpy(x) for x in judge.fake_stats.get_mean_cov()), *statistics)
    return result


def inception_distances(
    truth: Tensor, rows: Mapping[str, Tensor], blocks: Sequence[int]
) -> dict[str, tuple[dict[str, float], str]]:
    """{"fid": (distance of each row, ""), "fvd": ...}; an empty mapping and the reason where it cannot be measured."""
    results: dict[str, tuple[dict[str, float], str]] = {}
    for measure, module, wheel, name in (
        ("fid", "torch_fidelity", "torch-fidelity", FID_WEIGHTS),
        ("fvd", "cdfvd", "cd-fvd", FVD_WEIGHTS),
    ):
        reason = missing_reason(measure, module, wheel, name)
        if reason is not None:
            results[measure] = ({}, reason)
            continue
        try:
            path = weights_path(name)
            if measure == "fid":
                found = fid_distances(fid_network(path).to(truth.device), truth, rows)
            else:
                found = fvd_distances(path, truth, rows, blocks, truth.device)
            results[measure] = (found, "")
        except ValueError as error:
            results[measure] = ({}, str(error))
    return results
