"""What `python -m visa.benchmarks.adversarial` measures: rows of every arm, what changed, the sheet of crops."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from visa import cli as train
from visa.artifacts.media import sheet, write_image
from visa.artifacts.weights import load_weights
from visa.datamodules.batch import VideoBatch
from visa.datamodules.video import VideoDataModule
from visa.datamodules.windows import FixedWindows
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.regions import face_points
from visa.evaluation.sharpness import with_grain
from visa.evaluation.table import report_metrics
from visa.lightning_modules.adversarial import Adversarial
from visa.networks.body import BodyModel
from visa.runtime.shipped import COMMANDS

GRAIN = "matching + grain"
LIPS, EYES, TOP, CHIN = (13, 14), (33, 133, 263, 362), 10, 152  # MediaPipe's face mesh


def held_out(module: VideoDataModule, use_test: bool, stride: int) -> list[VideoBatch]:
    """The validation block (the test blocks) of the training clips, each whole."""
    module.setup("validate")
    ranges = [
        (clip, block) for clip in module.clips for block in (clip.splits.test if use_test else clip.splits.validation)
    ]
    windows = [(clip, np.arange(first, last + 1, stride)) for clip, (first, last) in ranges]
    return list(DataLoader(FixedWindows(windows, module.reader, module.resolution), batch_size=None))


@torch.no_grad()
def paint(stage: Adversarial, blocks: list[VideoBatch], weights: Path, num_samples: int = 2) -> list[Tensor]:
    """Frames `[T,3,H,W]` of all blocks, one unbroken rollout each, of samples from different noise; float16."""
    load_weights(stage.student, weights, COMMANDS["adversarial"])
    return [
        torch.cat([stage.paint_student(stage.student, b, stage.noise_levels, sample) for b in blocks])
        .clamp(0, 1)
        .half()
        for sample in range(num_samples)
    ]


@torch.no_grad()
def splat(stage: Adversarial, blocks: list[VideoBatch]) -> Tensor:
    """The reconstruction's own picture of the same frames `[T,3,H,W]`, float16."""
    return torch.cat([stage.conditioner(block)[1].rgb[0] for block in blocks]).clamp(0, 1).half()


def row_name(arm: str, seed: int) -> str:
    """Rows of trained arms name their seed."""
    return f"{arm}, seed {seed}"


def measure(
    stage: Adversarial,
    blocks: list[VideoBatch],
    weights: Mapping[tuple[str, int], Path],
    start: Path,
    names: tuple[str, str],
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Figures of every row and, for the sheet, frames of truth, splat, student and the first seed's arms."""
    full = names[1]
    truth = torch.cat([block.frames[0] for block in blocks])
    masks = torch.cat([block.masks[0] for block in blocks])
    untimed = {"fps": "not timed here: see test", "latency_ms": "not timed here: see test"}
    still = {**untimed, "diversity": "nothing is drawn at random"}
    steps = len(stage.noise_levels)
    rows = {"splat": Prediction(splat(stage, blocks), num_steps=0, reasons=still)}
    first, second = paint(stage, blocks, start)
    rows["student"] = Prediction(first, steps, samples=(first, second), reasons=untimed)
    for (arm, seed), path in weights.items():
        first, second = paint(stage, blocks, path)
        rows[row_name(arm, seed)] = Prediction(first, steps, samples=(first, second), reasons=untimed)
    for seed in sorted({seed for arm, seed in weights if arm == full}):
        smooth, sharp = (rows[row_name(arm, seed)].frames.float() for arm in names)
        grained = with_grain(smooth, sharp, torch.Generator().manual_seed(seed), masks)
        rows[row_name(GRAIN, seed)] = Prediction(grained.clamp(0, 1).half(), steps, reasons=still)
    lengths = [block.frames.shape[1] for block in blocks]
    figures = evaluate_rows(truth, rows, lengths, blocks[0].reference[0], masks)
    first_seed = min(seed for _, seed in weights)
    shown = {"truth": truth, "splat": rows["splat"].frames, "student": rows["student"].frames}
    shown |= {arm: rows[row_name(arm, first_seed)].frames for arm, seed in weights if seed == first_seed}
    return figures, shown


def effects(
    figures: Mapping[str, Mapping[str, Any]], arm: str, control: str, seeds: list[int]
) -> dict[str, float | int | None]:
    """What an arm changes over the control, flat; means over seeds, the worst band where bands are compared.

    deficit_ratio: of power lacking in bands where the control lacks more than 1 dB, what still lacks (0.5 is half of
    it). coherence_change: smallest over bands. The rest: arm minus control, or their ratio.
    """
    collected: dict[str, list[float]] = {}

    def add(name: str, value: float | None) -> None:
        if value is not None:
            collected.setdefault(name, []).append(value)

    for seed in seeds:
        base, other = figures[row_name(control, seed)], figures[row_name(arm, seed)]
        lacking = [k for k, power in enumerate(base["power_db"]) if power < -1]
        add("bands_lacking", float(len(lacking)))
        if lacking:
            add("deficit_ratio", max(abs(other["power_db"][k]) / -base["power_db"][k] for k in lacking))
        pairs = zip(other["coherence"], base["coherence"], strict=True)
        add("coherence_change", min(ours - theirs for ours, theirs in pairs))
        for name in ("frechet", "perceptual"):
            if base[name] and other[name] is not None:
                add(f"{name}_ratio", other[name] / base[name])
        for name in ("psnr", "identity", "flicker", "sharpness", "diversity", "temporal", "warping"):
            if base[name] is not None and other[name] is not None:
                add(f"{name}_change", other[name] - base[name])
    result: dict[str, float | int | None] = {}
    for name, values in collected.items():
        result[name] = round(statistics.fmean(values), 5)
        result[f"{name}_spread"] = round(max(values) - min(values), 5)
    return result


def crop_boxes(points: np.ndarray, size: int) -> dict[str, tuple[int, int, int]]:
    """Left, top and side in px of the squares around mouth, eyes and hair, inside a picture of this size."""
    up = points[TOP] - points[CHIN]
    side = int(np.clip(round(0.55 * float(np.linalg.norm(up))), 16, size))
    centres = {
        "mouth": points[list(LIPS)].mean(axis=0),
        "eyes": points[list(EYES)].mean(axis=0),
        "hair": points[TOP] + 0.15 * up,
    }

    def start(middle: float) -> int:
        return int(np.clip(round(middle - side / 2), 0, size - side))

    return {name: (start(float(x)), start(float(y)), side) for name, (x, y) in centres.items()}


def crop_sheet(
    body: BodyModel, blocks: list[VideoBatch], shown: Mapping[str, Tensor], num_frames: int = 3, zoom: int = 96
) -> Tensor:
    """Picture `[3,H',W']`: a row for each video of `shown` `[T,3,H,W]`, columns mouth, eyes and hair of some frames."""
    places = [(block, t) for block in blocks for t in range(block.frames.shape[1])]
    size = blocks[0].frames.shape[-1]
    labels: list[str] = []
    cells: dict[str, list[Tensor]] = {name: [] for name in shown}
    for index in np.linspace(0, len(places) - 1, num_frames + 2).astype(int)[1:-1]:
        block, t = places[index]
        points = face_points(body, block.cut(slice(t, t + 1)).view())[0, 0].numpy()
        boxes = crop_boxes(points, size)
        number = int(block.frame_numbers[0, t])
        for part, (left, top, side) in boxes.items():
            labels.append(f"{part} {number}")
            for name, video in shown.items():
                cut = video[index : index + 1, :, top : top + side, left : left + side].float()
                cells[name].append(torch.nn.functional.interpolate(cut, size=zoom, mode="nearest")[0])
    return sheet({name: torch.stack(pictures) for name, pictures in cells.items()}, labels)


def report(
    weights: Mapping[tuple[str, int], Path],
    config: str,
    options: list[str],
    out: Path,
    where: Literal["validation", "test"],
    stride: int,
    names: tuple[str, str],
) -> dict[str, float | int | None]:
    """Measure trained students, print the tables, write `metrics_WHERE.json` and `crops_WHERE.png`; the effects.

    Args:
        weights: of each (arm, seed).
        config, options: of the stage, as the students were trained.
        out: folder of the files.
        where: on which blocks.
        stride: measure every n-th frame.
        names: the control's arm, and the arm with the full term.
    """
    cli = train.main(["test", "-c", config, "--data.test_clips=[]", *options], cli=train.BuildOnly)
    stage, module = cli.model.eval(), cli.datamodule
    start = cli.config["test"].model.init_args.student_weights
    if start is None:
        raise ValueError("student_weights is null: the arms need a student to start from")
    blocks = held_out(module, where == "test", stride)
    for clip in module.clips:
        clip.release()
    figures, shown = measure(stage, blocks, weights, Path(start), names)
    write_image(out / f"crops_{where}.png", crop_sheet(stage.conditioner.body, blocks, shown))
    flat: dict[str, float | int | None] = {}
    seeds = sorted({seed for _, seed in weights})
    arms = list(dict.fromkeys(arm for arm, _ in weights))
    for arm in [arm for arm in [*arms, GRAIN] if arm != names[0] and row_name(arm, seeds[0]) in figures]:
        short = arm.replace(" + ", "_").replace(", ", "_").replace(" ", "_")
        flat |= {f"{short}_{name}": value for name, value in effects(figures, arm, names[0], seeds).items()}
    report_metrics(
        out / f"metrics_{where}.json", figures, config=config, seed=seeds[0],
        protocol=f"{where} blocks, every {stride}. frame, {module.resolution} px, one unbroken rollout a block "
        f"from the reference alone; {module.num_steps} generator updates from {start}; {' '.join(options)}",
        effects=flat,
    )  # fmt: skip
    return flat
