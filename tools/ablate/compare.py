"""Measured arms -> one table: means over people, spread over seeds, and whether people agree."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from visa.evaluation.intervals import bootstrap_interval, sign_test
from visa.evaluation.table import aligned

Rows = Mapping[str, Mapping[str, Any]]  # of one `metrics.json`


def people_of(rows: Rows, row: str) -> dict[str, Mapping[str, Any]]:
    """Figures of `ROW (PERSON)` by person; means and motion of others are nobody."""
    found = {}
    for name, figures in rows.items():
        start, end = f"{row} (", ")"
        person = name[len(start) : -1] if name.startswith(start) and name.endswith(end) else None
        if person and not person.startswith("mean of ") and " moved by " not in person:
            found[person] = figures
    return found


def by_person(runs: Sequence[Rows], row: str, column: str) -> dict[str, list[float]]:
    """A figure of each person, one value a seed; people who lack it in a seed are left out."""
    seeds = [people_of(rows, row) for rows in runs]
    people = list(seeds[0]) if seeds else []
    values = {person: [seed.get(person, {}).get(column) for seed in seeds] for person in people}
    return {
        person: [float(value) for value in found if value is not None]
        for person, found in values.items()
        if all(isinstance(value, int | float) for value in found)
    }


def compared(arm: Mapping[str, list[float]], control: Mapping[str, list[float]], sign: int) -> dict[str, Any]:
    """An arm's figures against the control's, over the people of both.

    Args:
        arm, control: of `by_person`.
        sign: 1 where more is better, -1 where less is.

    Returns:
        mean: over people and seeds. spread: largest minus smallest mean over people of the seeds. difference: arm minus
        control, and its 95 % `interval` over people (None of one person). better: people in whom the arm is better.
        people: how many there are. p: of the sign test. None throughout where nobody has both.
    """
    people = [person for person in arm if person in control]
    if not people:
        return dict.fromkeys(("mean", "spread", "difference", "interval", "better", "people", "p"))
    seeds = [statistics.fmean(values) for values in zip(*(arm[person] for person in people), strict=True)]
    differences = [statistics.fmean(arm[person]) - statistics.fmean(control[person]) for person in people]
    interval = [round(end, 6) for end in bootstrap_interval(differences)] if len(people) > 1 else None
    return {
        "mean": round(statistics.fmean(seeds), 6),
        "spread": round(max(seeds) - min(seeds), 6),
        "difference": round(statistics.fmean(differences), 6),
        "interval": interval,
        "better": sum(sign * value > 0 for value in differences),
        "people": len(people),
        "p": round(sign_test(differences), 6),
    }


def format_comparison(results: Mapping[str, Mapping[str, Mapping[str, Any]]], control: str) -> str:
    """A table for each column: {column: {arm: `compared`}}."""
    tables = []
    for column, arms in results.items():
        lines = [["arm", "mean", "spread", f"minus {control}", "95 % over people", "better", "p"]]
        for name, found in arms.items():
            if found["mean"] is None:
                lines.append([name, "-", "-", "-", "-", "-", "-"])
                continue
            ends = found["interval"]
            is_control = name == control
            lines.append(
                [
                    name,
                    f"{found['mean']:.4f}",
                    f"{found['spread']:.4f}",
                    "" if is_control else f"{found['difference']:+.4f}",
                    "" if is_control or ends is None else f"[{ends[0]:+.4f}, {ends[1]:+.4f}]",
                    "" if is_control else f"{found['better']}/{found['people']}",
                    "" if is_control else f"{found['p']:.3f}",
                ]
            )
        tables.append(f"{column}\n{aligned(lines)}")
    return "\n\n".join(tables)
