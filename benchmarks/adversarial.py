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
import json
import sys
from pathlib import Path

from visa.benchmarks.arms import check_options, fit_arm, say, split_options

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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="students of each arm")
    parser.add_argument("--updates", type=int, default=300, help="generator updates of each")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="which to train")
    parser.add_argument("-c", "--config", default="configs/adversarial.yaml", help="of the stage")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_adversarial"), help="folder of the results")
    parser.add_argument("--test", action="store_true", help="measure on the test blocks, not on the validation block")
    parser.add_argument("--stride", type=int, default=1, help="measure every n-th frame")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on standard output")
    arguments = parser.parse_args(own)
    if CONTROL not in arguments.arms or arguments.seeds < 1 or arguments.updates < 1:
        parser.error(f"'{CONTROL}' must be among the arms, and seeds and updates at least 1")
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

    where = "test" if arguments.test else "validation"
    options = [f"--data.num_steps={arguments.updates}", *options]
    with contextlib.redirect_stdout(sys.stderr):
        flat = report(weights, arguments.config, options, arguments.out, where, arguments.stride, (CONTROL, FULL))
    flat = {"seeds": arguments.seeds, "updates": arguments.updates, **flat}
    for name, value in flat.items():
        say(f"{name:50s} {value}")
    if arguments.json:
        print(json.dumps(flat))


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
