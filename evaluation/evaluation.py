"""One measurement of predicted videos against the truth, shared by validation during training and by `test`."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from visa.evaluation import image, temporal
from visa.evaluation.faces import FacePoints, face_distances
from visa.evaluation.frechet import frechet_of_samples, frechet_of_videos, kernel_distance, video_features
from visa.evaluation.identity import identity_distances
from visa.evaluation.inception import inception_distances
from visa.evaluation.perceptual import PerceptualMeasures, metric_network, perceptual_difference, perceptual_measures
from visa.evaluation.plain_lpips import lpips_distances
from visa.evaluation.sharpness import sharpness
from visa.evaluation.silhouette import silhouette_iou
from visa.evaluation.warping import motion_of, warping_error
from visa.losses.perceptual import PerceptualDistance

MEASURES = ("image", "temporal", "warping", "sharpness", "perceptual", "lpips", "identity", "faces", "inception")
DIVERSITY_FRAMES = 6  # of a clip, most that two samples are compared in: of all it would be half of the measuring


@dataclass
class Prediction:
    """One row of a table.

    frames: [T, 3, H, W] in [0, 1] of any float type, clamped here. num_steps: denoising steps a frame. fps: frames a
    second. latency_ms: from the motion of a
    chunk (a window) to its painted frames, median. samples: two paintings [S, 3, H, W] of some frames from different
    noise. coverage: [T, 1, H, W] in [0, 1], where the row paints the person, for silhouette. own_pose: [3, H, W] the
    avatar with the photo's own pose and camera, compared with the photo. figures: columns that the caller has measured.
    reasons: why a figure that
    the caller should have given is missing, by column.
    """

    frames: Tensor
    num_steps: int | None = None
    fps: float | None = None
    latency_ms: float | None = None
    samples: tuple[Tensor, Tensor] | None = None
    coverage: Tensor | None = None
    own_pose: Tensor | None = None
    figures: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def evaluate_rows(
    truth: Tensor,
    rows: Mapping[str, Prediction],
    block_lengths: Sequence[int] | None = None,
    photo: Tensor | None = None,
    masks: Tensor | None = None,
    measures: Collection[str] = MEASURES,
    backend: Literal["stlpips", "lpips"] = "stlpips",
    perceptual_every: int = 1,
    identity_every: int = 8,
    turned: Tensor | None = None,
    regions: Mapping[str, Tensor] | None = None,
    face_points: FacePoints | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures every row against the truth with the same code and on the same frames.

    One row at a time is held in float32, so that a test's memory does not grow with its rows: give them in float16.

    Args:
        truth: [T, 3, H, W] in [0, 1].
        rows: predictions of the same frames.
        block_lengths: lengths of the unbroken pieces that T is made of; nothing temporal is measured across a border.
            Default: one piece.
        photo: [3, H, W], the photo that the avatar was made of, for `identity_photo`; any size.
        masks: [T, 1, H, W] in [0, 1], where the person is, for silhouette and the colour statistics; None takes the
            whole frame for colour and measures no silhouette.
        measures: which groups to measure, of `MEASURES`; during training `("image", "temporal")` costs next to nothing.
        backend: of the perceptual distance; its network is always `vgg`.
        perceptual_every: perceptual, tlp and frechet read every n-th frame of a block, tlp over steps of n frames
            (about 45 ms a frame of 128x128 on two CPU cores).
        identity_every: faces are compared in every n-th frame (about 0.1 s a face on a CPU).
        turned: [T] bool, frames whose head has turned far from the photo's: for `psnr_turned`, `perceptual_turned`.
        regions: masks [T, 1, H, W] of parts of the picture by name, for `psnr_NAME`.
        face_points: finds the points of a face, for `aed`, `apd` and `akd`; in every n-th frame as `identity_every`.

    Returns {row: figures}: psnr (dB), ssim, psnr_person (dB, under the masks), psnr_NAME of each region, psnr_turned
    and perceptual_turned (over the turned frames), own_psnr and own_perceptual (of rows
    that give their own pose), colour_mean (mean absolute), colour_contrast (mean), colour_saturation and
    their channels (lists); silhouette (of rows that give their coverage); temporal, flicker, motion, drift; warping,
    warping_truth; sharpness (mean absolute dB over bands), power_db and coherence (lists, one value a band), bands;
    perceptual, tlp, frechet, frechet_video, kernel_distance, diversity; lpips_vgg, lpips_alex; identity (to the truth's
    frame), identity_photo, detection_rate; aed, apd, akd; fid, fvd; num_steps, fps, latency_ms. A figure that could not
    be measured is None, with the reason under `NAME_reason`.
    """
    _check(truth, rows, block_lengths, measures)
    blocks = list(block_lengths) if block_lengths is not None else [len(truth)]
    truth = _widened(truth)
    results: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for name, row in rows.items():
            video = _widened(row.frames).to(truth.device)
            results[name] = _frame_figures(video, truth, masks, blocks, measures)
            if "image" in measures:
                results[name].update(_region_figures(video, truth, regions or {}))
            if "image" in measures and masks is not None and row.coverage is not None:
                overlap = silhouette_iou(row.coverage.detach().to(masks), masks)
                results[name]["silhouette"] = float(overlap.mean())
        videos = {name: row.frames.detach().to(truth.device) for name, row in rows.items()}
        if "warping" in measures:
            _add_warping_figures(results, videos, truth, blocks)
        if "perceptual" in measures:
            distances = _add_perceptual_figures(results, videos, truth, blocks, backend, perceptual_every)
            _add_turned(results, videos, truth, distances, _every(blocks, perceptual_every), turned)
            _add_diversity(results, rows, metric_network(backend, truth.device))
            _add_own_pose(results, rows, photo, metric_network(backend, truth.device))
        if "identity" in measures:
            _add_found(results, identity_distances(truth, videos, photo, identity_every))
        if "faces" in measures:
            _add_found(results, face_distances(truth, videos, face_points, identity_every))
        if "lpips" in measures:
            _add_found(results, lpips_distances(truth, videos, perceptual_every))
        if "inception" in measures:
            _add_found(results, inception_distances(truth, videos, blocks))
    _add_given(results, rows)
    return results


def _check(
    truth: Tensor, rows: Mapping[str, Prediction], block_lengths: Sequence[int] | None, measures: Collection[str]
) -> None:
    """ValueError where the arguments of `evaluate_rows` do not belong together."""
    if unknown := set(measures) - set(MEASURES):
        raise ValueError(f"unknown measures {sorted(unknown)}: choose of {list(MEASURES)}")
    blocks = list(block_lengths) if block_lengths is not None else [len(truth)]
    if sum(blocks) != len(truth) or min(blocks) < 1:
        raise ValueError(f"block lengths {blocks} do not add up to {len(truth)} frames")
    if "truth" in rows:
        raise ValueError("the row name 'truth' is reserved for the truth itself: choose another")
    for name, row in rows.items():
        if row.frames.shape != truth.shape:
            raise ValueError(f"row {name!r} has frames {tuple(row.frames.shape)}, the truth {tuple(truth.shape)}")
        if row.samples is not None and row.samples[0].shape != row.samples[1].shape:
            raise ValueError(f"row {name!r} has two samples of different shapes")


def _add_found(
    results: dict[str, dict[str, Any]], measured: Mapping[str, tuple[Mapping[str, float | None], str]]
) -> None:
    """Columns that come with one reason for all rows where they could not be measured."""
    for column, (found, reason) in measured.items():
        for name, figures in results.items():
            _set(figures, column, found.get(name), reason)


def _add_given(results: dict[str, dict[str, Any]], rows: Mapping[str, Prediction]) -> None:
    """Figures that the caller has measured."""
    for name, row in rows.items():
        results[name].update(row.figures)
        for column in ("num_steps", "fps", "latency_ms"):
            value = getattr(row, column)
            results[name][column] = value
            if value is None:
                results[name][f"{column}_reason"] = row.reasons.get(column, "not given")


def _widened(video: Tensor) -> Tensor:
    return video.detach().float().clamp(0, 1)


def _frame_figures(
    video: Tensor, truth: Tensor, masks: Tensor | None, blocks: list[int], measures: Collection[str]
) -> dict[str, Any]:
    """The groups that need no network."""
    figures: dict[str, Any] = {}
    if "image" in measures:
        figures.update(_image_figures(video, truth, masks))
    if "temporal" in measures:
        figures.update(_temporal_figures(video, truth, blocks))
    if "sharpness" in measures:
        figures.update(_sharpness_figures(video, truth))
    return figures


def _set(figures: dict[str, Any], name: str, value: float | None, reason: str) -> None:
    """Writes a figure, or None and the reason where it is missing or not finite, which JSON cannot hold."""
    is_known = value is not None and math.isfinite(value)
    figures[name] = value if is_known else None
    if not is_known:
        figures[f"{name}_reason"] = reason


def _image_figures(video: Tensor, truth: Tensor, masks: Tensor | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    _set(figures, "psnr", float(image.psnr(video, truth).mean()), "a frame is equal to the truth")
    figures["ssim"] = float(image.ssim(video, truth).mean())
    if masks is not None:
        masked = image.masked_psnr(video, truth, masks.to(video))
        _set(figures, "psnr_person", float(masked.mean()), "a frame is equal to the truth where the person is")
    colour = image.colour_error(video, truth, masks)
    figures["colour_mean"], figures["colour_contrast"] = float(colour.mean.abs().mean()), float(colour.contrast.mean())
    figures["colour_saturation"] = colour.saturation
    figures["colour_mean_rgb"] = [round(float(x), 5) for x in colour.mean]
    figures["colour_contrast_rgb"] = [round(float(x), 5) for x in colour.contrast]
    return figures


def _region_figures(video: Tensor, truth: Tensor, regions: Mapping[str, Tensor]) -> dict[str, Any]:
    """PSNR within each region, over the frames in which it lies in the picture."""
    figures: dict[str, Any] = {}
    for name, mask in regions.items():
        shown = mask.flatten(1).any(dim=1)
        values = image.masked_psnr(video[shown], truth[shown], mask[shown].to(video))
        reason = "a frame is equal to the truth there" if shown.any() else "it lies in no frame"
        _set(figures, f"psnr_{name}", float(values.mean()), reason)
    return figures


def _temporal_figures(video: Tensor, truth: Tensor, blocks: list[int]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    pieces = list(zip(video.split(blocks), truth.split(blocks), strict=True))
    errors = torch.cat([temporal.temporal_error(p, q) for p, q in pieces])
    _set(figures, "temporal", float(errors.mean()), "needs two consecutive frames")
    unrest, truth_unrest = (
        torch.cat([temporal.unrest(pair[side]) for pair in pieces if len(pair[0]) > 2] or [errors[:0]])
        for side in (0, 1)
    )
    _set(
        figures,
        "flicker",
        float(unrest.mean() / truth_unrest.mean()),
        "needs three consecutive frames of a truth that moves",
    )
    energy, true_energy = (torch.cat([temporal.motion_energy(pair[side]) for pair in pieces]) for side in (0, 1))
    ratio = float(energy.mean() / true_energy.mean())
    _set(figures, "motion", ratio, "needs two consecutive frames of a truth that moves")
    drifts = [temporal.drift(image.psnr(p, q)) for p, q in pieces if len(p) > 2]
    change = sum(drifts) / len(drifts) if drifts else None
    _set(figures, "drift", change, "needs three consecutive frames that differ from the truth")
    return figures


def _add_warping_figures(
    results: dict[str, dict[str, Any]], videos: dict[str, Tensor], truth: Tensor, blocks: list[int]
) -> None:
    motions = [motion_of(piece) for piece in truth.split(blocks)]

    def mean(video: Tensor) -> float:
        pieces = zip(_widened(video).split(blocks), motions, strict=True)
        return float(torch.cat([warping_error(piece, motion) for piece, motion in pieces]).mean())

    floor = mean(truth)
    for name, figures in results.items():
        _set(figures, "warping", mean(videos[name]), "needs two consecutive frames")
        _set(figures, "warping_truth", floor, "needs two consecutive frames")


def _sharpness_figures(video: Tensor, truth: Tensor) -> dict[str, Any]:
    measured = sharpness(video, truth)
    return {
        "sharpness": float(measured.power_error.abs().mean()),
        "power_db": [round(float(x), 3) for x in measured.power_error],
        "coherence": [round(float(x), 4) for x in measured.coherence],
        "bands": [f"{low}-{high}" for low, high in measured.bands],
    }


def _add_perceptual_figures(
    results: dict[str, dict[str, Any]],
    videos: dict[str, Tensor],
    truth: Tensor,
    blocks: list[int],
    backend: Literal["stlpips", "lpips"],
    every: int,
) -> dict[str, Tensor]:
    """Adds the figures; returns each row's distances of the frames that were read."""
    network = metric_network(backend, truth.device)
    pieces: dict[str, list[PerceptualMeasures]] = {name: [] for name in ("truth", *videos)}
    starts = [sum(blocks[:k]) for k in range(len(blocks))]
    for start, length in zip(starts, blocks, strict=True):
        window = slice(start, start + length, every)
        for name, measured in perceptual_measures(
            network, truth[window], {n: v[window] for n, v in videos.items()}
        ).items():
            pieces[name].append(measured)
    joined = {
        name: PerceptualMeasures(*(torch.cat(column) for column in zip(*parts, strict=True)))
        for name, parts in pieces.items()
    }
    for name in videos:
        figures = results[name]
        figures["perceptual"] = float(joined[name].distance.mean())
        _set(
            figures,
            "tlp",
            float(temporal.tlp(joined[name].step, joined["truth"].step).mean()),
            "needs two consecutive frames",
        )
        windows, true_windows = (
            torch.cat([video_features(part.features, part.changes) for part in pieces[key]]) for key in (name, "truth")
        )
        for column, distance, ours, true in (
            ("frechet", frechet_of_samples, joined[name].features, joined["truth"].features),
            ("frechet_video", frechet_of_videos, windows, true_windows),
            ("kernel_distance", kernel_distance, joined[name].features, joined["truth"].features),
        ):
            try:
                figures[column] = distance(ours, true)
            except ValueError as error:
                _set(figures, column, None, str(error))
    return {name: joined[name].distance for name in videos}


def _every(blocks: list[int], every: int) -> list[int]:
    """Numbers of every n-th frame of each block."""
    starts = [sum(blocks[:k]) for k in range(len(blocks))]
    return [t for start, length in zip(starts, blocks, strict=True) for t in range(start, start + length, every)]


def _add_turned(
    results: dict[str, dict[str, Any]],
    videos: dict[str, Tensor],
    truth: Tensor,
    distances: dict[str, Tensor],
    numbers: list[int],
    turned: Tensor | None,
) -> None:
    """PSNR and perceptual distance of the turned frames among those, `numbers`, whose `distances` are known."""
    if turned is None:
        return
    chosen = turned[numbers]
    frames = torch.tensor(numbers)[chosen]
    for name, figures in results.items():
        missing = "no frame's head is turned so far"
        value = float(image.psnr(_widened(videos[name][frames]), truth[frames]).mean()) if len(frames) else None
        _set(figures, "psnr_turned", value, missing)
        value = float(distances[name][chosen].mean()) if len(frames) else None
        _set(figures, "perceptual_turned", value, missing)


def _add_diversity(
    results: dict[str, dict[str, Any]], rows: Mapping[str, Prediction], network: PerceptualDistance
) -> None:
    """Perceptual distance between two samples of the same row: 0 for a method that ignores its noise."""
    for name, row in rows.items():
        value = None
        if row.samples is not None:
            every = math.ceil(len(row.samples[0]) / DIVERSITY_FRAMES)
            value = perceptual_difference(network, *row.samples, every)
        _set(results[name], "diversity", value, row.reasons.get("diversity", "painted from one seed only"))


def _add_own_pose(
    results: dict[str, dict[str, Any]],
    rows: Mapping[str, Prediction],
    photo: Tensor | None,
    network: PerceptualDistance,
) -> None:
    """PSNR and perceptual distance of each row's picture of the photo's own pose and the photo."""
    for name, row in rows.items():
        if row.own_pose is None or photo is None:
            continue
        drawn, true = _widened(row.own_pose)[None], _widened(photo).to(row.own_pose.device)[None]
        _set(results[name], "own_psnr", float(image.psnr(drawn, true)), "it is equal to the photo")
        results[name]["own_perceptual"] = float(network(drawn, true))
