"""Runs -> the text of an HTML page without links to anything outside of it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from visa.evaluation.table import AVATAR, COLUMNS, DETAILS, HEADINGS, OPTIONAL
from visa.tools.report.curves import curve
from visa.tools.report.run import Media, Run

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em; color: #222; }
h1, h2, h3 { font-weight: 600; } h2 { border-top: 2px solid #2563a8; padding-top: .6em; margin-top: 2.5em; }
table { border-collapse: collapse; margin: .6em 0 1.2em; } .wide { overflow-x: auto; }
th, td { padding: .15em .6em; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #999; }
tr.clip th { background: #f0f4f9; text-align: left; } .interval { color: #777; font-size: 85%; }
img, video { max-width: 100%; } figure { margin: .6em 0; } figure.curve { display: inline-block; margin: .3em; }
figcaption { font-size: 90%; color: #444; } svg text { font-size: 10px; fill: #555; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px; }
dt { float: left; width: 11em; color: #666; }
dd { margin-left: 11em; } .missing { color: #999; }
"""
# Facts of `metrics.json` beside its rows, in this order; others follow.
FACTS = ("config", "protocol", "weights", "commit", "device", "seed", "peak_memory_mb")


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    title = (
        "Report of " + ", ".join(run.folder.name for run in runs) if len(runs) < 4 else f"Report of {len(runs)} runs"
    )
    links = "".join(f'<li><a href="#run{k}">{html.escape(str(run.folder))}</a></li>' for k, run in enumerate(runs))
    sections = "".join(_section(k, run) for k, run in enumerate(runs))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>"
        f"<ul>{links}</ul>{_beside(runs) if len(runs) > 1 else ''}{sections}</body></html>\n"
    )


def _section(number: int, run: Run) -> str:
    parts = [f'<h2 id="run{number}">{html.escape(str(run.folder))}</h2>']
    if run.metrics is not None:
        facts = {name: run.metrics[name] for name in FACTS if name in run.metrics}
        facts |= {name: value for name, value in run.metrics.items() if name not in (*facts, "rows")}
        parts.append(_facts(facts))
        parts += _tables(run.metrics["rows"])
    if run.curves:
        parts.append("<h3>Curves</h3>" + "".join(curve(tag, points) for tag, points in sorted(run.curves.items())))
    if run.pictures:
        parts.append("<h3>Pictures</h3>" + "".join(_picture(media) for media in run.pictures))
    if run.videos:
        parts.append("<h3>Videos (their start)</h3>" + "".join(_video(media) for media in run.videos))
    if run.config is not None:
        parts.append(
            f"<h3>Config</h3><details><summary>config.yaml</summary><pre>{html.escape(run.config)}</pre></details>"
        )
    return "\n".join(parts)


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Main figures, details, avatar, bands; rows of one clip under its name."""
    found = {column for figures in rows.values() for column, value in figures.items() if value is not None}
    groups = {
        "Figures": list(COLUMNS), "Details": [*DETAILS, *OPTIONAL], "Face, own pose and turned views": list(AVATAR),
    }  # fmt: skip
    parts = []
    for title, names in groups.items():
        if columns := [column for column in names if column in found]:
            parts.append(f"<h3>{title}</h3>" + _table(rows, columns))
    parts.insert(1, _people(rows))
    banded = {name: figures for name, figures in rows.items() if figures.get("bands")}
    if banded:
        parts.append("<h3>Sharpness: power dB / coherence, by cycles a frame</h3>" + _bands(banded))
    reasons = [
        f"{column.removesuffix('_reason')}: {reason}"
        for figures in rows.values()
        for column, reason in figures.items()
        if column.endswith("_reason")
    ]
    if reasons:
        notes = "".join(f"<li>{html.escape(reason)}</li>" for reason in dict.fromkeys(reasons))
        parts.append(f"<details><summary>Not measured, and why</summary><ul>{notes}</ul></details>")
    return parts


def _clip(name: str) -> tuple[str, str]:
    """`NAME (CLIP)` apart; no clip where there is none."""
    row, bracket, clip = name.removesuffix(")").rpartition(" (")
    return (row, clip) if bracket and name.endswith(")") else (name, "")


def _table(rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> str:
    heads = "".join(f'<th title="{column}">{html.escape(HEADINGS[column][0])}</th>' for column in columns)
    lines, last = [], ""
    for name, figures in rows.items():
        if all(figures.get(column) is None for column in columns):
            continue
        row, clip = _clip(name)
        if clip != last and clip:
            lines.append(f'<tr class="clip"><th colspan="{len(columns) + 1}">{html.escape(clip)}</th></tr>')
        last = clip
        cells = "".join(f"<td>{_cell(figures, column)}</td>" for column in columns)
        lines.append(f"<tr><td>{html.escape(row)}</td>{cells}</tr>")
    return _framed(heads, lines)


def _framed(heads: str, lines: Sequence[str]) -> str:
    """A table of heading cells and lines."""
    body = "".join(lines)
    return f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _people(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each person of two and more rows, a column for each row; empty with one person."""
    people: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, figures in rows.items():
        row, clip = _clip(name)
        if clip and not clip.startswith("mean of "):
            people.setdefault(clip, {})[row] = figures
    people = {clip: found for clip, found in people.items() if len(found) > 1}
    if len(people) < 2:
        return ""
    names = list(dict.fromkeys(row for found in people.values() for row in found))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = []
    for clip, found in people.items():
        cells = "".join(f"<td>{_pair(found.get(name, {}))}</td>" for name in names)
        lines.append(f"<tr><td>{html.escape(clip)}</td>{cells}</tr>")
    return "<h3>By person: PSNR dB / perceptual distance</h3>" + _framed(heads, lines)


def _pair(figures: Mapping[str, Any]) -> str:
    return f"{_cell(figures, 'psnr')} / {_cell(figures, 'perceptual')}"


def _cell(figures: Mapping[str, Any], column: str) -> str:
    value, spec = figures.get(column), HEADINGS[column][1]
    if not isinstance(value, int | float):
        reason = html.escape(str(figures.get(f"{column}_reason", "")), quote=True)
        return f'<span class="missing" title="{reason}">-</span>'
    ends = figures.get(f"{column}_interval")
    interval = f' <span class="interval">[{ends[0]:{spec}}, {ends[1]:{spec}}]</span>' if ends else ""
    return f"{value:{spec}}{interval}"


def _bands(rows: Mapping[str, Mapping[str, Any]]) -> str:
    bands = next(iter(rows.values()))["bands"]
    heads = "".join(f"<th>{html.escape(str(band))}</th>" for band in bands)
    lines = []
    for name, figures in rows.items():
        if figures["bands"] == bands:
            pairs = zip(figures["power_db"], figures["coherence"], strict=True)
            cells = "".join(f"<td>{power:+.1f} / {coherence:.2f}</td>" for power, coherence in pairs)
            lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return _framed(heads, lines)


def _beside(runs: Sequence[Run]) -> str:
    """Rows that two runs and more have measured, PSNR dB / perceptual distance, a column a run."""
    measured = [(k, run.metrics["rows"]) for k, run in enumerate(runs) if run.metrics is not None]
    names = dict.fromkeys(name for _, rows in measured for name in rows)
    shared = [name for name in names if sum(name in rows for _, rows in measured) > 1]
    if not shared:
        return ""
    heads = "".join(f'<th><a href="#run{k}">{html.escape(str(runs[k].folder))}</a></th>' for k, _ in measured)
    lines = []
    for name in shared:
        cells = "".join(f"<td>{_pair(rows.get(name, {}))}</td>" for _, rows in measured)
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return "<h2>Side by side: PSNR dB / perceptual distance</h2>" + _framed(heads, lines)


def _source(media: Media) -> str:
    return f"data:{media.kind};base64,{base64.b64encode(media.content).decode()}"


def _picture(media: Media) -> str:
    name = html.escape(media.name, quote=True)
    return f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{_source(media)}"></figure>'


def _video(media: Media) -> str:
    name = html.escape(media.name, quote=True)
    return (
        f"<figure><figcaption>{name}</figcaption>"
        f'<video controls muted loop playsinline preload="auto" src="{_source(media)}"></video></figure>'
    )
