"""`python -m tools.track VIDEO_OR_IMAGE --out DIR`: fit the body model to a person and write the clip contract."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from networks.body import BodyModel
from tools.track.correspond import DEFAULT_BODY, DEFAULT_LANDMARKS, Landmarks
from tools.track.detect import detect, require_mediapipe
from tools.track.fit import fit
from tools.track.report import report_of
from tools.track.write import write_clip


def track_file(source: Path, out: Path, body_path: Path, landmarks_path: Path) -> dict[str, Any]:
    """Track one video or image into `out`; returns the report. ValueError (one line) for bad input; nothing is left
    half-written.
    """
    if not source.is_file():
        raise ValueError(f"{source}: no such file: give the path of a video or an image")
    require_mediapipe()
    body, landmarks = BodyModel.from_file(body_path), Landmarks.load(landmarks_path)
    detections = detect(source)
    try:
        track = fit(detections, body, landmarks)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    report = {"source": source.name, "body_model": body_path.name} | report_of(detections, track)
    write_clip(source, out, detections, track, report, body, body_path.name)
    return report


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.track", description=__doc__)
    parser.add_argument("source", type=Path, help="video or image of one person")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the clip, its track, mask, overlay and report"
    )
    parser.add_argument("--body", type=Path, default=DEFAULT_BODY, help="SMPL-X npz file (default: %(default)s)")
    parser.add_argument(
        "--landmarks",
        type=Path,
        default=DEFAULT_LANDMARKS,
        help="the body file's landmarks, made by python -m tools.track.correspond (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    try:
        report = track_file(given.source, given.out, given.body, given.landmarks)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in report.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    print(given.out / f"{given.source.stem}.track.npz")
    return 0


if __name__ == "__main__":
    sys.exit(main())
