"""What an ablation compares: a YAML file of arms."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from visa.artifacts.configs import read_config


@dataclass
class Arm:
    """One side of the comparison.

    Attributes:
        options: of `train.py`, in training and measuring alike, such as `--model.init_args.remove_neck=false`.
        row: of the table of `test`; None for the plan's.
    """

    options: list[str] = field(default_factory=list)
    row: str | None = None


@dataclass
class Plan:
    """An ablation.

    Attributes:
        name: of its folder; the file's.
        stage: as `Stage.stage`.
        configs: of `train.py`, the stage's first.
        row: of the table of `test` that is compared, without its clip.
        control: the arm that the others are compared with.
        arms: by name.
        num_steps: training batches of every arm; None trains nothing, and all arms take the weights of `configs` or the
            shipped ones.
        options: of all arms.
        test: further options of measuring alone.
        columns: of the table, `COLUMN+` where more is better, `COLUMN-` where less is.
    """

    name: str
    stage: str
    configs: list[str]
    row: str
    control: str
    arms: dict[str, Arm]
    num_steps: int | None = None
    options: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=lambda: ["psnr+", "perceptual-"])


def read_plan(path: Path) -> Plan:
    """The plan of a file.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    content = read_config(path)
    known = {one.name for one in fields(Plan)} - {"name"}
    if unknown := sorted(set(content) - known):
        raise ValueError(f"{path}: no such key '{unknown[0]}'; choose of {', '.join(sorted(known))}")
    if missing := [key for key in ("stage", "configs", "row", "control", "arms") if key not in content]:
        raise ValueError(f"{path} has no '{missing[0]}'")
    arms = {str(name): _arm(path, str(name), value) for name, value in content.pop("arms").items()}
    plan = Plan(name=path.stem, arms=arms, **content)
    if plan.control not in arms:
        raise ValueError(f"{path}: the control '{plan.control}' is none of the arms {', '.join(arms)}")
    if len(arms) < 2:
        raise ValueError(f"{path} has the arm '{plan.control}' alone: give another to compare it with")
    if wrong := [column for column in plan.columns if column[-1:] not in ("+", "-")]:
        raise ValueError(f"{path}: column '{wrong[0]}' must end in + (more is better) or - (less is)")
    if plan.num_steps is not None and plan.num_steps < 1:
        raise ValueError(f"{path}: num_steps is {plan.num_steps}: give 1 or more, or null to train nothing")
    return plan


def _arm(path: Path, name: str, value: Any) -> Arm:
    """A list of options, or a mapping with `options` and `row`; nothing is an arm without options."""
    given = {"options": value} if isinstance(value, list) else dict(value or {})
    if unknown := sorted(set(given) - {"options", "row"}):
        raise ValueError(f"{path}: arm '{name}' has a key '{unknown[0]}': give a list of options, or options and row")
    arm = Arm(**given)
    if not all(isinstance(option, str) and option.startswith("--") for option in arm.options):
        raise ValueError(f"{path}: arm '{name}' has {arm.options}: give options of train.py, such as --data.seed=1")
    return arm
