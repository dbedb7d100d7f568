"""What each part of the reconstruction earns: ours, and ours without each of F_sem, F_vis, F_prior and neck removal.

    python -m visa.benchmarks.reconstruction --seeds 2 --steps 900 [--json]

trains every arm of `ARMS` equally long on captures and the real clip, and measures it, and the template with projected
colours only (no learning), on the unseen captured people (their own motion, and the next person's, where only the
distance to the photo's face can be measured) and on the real clip's validation block (`--test`: on its test blocks).
Finished runs are kept and broken ones go on, so that the command may be stopped and started again. Tables,
`metrics_BLOCK.json` and `sheet_BLOCK.png` go to `--out`; options after `--` are handed to `train.py` in training and
measuring alike, e.g. `-- --model.init_args.loss_weights.ssim=0.2`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visa import cli as train
from visa.artifacts.media import sheet, write_image
from visa.artifacts.weights import load_weights
from visa.benchmarks.arms import comparison
from visa.benchmarks.command import at_least_one, print_json, run, say
from visa.datamodules.batch import VideoBatch
from visa.datamodules.clip import Clip
from visa.datamodules.video import VideoDataModule
from visa.evaluation.evaluation import Prediction, evaluate_rows
from visa.evaluation.novel_motion import cross_motion_batches, identity_to_photo
from visa.evaluation.table import format_table, write_metrics
from visa.lightning_modules.reconstruction import Reconstruction
from visa.runtime.shipped import COMMANDS
from visa.tools.ablate.training import check_options, fit_arm, split_options

OURS, PROJECTED = "ours", "projected"
SWITCH = "--model.init_args.reconstructor_options."
# Arm -> what it changes of the config.
ARMS: dict[str, list[str]] = {
    OURS: [],
    "no F_sem": [f"{SWITCH}use_semantic=false"],
    "no F_vis": [f"{SWITCH}use_visual=false"],
    "no F_prior": [f"{SWITCH}use_prior=false"],
    "no loose Gaussians": [f"{SWITCH}use_loose=false"],
    "neck kept": ["--model.init_args.remove_neck=false"],
}
CONFIGS = ["configs/reconstruction.yaml"]
UNSEEN = "assets/captures/test"
REAL = "assets/clips/webcam_man.mp4"
COLUMNS = ("psnr", "ssim", "perceptual", "identity", "identity_photo", "detection_rate", "silhouette")
SELF, CROSS, REAL_GROUP = "unseen", "unseen, cross motion", "real"


@dataclass
class Window:
    """A block that is predicted from one photo: which group it counts in, and whether its frames are true."""

    group: str
    batch: VideoBatch
    has_truth: bool = True


def schedule(steps: int) -> str:
    """The sizes of the shipped schedule; 96 px from 2/9 and 128 px from 4/9 of `steps` training batches on."""
    phases = {0: 64, round(steps * 2 / 9): 96, round(steps * 4 / 9): 128}
    return json.dumps(
        [{"start": start, "resolution": side, "num_frames": 1, "batch_size": 4} for start, side in phases.items()]
    )


def arguments_of(arm: str, seed: int, steps: int, options: Sequence[str]) -> list[str]:
    """What one training hands to `train.py`, and its measuring too."""
    configs = [word for config in CONFIGS for word in ("-c", config)]
    sizes = [f"--data.num_steps={steps}", f"--data.schedule={schedule(steps)}", f"--data.seed={seed}"]
    return [*configs, *sizes, *ARMS[arm], *options]


def train_arm(folder: Path, arm: str, seed: int, steps: int, options: Sequence[str]) -> Path:
    """Train one reconstruction, or take the one that an earlier call has trained; its weights."""
    return fit_arm(folder, "reconstruction", arm, seed, steps, arguments_of(arm, seed, steps, []), options)


def build(arm: str, seed: int, steps: int, options: Sequence[str], unseen: str) -> tuple[Reconstruction, Any]:
    """Stage and data module of an arm, the unseen people as its only test clips; nothing is run."""
    clips = [f'--data.test_clips=[{{"path": {json.dumps(unseen)}}}]']
    cli = train.main(["test", *arguments_of(arm, seed, steps, [*options, *clips])], cli=train.BuildOnly)
    assert isinstance(cli.model, Reconstruction)
    return cli.model.eval(), cli.datamodule


def windows_of(
    stage: Reconstruction, module: VideoDataModule, real: Sequence[str], use_test: bool, stride: int
) -> list[Window]:
    """Everything that is measured, on every `stride`-th frame."""
    module.test_stride = stride
    module.setup("test")

    def read(group: str, clip: Clip, blocks: Sequence[tuple[int, int]]) -> list[Window]:
        numbers = [np.arange(first, last + 1, stride) for first, last in blocks]
        reference = clip.reference_frame()
        return [Window(group, module.reader.read(clip, n, reference, module.resolution)) for n in numbers]

    windows = [window for clip in module.extra_clips for window in read(SELF, clip, clip.splits.test)]
    windows += [Window(CROSS, batch, False) for batch in cross_motion_batches(module, stage.reconstructor.body)]
    for path in real:
        clip = Clip(path)
        windows += read(REAL_GROUP, clip, clip.splits.test if use_test else clip.splits.validation)
    return windows


@torch.no_grad()
def predict(stage: Reconstruction, windows: Sequence[Window], use_heads: bool = True) -> list[Prediction]:
    """The splat of every window, in float16."""
    rows = []
    for window in windows:
        maps = stage.render(window.batch, use_heads)[1]
        rows.append(Prediction(maps.rgb[0].clamp(0, 1).half(), coverage=maps.alpha[0].half()))
    return rows


def measure(window: Window, rows: Mapping[str, Prediction]) -> dict[str, dict[str, Any]]:
    """The columns `COLUMNS` of every row on one window; those that are missing are left out."""
    batch = window.batch
    if window.has_truth:
        photo, masks = batch.reference[0], batch.masks[0]
        figures = evaluate_rows(
            batch.frames[0], rows, photo=photo, masks=masks, measures=("image", "perceptual", "identity")
        )
    else:
        figures = {name: identity_to_photo(row.frames.float(), batch.reference[0]) for name, row in rows.items()}
    return {
        name: {column: row[column] for column in COLUMNS if row.get(column) is not None}
        for name, row in figures.items()
    }


def mean_rows(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each column over the rows that have it."""
    return {
        column: statistics.fmean(row[column] for row in rows if column in row)
        for column in COLUMNS
        if any(column in row for row in rows)
    }


def by_group(
    windows: Sequence[Window], figures: Sequence[Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, dict[str, float]]]:
    """{group: {row: mean over its windows}}; windows count alike."""
    groups = dict.fromkeys(window.group for window in windows)
    chosen = {group: [f for w, f in zip(windows, figures, strict=True) if w.group == group] for group in groups}
    return {group: {name: mean_rows([f[name] for f in found]) for name in found[0]} for group, found in chosen.items()}


def flatten(
    groups: Mapping[str, Mapping[str, Mapping[str, float]]], seeds: Mapping[str, list[str]]
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Means over the seeds of each arm by group, and the flat object: `group/arm/column`, `_spread` (largest minus
    smallest over seeds), and `group/arm/psnr_gain` over no learning.

    Args:
        groups: `by_group`, rows named by arm and seed.
        seeds: the names of each arm's rows.
    """
    means, flat = {}, {}
    for group, rows in groups.items():
        means[group] = {arm: mean_rows([rows[name] for name in names]) for arm, names in seeds.items()}
        for arm, row in means[group].items():
            for column, value in row.items():
                found = [rows[name][column] for name in seeds[arm] if column in rows[name]]
                flat[f"{group}/{arm}/{column}"] = round(value, 4)
                flat[f"{group}/{arm}/{column}_spread"] = round(max(found) - min(found), 4)
            if "psnr" in row and arm != PROJECTED:
                flat[f"{group}/{arm}/psnr_gain"] = round(row["psnr"] - means[group][PROJECTED]["psnr"], 4)
    return means, flat


def report(
    weights: Mapping[tuple[str, int], Path], arguments: argparse.Namespace, options: Sequence[str]
) -> dict[str, float]:
    """Measure every training and write tables, figures and pictures; the flat object."""
    real = arguments.real or [REAL]
    windows: list[Window] = []
    rows: list[dict[str, Prediction]] = []
    seeds: dict[str, list[str]] = {}
    for (arm, seed), path in weights.items():
        stage, module = build(arm, seed, arguments.steps, options, arguments.unseen)
        load_weights(stage.reconstructor, path, COMMANDS["reconstruction"])
        if not windows:
            windows = windows_of(stage, module, real, arguments.test, arguments.stride)
            rows = [{PROJECTED: row} for row in predict(stage, windows, use_heads=False)]
            seeds[PROJECTED] = [PROJECTED]
        name = f"{arm}, seed {seed}"
        seeds.setdefault(arm, []).append(name)
        for kept, row in zip(rows, predict(stage, windows), strict=True):
            kept[name] = row
    say(f"measuring {sum(len(r) * w.batch.frames.shape[1] for r, w in zip(rows, windows, strict=True))} frames")
    groups = by_group(windows, [measure(window, row) for window, row in zip(windows, rows, strict=True)])
    means, flat = flatten(groups, seeds)
    for group, table in means.items():
        say(f"\n{group} (mean over seeds)\n" + format_table(table, COLUMNS))
    where = "test" if arguments.test else "validation"
    named = {f"{row} ({group})": figures for group, found in groups.items() for row, figures in found.items()}
    protocol = f"{arguments.steps} batches each; every {arguments.stride}. frame; real clip: {where} block"
    write_metrics(arguments.out / f"metrics_{where}.json", named, str(CONFIGS), 0, protocol, flat=flat)
    write_image(arguments.out / f"sheet_{where}.png", pictures(windows, rows, seeds))
    return flat


def pictures(
    windows: Sequence[Window], rows: Sequence[Mapping[str, Prediction]], seeds: Mapping[str, list[str]]
) -> Tensor:
    """`[3,H,W]`: the middle frame of every window, by the first seed of every arm."""
    middle = [window.batch.frames.shape[1] // 2 for window in windows]
    lines = {
        "photo": torch.cat([window.batch.reference for window in windows]),
        "truth": torch.stack([w.batch.frames[0, t] for w, t in zip(windows, middle, strict=True)]),
    }
    for arm, names in seeds.items():
        lines[arm] = torch.stack([row[names[0]].frames[t].float() for row, t in zip(rows, middle, strict=True)])
    return sheet(lines)


def parse(given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line; what stands after `--` apart."""
    own, options = split_options(given)
    parser = comparison(__doc__, list(ARMS), 2, "runs/benchmark_reconstruction")
    parser.add_argument("--steps", type=at_least_one, default=900, help="training batches of each")
    parser.add_argument("--unseen", default=UNSEEN, help="folder of people who never train")
    parser.add_argument("--real", nargs="*", default=[], help="real clips instead of the shipped one")
    return parser.parse_args(own), options


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments, options = parse(sys.argv[1:] if given is None else given)
    arguments.out.mkdir(parents=True, exist_ok=True)
    check_options(arguments.out, " ".join(CONFIGS), options)
    weights: dict[tuple[str, int], Path] = {}
    for seed in range(arguments.seeds):  # one seed of every arm before the next: a broken-off run compares already
        for arm in arguments.arms:
            folder = arguments.out / f"{arguments.steps} steps" / arm / f"seed {seed}"
            weights[arm, seed] = train_arm(folder, arm, seed, arguments.steps, options)
    flat = {"seeds": arguments.seeds, "steps": arguments.steps, **report(weights, arguments, options)}
    print_json(flat, arguments.json)


if __name__ == "__main__":
    run(main)
