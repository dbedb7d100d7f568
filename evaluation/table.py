"""The results table on the terminal and `metrics.json`, both from one mapping of rows."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from visa.artifacts.files import atomic_path
from visa.artifacts.provenance import device_name, git_commit

# Column -> (heading, format); the arrow says which way is better.
COLUMNS: dict[str, tuple[str, str]] = {
    "psnr": ("PSNR dB ^", ".2f"),
    "ssim": ("SSIM ^", ".3f"),
    "perceptual": ("percept. v", ".3f"),
    "identity": ("identity v", ".3f"),
    "silhouette": ("outline ^", ".3f"),
    "sharpness": ("|power| dB v", ".2f"),
    "temporal": ("temporal v", ".4f"),
    "num_steps": ("steps", "d"),
    "fps": ("frames/s ^", ".1f"),
}

# Columns of the second table.
DETAILS: dict[str, tuple[str, str]] = {
    "frechet": ("Frechet v", ".4g"),
    "tlp": ("tLP v", ".4f"),
    "flicker": ("flicker =1", ".2f"),
    "warping": ("warping v", ".4f"),
    "colour_mean": ("colour v", ".4f"),
    "colour_contrast": ("contrast", "+.3f"),
    "colour_saturation": ("saturat.", "+.3f"),
    "identity_photo": ("photo v", ".3f"),
    "detection_rate": ("faces ^", ".2f"),
    "diversity": ("diversity", ".4f"),
    "latency_ms": ("delay ms v", ".0f"),
}
# Columns of the third table: the person alone, the photo's own pose, frames whose head has turned, and views from
# where the photo did not look.
AVATAR: dict[str, tuple[str, str]] = {
    "psnr_person": ("person dB ^", ".2f"),
    "own_psnr": ("own pose dB ^", ".2f"),
    "own_perceptual": ("own pose v", ".4f"),
    "psnr_turned": ("turned dB ^", ".2f"),
    "perceptual_turned": ("turned v", ".3f"),
    "turned_outside": ("spikes v", ".4f"),
    "turned_holes": ("holes v", ".4f"),
    "turned_roughness": ("rough =1", ".2f"),
}
WHERE_MEASURED = ("silhouette",)  # columns of the first table that only rows with a coverage have
# Further columns of the second table where their weights are on the machine.
OPTIONAL: dict[str, tuple[str, str]] = {"fid": ("FID v", ".1f"), "fvd": ("FVD v", ".1f")}
_HEADINGS = {**COLUMNS, **DETAILS, **AVATAR, **OPTIONAL}


def format_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """Aligned text table; a figure that is None or absent is `-`, and its reason stands below the table once."""
    lines = [["", *(_HEADINGS[c][0] if c in _HEADINGS else c for c in columns)]]
    notes: list[str] = []
    for name, figures in rows.items():
        lines.append([name, *(_cell(figures.get(column), _HEADINGS.get(column, ("", ".4g"))[1]) for column in columns)])
        for column in columns:
            reason = figures.get(f"{column}_reason")
            if reason and (note := f"{column}: {reason}") not in notes:
                notes.append(note)
    return "\n".join([_aligned(lines), *(f"- {note}" for note in notes)])


def format_people(rows: Mapping[str, Mapping[str, Any]], people: Sequence[str], baseline: str = "freeze") -> str:
    """One line a person, one column a row: PSNR dB / perceptual distance; then in how many a row beats `baseline`.

    Args:
        rows: figures of rows `NAME (PERSON)`.
        people: their names; people without a row are left out.
        baseline: row that the others are compared with.
    """
    names = [key.removesuffix(f" ({people[0]})") for key in rows if key.endswith(f" ({people[0]})")]
    lines = [["PSNR dB / perceptual", *names]]
    better = {name: [0, 0] for name in names}
    for person in people:
        found = [rows.get(f"{name} ({person})", {}) for name in names]
        lines.append([person, *(f"{_cell(f.get('psnr'), '.2f')}/{_cell(f.get('perceptual'), '.3f')}" for f in found)])
        start = rows.get(f"{baseline} ({person})", {})
        for name, figures in zip(names, found, strict=True):
            for k, (column, sign) in enumerate((("psnr", 1), ("perceptual", -1))):
                if figures.get(column) is not None and start.get(column) is not None:
                    better[name][k] += sign * (figures[column] - start[column]) > 0
    lines.append([f"better than {baseline}", *(f"{psnr}/{distance}" for psnr, distance in better.values())])
    return _aligned(lines)


def format_bands(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of power error (dB, + too strong, - too smooth) and phase coherence with the truth, by band.

    Bands are in cycles over the shorter side of a frame. Empty where no row has bands.
    """
    bands: list[str] = next((figures["bands"] for figures in rows.values() if figures.get("bands")), [])
    if not bands:
        return ""
    lines = [["power dB / coherence", *bands]]
    for name, figures in rows.items():
        if figures.get("bands") == bands:
            pairs = zip(figures["power_db"], figures["coherence"], strict=True)
            lines.append([name, *(f"{power:+.1f}/{coherence:.2f}" for power, coherence in pairs)])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    """Cells under the first line's headings, the first column to the left."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    text.insert(1, "-" * len(text[0]))
    return "\n".join(text)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "-"
    return format(value, spec) if isinstance(value, int | float) else str(value)


def write_metrics(
    path: str | Path,
    rows: Mapping[str, Mapping[str, Any]],
    config: str,
    seed: int,
    protocol: str,
    device: torch.device | str = "cpu",
    **extra: Any,
) -> Path:
    """Writes `metrics.json`, whole or not at all.

    Args:
        path: of the file.
        rows: what `evaluate_rows` returns.
        config: the resolved config, or the name of its file.
        seed: of the run.
        protocol: one sentence: which clip, frames, size and how they were predicted.
        device: that made the predictions; its name is written.
        extra: further top-level entries.
    """
    for name, figures in rows.items():
        for column, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"metrics.json: row {name!r} has {column} = {value}: write None and '{column}_reason' instead"
                )
            if value is None and f"{column}_reason" not in figures:
                raise ValueError(f"metrics.json: row {name!r} has no {column} and no '{column}_reason'")
    content = {
        "device": device_name(device), "commit": git_commit(), "config": config, "seed": seed, "protocol": protocol,
        **extra,
        "rows": {name: dict(figures) for name, figures in rows.items()},
    }  # fmt: skip
    path = Path(path)
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic_path(path) as scratch:
        scratch.write_text(text + "\n")
    return path


def report_metrics(path: str | Path, rows: Mapping[str, Mapping[str, Any]], **metadata: Any) -> None:
    """Prints the tables, writes the file (`metadata` as for `write_metrics`) and prints its path as the last line.

    The main columns come first; further ones, and sharpness by band, stand below where a row has been measured so.
    """
    found = {column for figures in rows.values() for column, value in figures.items() if value is not None}
    print(format_table(rows, [c for c in COLUMNS if c not in WHERE_MEASURED or c in found]))
    further = [c for c in DETAILS if any(c in figures for figures in rows.values())]
    further += [c for c in OPTIONAL if any(figures.get(c) is not None for figures in rows.values())]
    if further:
        print("\n" + format_table(rows, further))
    avatar = [c for c in AVATAR if any(figures.get(c) is not None for figures in rows.values())]
    if avatar:
        print("\n" + format_table(rows, avatar))
    if bands := format_bands(rows):
        print("\n" + bands)
    print(write_metrics(path, rows, **metadata))
