"""Many clips: side by side on one machine, a share of them on each node, and on from where a run was broken off.

Each clip is tracked by a process of its own, so that nothing one file does (a decoder that crashes, memory that runs
out) touches the others. Thousands of clips on many nodes are shared out by `--shard` under an array of jobs of the
cluster's own scheduler, see docs/own_videos.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from visa.artifacts.files import atomic_path
from visa.artifacts.photos import is_image

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
SIDE_NAMES = (".mask", ".overlay")
COLUMNS = ("clip", "status", "seconds", "valid frames", "face error %", "reason")


def find_sources(given: Iterable[Path]) -> list[Path]:
    """Videos and images among files and folders (without subfolders), sorted; files that a tracker wrote beside its
    clips are left out. A file given by name is taken as it is.

    Raises:
        ValueError: nothing found, or two files whose clips would have one name.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        found += [
            file
            for file in path.iterdir()
            if (is_image(file) or file.suffix.lower() in VIDEO_SUFFIXES)
            and file.name[0] != "."
            and not file.stem.endswith(SIDE_NAMES)
        ]
    found = sorted(set(found))
    if not found:
        raise ValueError(f"no video or image in {', '.join(map(str, given))}: give files or a folder that holds some")
    twice = [name for name, count in Counter(file.stem for file in found).items() if count > 1]
    if twice:
        same = [str(file) for file in found if file.stem == twice[0]]
        raise ValueError(f"{' and '.join(same)} would become one clip {twice[0]}: rename one, or use two --out folders")
    return found


def share(sources: list[Path], shard: str) -> list[Path]:
    """The part I of N equal parts of `sources`; `shard` is "I/N", counted from 0.

    Raises:
        ValueError: not of that form.
    """
    try:
        index, count = (int(part) for part in shard.split("/"))
    except ValueError as error:
        raise ValueError(f"--shard {shard}: give I/N, for example 0/8 for the first of eight parts") from error
    if not 0 <= index < count:
        raise ValueError(f"--shard {shard}: parts are counted from 0, so the last of {count} is {count - 1}/{count}")
    return sources[index::count]


def finished(source: Path, out: Path, is_refined: bool = False) -> dict[str, Any] | None:
    """The report of a clip that is whole, was made from this very file and is refined where that is asked; None if it
    is still to be tracked.
    """
    try:
        report = json.loads((out / f"{source.stem}.report.json").read_text())
        whole = (out / f"{source.stem}.track.npz").is_file() and report["source"] == source.name
        whole = whole and (not is_refined or is_image(source) or "refined_picture_error" in report)
        return report if whole and report.get("source_bytes") == source.stat().st_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def track_in_process(source: Path, out: Path, options: list[str], num_threads: int) -> str | None:
    """Track one file in a process of its own; None if it went well, else the reason in one line."""
    command = [sys.executable, "-m", "visa.tools.track", str(source), "--out", str(out), *options]
    threads = {f"{name}_NUM_THREADS": str(num_threads) for name in ("OMP", "NUMBA", "MKL")}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, errors="replace")
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"stopped by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines or [f"exit code {done.returncode}"])[-1]


def run_batch(
    sources: list[Path],
    out: Path,
    track_one: Callable[[Path], str | None],
    num_workers: int = 1,
    shard: str | None = None,
    is_refined: bool = False,
) -> dict[str, Any]:
    """Track what is not finished yet, `num_workers` clips at a time; a clip that fails is listed and the rest goes on.

    Args:
        sources: files to track.
        out: folder of the clips. The batch's report is written to it after each clip: `batch.json`, or
            `batch.I-of-N.json` for a shard.
        track_one: tracks one file; returns None, or why it failed.
        num_workers: clips at a time.
        shard: "I/N", for the report's name alone.
        is_refined: a clip whose poses are not refined is not finished.

    Returns:
        the batch's report: `num_done`, `num_skipped` (finished before), `num_failed` and one record a clip.
    """
    path = out / ("batch.json" if shard is None else f"batch.{shard.replace('/', '-of-')}.json")
    records: dict[str, dict[str, Any]] = {}

    def attempt(source: Path) -> tuple[Path, str | None, float]:
        begin = time.perf_counter()
        try:
            reason = track_one(source)
        except Exception as error:  # whatever one file causes, the others go on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return source, reason, time.perf_counter() - begin

    def record(source: Path, status: str, seconds: float | None, reason: str | None) -> dict[str, Any]:
        report = finished(source, out) or {}
        figures = {name: report.get(name) for name in ("num_valid_frames", "num_frames", "face_error_percent")}
        records[str(source)] = {"status": status, "seconds": seconds, "reason": reason, **figures}
        counts = Counter(entry["status"] for entry in records.values())
        whole: dict[str, Any] = {f"num_{name}": counts[name] for name in ("done", "skipped", "failed")}
        whole |= {"num_clips": len(sources), "clips": {key: records[key] for key in sorted(records)}}
        with atomic_path(path) as scratch:
            scratch.write_text(json.dumps(whole, indent=1) + "\n")
        return whole

    result: dict[str, Any] = {}
    waiting = []
    for source in sources:
        if finished(source, out, is_refined):
            result = record(source, "skipped", None, None)
        else:
            waiting.append(source)
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        for future in as_completed([pool.submit(attempt, source) for source in waiting]):
            source, reason, seconds = future.result()
            result = record(source, "failed" if reason else "done", round(seconds, 1), reason)
            print(f"[{len(records)}/{len(sources)}] {source.name}: {reason or 'done'}", file=sys.stderr, flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """The batch's report as text: a row a clip, failures last."""
    rows = [COLUMNS]
    for source, entry in sorted(result["clips"].items(), key=lambda item: item[1]["status"] == "failed"):
        error = entry["face_error_percent"]
        rows.append(
            (
                Path(source).name,
                entry["status"],
                "" if entry["seconds"] is None else f"{entry['seconds']:.0f}",
                "" if entry["num_frames"] is None else f"{entry['num_valid_frames']} of {entry['num_frames']}",
                "" if error is None else f"{error:.2f}",
                entry["reason"] or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = ", ".join(f"{result[f'num_{name}']} {name}" for name in ("done", "skipped", "failed"))
    return "\n".join([*lines, f"{result['num_clips']} clips: {counts}"])
