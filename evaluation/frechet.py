"""Distances between two sets of frames, on features whose weights come with the installation.

The Fréchet distance of N samples is biased upwards, by a share that grows with D / N: two sets of the same
distribution do not score 0. With D = 16 and the same N in every row, rows of one table compare; figures of tables with
other numbers of frames do not. Frames of a video resemble their neighbours, so that N counts for less than it says.
The kernel distance beside it is unbiased at any N and may therefore come out slightly negative.
"""

import torch
from torch import Tensor

# The third stage of the VGG trunk (relu3_3, 256 channels, a quarter of the resolution) sees texture and small parts.
FRECHET_STAGE = 2
FRECHET_DIMENSIONS = 16
VIDEO_WINDOW = 4  # frames of a window whose motion is compared


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).
    Means [D], covariances [D, D]. The trace of the root of the product is the sum of the roots of the eigenvalues of
    the symmetric C_a^(1/2) C_b C_a^(1/2), which stays real where C_a is singular.
    """
    mean_a, covariance_a, mean_b, covariance_b = (x.double() for x in (mean_a, covariance_a, mean_b, covariance_b))
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ covariance_b @ root
    trace_of_root = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)


def _projected(pooled: Tensor) -> Tensor:
    """[N, C] -> [N, 16] by a fixed random orthonormal basis."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(pooled.shape[1], FRECHET_DIMENSIONS, generator=generator, dtype=torch.float64)
    return pooled.double() @ torch.linalg.qr(random).Q.to(pooled.device)


def frechet_features(activations: list[Tensor]) -> Tensor:
    """Raw VGG activations of `PerceptualDistance.activations` -> [N, 16] features of whole frames.

    Activations of the third stage are averaged over space and projected by a fixed random orthonormal basis: it is the
    same for every video and run, belongs to neither side, and leaves far fewer dimensions than a test has frames,
    without which the covariances would be noise. Only `vgg` counts: `alex` is in the losses.
    """
    return _projected(activations[FRECHET_STAGE].mean(dim=(2, 3)).double())


def change_features(stage: Tensor) -> Tensor:
    """Activations [T, C, H, W] of consecutive frames -> [T-1, 16]: how much each channel changes, wherever it does.

    Mean over space of the absolute change, projected as `frechet_features`.
    """
    return _projected(stage.diff(dim=0).abs().mean(dim=(2, 3)).double())


def video_features(features: Tensor, changes: Tensor) -> Tensor:
    """Features of windows of consecutive frames: what they show and how it moves, [T, D], [T-1, D] -> [N, D].

    The first half of D is the mean over the window of `frechet_features`, the second that of `change_features`. Windows
    begin at every frame; none where T is less than VIDEO_WINDOW.
    """
    half = features.shape[1] // 2
    if len(features) < VIDEO_WINDOW:
        return features[:0]
    shown = features[:, :half].unfold(0, VIDEO_WINDOW, 1).mean(dim=-1)
    moved = changes[:, :half].unfold(0, VIDEO_WINDOW - 1, 1).mean(dim=-1)
    return torch.cat([shown, moved], dim=1)


def frechet_of_videos(features: Tensor, truth: Tensor) -> float:
    """Fréchet distance of `video_features` [N, D] in units of the truth's own spread: motion is small in numbers.

    Raises ValueError as `frechet_of_samples`.
    """
    spread = truth.std(dim=0, keepdim=True).clamp_min(1e-12) if len(truth) > 1 else 1.0
    return frechet_of_samples(features / spread, truth / spread)


def frechet_of_samples(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance of features [N, D] and [M, D]. Raises ValueError with fewer than 2 D samples on a side."""
    dimensions = features_a.shape[1]
    if min(len(features_a), len(features_b)) < 2 * dimensions:
        raise ValueError(f"needs {2 * dimensions} frames, got {min(len(features_a), len(features_b))}")
    return frechet_distance(features_a.mean(dim=0), features_a.T.cov(), features_b.mean(dim=0), features_b.T.cov())


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy under (x.y / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, eq. 4).

    Features [N, D] and [M, D]; ValueError with fewer than two samples on a side.
    """
    n, m = len(features_a), len(features_b)
    if min(n, m) < 2:
        raise ValueError(f"needs 2 frames, got {min(n, m)}")
    a, b = features_a.double(), features_b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within_a, within_b, across = kernel(a, a), kernel(b, b), kernel(a, b)
    # A sample paired with itself is what makes the plain estimate biased.
    own = (within_a.sum() - within_a.trace()) / (n * (n - 1)) + (within_b.sum() - within_b.trace()) / (m * (m - 1))
    return float(own - 2 * across.mean())
