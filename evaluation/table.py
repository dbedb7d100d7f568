"""The results table on the terminal and `metrics.json`, both from one mapping of rows."""

import json
import math
import re
import textwrap
from collections import Counter
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
    "perceptual": ("perc. v", ".3f"),
    "identity": ("ident. v", ".3f"),
    "silhouette": ("IoU ^", ".3f"),
    "sharpness": ("power v", ".2f"),
    "temporal": ("temp. v", ".4f"),
    "num_steps": ("steps", "d"),
    "fps": ("fps ^", ".1f"),
}

# Columns of the second table.
DETAILS: dict[str, tuple[str, str]] = {
    "frechet": ("Frechet v", ".4g"),
    "frechet_video": ("F. video v", ".4g"),
    "tlp": ("tLP v", ".4f"),
    "flicker": ("flicker =1", ".2f"),
    "motion": ("motion =1", ".2f"),
    "drift": ("drift dB", "+.2f"),
    "warping": ("warping v", ".4f"),
    "colour_mean": ("colour v", ".4f"),
    "colour_contrast": ("contrast", "+.3f"),
    "colour_saturation": ("saturat.", "+.3f"),
    "identity_photo": ("photo v", ".3f"),
    "detection_rate": ("faces ^", ".2f"),
    "aed": ("AED % v", ".2f"),
    "apd": ("APD deg v", ".2f"),
    "akd": ("AKD px v", ".2f"),
    "diversity": ("diversity", ".4f"),
    "latency_ms": ("delay ms v", ".0f"),
}
# Columns of the third table: the person alone, the photo's own pose, frames whose head has turned, and views from
# where the photo did not look.
AVATAR: dict[str, tuple[str, str]] = {
    "psnr_person": ("person dB ^", ".2f"),
    "psnr_eyes": ("eyes dB ^", ".2f"),
    "psnr_mouth": ("mouth dB ^", ".2f"),
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
OPTIONAL: dict[str, tuple[str, str]] = {
    "fid": ("FID v", ".1f"),
    "fvd": ("FVD v", ".1f"),
    "lpips_vgg": ("LPIPS vgg v", ".3f"),
    "lpips_alex": ("LPIPS alex v", ".3f"),
}
# Columns of which the table of means shows the interval over people.
INTERVALS = ("psnr", "ssim", "perceptual", "identity", "psnr_person", "psnr_mouth", "aed")
WIDTH = 120  # of what is printed, columns of text
NAME_WIDTH = 43  # most of them for the name of a row: the main table's columns fill the rest
HEADINGS = {**COLUMNS, **DETAILS, **AVATAR, **OPTIONAL}


def format_table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """Aligned text table; a figure that is None or absent is `-`, and its reason stands below the table once."""
    lines = [_headings(columns), *(_line(name, figures, columns) for name, figures in rows.items())]
    return "\n".join([aligned(lines), *(f"- {note}" for note in _notes(rows, columns))])


def format_grouped(
    rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str] = tuple(COLUMNS), width: int = WIDTH
) -> str:
    """The same, at most `width` columns of text wide: rows `NAME (CLIP)` stand under a line with the clip's name, and
    columns that find no room make a further table below. Rows that have none of the columns are left out.
    """
    rows = {name: figures for name, figures in rows.items() if any(figures.get(c) is not None for c in columns)}
    lines = [_headings(columns)]
    clips = {name: match.group(1) for name in rows if (match := re.search(r" \((.+)\)$", name))}
    counts, last = Counter(clips.values()), None
    for name, figures in rows.items():
        clip = clips.get(name)
        if clip is not None and counts[clip] > 1:
            if clip != last:
                lines.append([f"{clip}:", *[""] * len(columns)])
            name = "  " + name.removesuffix(f" ({clip})")
        last = clip
        lines.append(_line(_cut(name), figures, columns))
    notes = [textwrap.fill(f"- {note}", width, subsequent_indent="  ") for note in _notes(rows, columns)]
    return "\n".join([_fitted(lines, width), *notes])


def format_intervals(rows: Mapping[str, Mapping[str, Any]], width: int = WIDTH) -> str:
    """Means over people with their bootstrap intervals, `mean [low, high]`; empty where no row has any."""
    found = {name: figures for name, figures in rows.items() if any(f"{c}_interval" in figures for c in INTERVALS)}
    columns = [c for c in INTERVALS if any(f"{c}_interval" in figures for figures in found.values())]
    shown: dict[str, dict[str, Any]] = {}
    for name, figures in found.items():
        shown[name] = {}
        for column in columns:
            if (ends := figures.get(f"{column}_interval")) is not None:
                spec = HEADINGS[column][1]
                low, high = (format(end, spec) for end in ends)
                shown[name][column] = f"{format(figures[column], spec)} [{low}, {high}]"
    return format_grouped(shown, columns, width) if columns else ""


def _headings(columns: Sequence[str]) -> list[str]:
    return ["", *(HEADINGS[c][0] if c in HEADINGS else c for c in columns)]


def _line(name: str, figures: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [name, *(_cell(figures.get(column), HEADINGS.get(column, ("", ".4g"))[1]) for column in columns)]


def _notes(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Why figures are missing, each reason once."""
    found = [
        f"{column}: {reason}"
        for figures in rows.values()
        for column in columns
        if (reason := figures.get(f"{column}_reason"))
    ]
    return list(dict.fromkeys(found))


def _cut(name: str) -> str:
    """A name that is too long loses its middle."""
    half = (NAME_WIDTH - 1) // 2
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1 - half]}~{name[-half:]}"


def _fitted(lines: list[list[str]], width: int) -> str:
    """Tables of as many columns as fit, one below the other, each with the first column."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    parts: list[list[int]] = [[]]
    for k in range(1, len(widths)):
        if parts[-1] and sum(2 + widths[n] for n in [0, *parts[-1], k]) - 2 > width:
            parts.append([])
        parts[-1].append(k)
    return "\n\n".join(aligned([[line[k] for k in [0, *part]] for line in lines]) for part in parts)


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
    return _fitted(lines, WIDTH)


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
            lines.append([_cut(name), *(f"{power:+.1f}/{coherence:.2f}" for power, coherence in pairs)])
    return _fitted(lines, WIDTH)


def aligned(lines: list[list[str]]) -> str:
    """Cells under the first line's headings, the first column to the left."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = [
        "  ".join(
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
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

    The main columns come first, then means with their intervals over people; further columns, and sharpness by band,
    stand below where a row has been measured so. No line but the last is longer than WIDTH.
    """
    found = {column for figures in rows.values() for column, value in figures.items() if value is not None}
    given = {column for figures in rows.values() for column in figures}
    tables = [
        format_grouped(rows, [c for c in COLUMNS if c not in WHERE_MEASURED or c in found]),
        format_intervals(rows),
        *(
            format_grouped(rows, columns) if columns else ""
            for columns in (
                [c for c in DETAILS if c in given] + [c for c in OPTIONAL if c in found],
                [c for c in AVATAR if c in found],
            )
        ),
        format_bands(rows),
    ]
    missing = {column: note for column in OPTIONAL if column not in found for note in _notes(rows, [column])}
    lines = [textwrap.fill(f"not measured: {note}", WIDTH, subsequent_indent="  ") for note in missing.values()]
    print("\n\n".join(table for table in [*tables, "\n".join(lines)] if table))
    print(write_metrics(path, rows, **metadata))
