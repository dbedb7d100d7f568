"""What each part earns: arms trained and measured alike, compared person by person.

    python -m visa.tools.ablate configs/ablations/features.yaml [--seeds 3] [--steps 300] [--out DIR] [-- OPTIONS]

Each CONFIG names a stage and arms, which differ in options of `train.py` alone (`tools/ablate/plan.py`). Every arm is
trained for equally many batches from each seed and measured by `train.py test`. Finished trainings and measurements
are kept and broken ones go on, so that the command may be stopped and started again. `OUT/NAME/ablation.json` and the
table printed last hold means over people and seeds, the spread of the seeds, the difference from the control with its
interval over people, and the sign test. What stands after `--` goes to every training and measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visa.artifacts.command_line import at_least_one, one_line_errors
from visa.artifacts.files import atomic_path
from visa.artifacts.provenance import device_name, git_commit
from visa.tools.ablate.compare import by_person, compared, format_comparison
from visa.tools.ablate.plan import Arm, Plan, read_plan
from visa.tools.ablate.training import check_options, fit_arm, run_logged, say, split_options


def measured(folder: Path, plan: Plan, name: str, arguments: Sequence[str], weights: Path | None) -> dict[str, Any]:
    """Content of the `metrics.json` of one arm, of an earlier call or by `train.py test`; ValueError if that fails."""
    record = folder / "metrics.json"
    if not record.is_file():
        log = folder / "test.log"
        say(f"{name}: measuring, log in {log}")
        chosen = "shipped" if weights is None else str(weights)
        command = [sys.executable, "train.py", "test", *arguments, f"--weights={chosen}"]
        code = run_logged([*command, "--trainer.enable_progress_bar=false"], folder, log)
        found = sorted(folder.glob(f"test/{plan.stage}/version_*/metrics.json"), key=lambda path: path.stat().st_mtime)
        if code != 0 or not found:
            raise ValueError(f"measuring '{name}' failed: see {log}")
        with atomic_path(record) as scratch:
            scratch.write_text(found[-1].read_text())
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def run_arm(folder: Path, plan: Plan, name: str, arm: Arm, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """Train one arm from one seed, where the plan trains, and measure it."""
    configs = [word for config in plan.configs for word in ("-c", config)]
    own = [*plan.options, *arm.options, f"--data.seed={seed}"]
    weights = None
    if plan.num_steps is not None:
        steps = f"--data.num_steps={plan.num_steps}"
        weights = fit_arm(folder, plan.stage, name, seed, plan.num_steps, [*configs, steps, *own], options)
    return measured(folder, plan, f"{name}, seed {seed}", [*configs, *own, *plan.test, *options], weights)


def ablate(plan: Plan, out: Path, num_seeds: int, options: Sequence[str]) -> dict[str, Any]:
    """Run a plan, print its table and write `ablation.json`; its content."""
    folder = out / plan.name
    steps = "no training" if plan.num_steps is None else f"{plan.num_steps} batches"
    for name, arm in plan.arms.items():
        check_options(folder / name, " ".join(plan.configs), [steps, *plan.options, *arm.options, *plan.test, *options])
    seeds = range(num_seeds if plan.num_steps is not None else 1)  # without training nothing is drawn
    runs: dict[str, list[Any]] = {name: [] for name in plan.arms}
    for seed in seeds:  # one seed of every arm before the next: what is broken off compares already
        for name, arm in plan.arms.items():
            runs[name].append(run_arm(folder / name / f"seed {seed}", plan, name, arm, seed, options)["rows"])
    rows = {name: arm.row or plan.row for name, arm in plan.arms.items()}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in plan.columns:
        column, sign = entry[:-1], 1 if entry[-1] == "+" else -1
        control = by_person(runs[plan.control], rows[plan.control], column)
        results[column] = {
            name: compared(by_person(found, rows[name], column), control, sign) for name, found in runs.items()
        }
    if all(found["mean"] is None for arms in results.values() for found in arms.values()):
        raise ValueError(f"no person has a row '{plan.row}': name rows of `test` and data.test_clips in the plan")
    content = {
        "commit": git_commit(), "device": device_name(), "budget": steps, "seeds": len(seeds), "control": plan.control,
        "configs": plan.configs, "options": [*plan.options, *plan.test, *options],
        "arms": {name: {"options": arm.options, "row": rows[name]} for name, arm in plan.arms.items()},
        "results": results,
    }  # fmt: skip
    with atomic_path(folder / "ablation.json") as scratch:
        scratch.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    print(f"{plan.name}: {steps}, {len(seeds)} seeds\n\n{format_comparison(results, plan.control)}\n")
    print(folder / "ablation.json")
    return content


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    own, options = split_options(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m visa.tools.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plans", nargs="+", type=Path, metavar="CONFIG", help="file of arms")
    parser.add_argument("--seeds", type=at_least_one, default=3, help="trainings of each arm (default: %(default)s)")
    parser.add_argument("--steps", type=at_least_one, help="training batches of each, instead of the plan's")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ablate"), help="folder of results (default: %(default)s)"
    )
    given = parser.parse_args(own)
    plans = [read_plan(path) for path in given.plans]  # all of them before hours of the first
    for plan in plans:
        if given.steps is not None and plan.num_steps is not None:
            plan.num_steps = given.steps
        ablate(plan, given.out, given.seeds, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
