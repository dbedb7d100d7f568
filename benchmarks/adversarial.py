"""Does the adversarial term keep the student sharp? Equal generator updates with and without it, from one student.

    python -m visa.benchmarks.adversarial --seeds 3 --updates 300 [--json]

trains `--seeds` students for `--updates` generator updates under each arm of `ARMS` and measures them, the student they
start from, the splat, and the control plus grain of the power that the adversarial term added, on the validation block
(`--test`: on the test blocks). Finished runs are kept and broken ones go on, so that the command may be stopped and
started again. Tables, `metrics_BLOCK.json` and `crops_BLOCK.png` (mouth, eyes, hair) go to `--out`; options after `--`
are handed to `train.py` in training and measuring alike, e.g. `-- --model.init_args.adversarial_weight=0.1`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Literal

from visa.benchmarks.arms import comparison
from visa.benchmarks.command import at_least_one, print_json, run, say_figures
from visa.tools.ablate.training import check_options, fit_arm, split_options

CONTROL, FULL = "matching", "matching + adversarial"
# Arm -> what it changes of the config. The control's step is the distillation's own, bit for bit.
ARMS: dict[str, list[str]] = {
    CONTROL: ["--model.init_args.adversarial_weight=0.0"],
    FULL: [],
    "adversarial, no reference": ["--model.init_args.use_reference=false"],
}


def run_folder(out: Path, arm: str, seed: int, updates: int) -> Path:
    """Where one training lives."""
    return out / f"{updates} updates" / arm / f"seed {seed}"


def train_arm(folder: Path, arm: str, seed: int, updates: int, config: str, options: list[str]) -> Path:
    """Train one student, or take the one that an earlier call has trained; its weights."""
    arguments = ["-c", config, f"--data.num_steps={updates}", f"--data.seed={seed}", *ARMS[arm]]
    return fit_arm(folder, "adversarial", arm, seed, updates, arguments, options)


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line; what stands after `--` apart."""
    own, options = split_options(sys.argv[1:])
    parser = comparison(__doc__, list(ARMS), 3, "runs/benchmark_adversarial")
    parser.add_argument("--updates", type=at_least_one, default=300, help="generator updates of each")
    parser.add_argument("-c", "--config", default="configs/adversarial.yaml", help="of the stage")
    arguments = parser.parse_args(own)
    if CONTROL not in arguments.arms:
        parser.error(f"'{CONTROL}' must be among the arms")
    return arguments, options


def main() -> None:
    arguments, options = parse()
    check_options(arguments.out, arguments.config, options)
    weights: dict[tuple[str, int], Path] = {}
    for seed in range(arguments.seeds):  # one seed of every arm before the next: a broken-off run compares already
        for arm in arguments.arms:
            folder = run_folder(arguments.out, arm, seed, arguments.updates)
            weights[arm, seed] = train_arm(folder, arm, seed, arguments.updates, arguments.config, options)
    # Not before: hours may have passed, and the parser reads sources of what has been imported.
    from visa.benchmarks.adversarial_effects import report

    where: Literal["validation", "test"] = "test" if arguments.test else "validation"
    options = [f"--data.num_steps={arguments.updates}", *options]
    with contextlib.redirect_stdout(sys.stderr):
        flat = report(weights, arguments.config, options, arguments.out, where, arguments.stride, (CONTROL, FULL))
    flat = {"seeds": arguments.seeds, "updates": arguments.updates, **flat}
    say_figures(flat)
    print_json(flat, arguments.json, digits=5)


if __name__ == "__main__":
    run(main)
