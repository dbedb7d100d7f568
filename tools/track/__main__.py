"""`python -m visa.tools.track FILE_OR_FOLDER... --out DIR`: fit the body model to a person, write the clip contract."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.photos import is_image
from visa.networks.body import BodyModel
from visa.runtime.shipped import WEIGHTS, load_reconstructor
from visa.tools.track.batch import find_sources, run_batch, share, table, track_in_process
from visa.tools.track.correspond import DEFAULT_BODY, DEFAULT_LANDMARKS, Landmarks
from visa.tools.track.detect import detect, keep_longest_shot, require_mediapipe
from visa.tools.track.fit import fit
from visa.tools.track.refine import refine_file
from visa.tools.track.report import report_of, silhouette_iou
from visa.tools.track.write import write_clip


def track_file(
    source: Path, out: Path, body_path: Path, landmarks_path: Path, weights: Path | None = None, person: int = 1
) -> dict[str, Any]:
    """Track one person of a video or image into `out`; returns the report. Nothing is left half-written.

    Args:
        source: video or image.
        out: folder of the clip.
        body_path, landmarks_path: the body model and its landmarks.
        weights: of the reconstruction; with them poses are refined by rendering the person's avatar
            (`tools.track.refine`).
        person: of several, 1 has the largest face.

    Raises:
        ValueError: bad input, in one line.
    """
    if not source.is_file():
        raise ValueError(f"{source}: no such file: give the path of a video or an image")
    require_mediapipe()
    body, landmarks = BodyModel.from_file(body_path), Landmarks.load(landmarks_path)
    # Before minutes are spent on tracking: the weights may be missing.
    is_refined = weights is not None and not is_image(source)
    reconstructor = load_reconstructor(str(body_path), str(weights)) if is_refined else None
    detections = keep_longest_shot(detect(source, person=person))
    try:
        track = fit(detections, body, landmarks, source=None if is_image(source) else source)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    report = {"source": source.name, "source_bytes": source.stat().st_size, "body_model": body_path.name}
    report |= report_of(detections, track) | {"num_people": detections.num_people}
    report["silhouette_iou"] = silhouette_iou(detections, track, body)
    paths = write_clip(source, out, detections, track, report, body, body_path.name)
    return report if reconstructor is None else report | refine_file(paths[0], reconstructor)


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 1 where no clip came out."""
    parser = argparse.ArgumentParser(prog="python -m visa.tools.track", description=__doc__)
    parser.add_argument("sources", type=Path, nargs="+", help="videos or images of one person each, or folders of them")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for each clip, its track, mask, overlay and report"
    )
    parser.add_argument("--body", type=Path, default=DEFAULT_BODY, help="SMPL-X npz file (default: %(default)s)")
    parser.add_argument(
        "--landmarks",
        type=Path,
        default=DEFAULT_LANDMARKS,
        help="the body file's landmarks, made by python -m visa.tools.track.correspond (default: %(default)s)",
    )
    parser.add_argument(
        "--refine", action="store_true", help="turn torso and arms until the person's own avatar fits the pictures"
    )
    parser.add_argument("--weights", type=Path, default=Path(WEIGHTS), help="of that avatar (default: %(default)s)")
    parser.add_argument(
        "--person", type=int, default=1, help="of several people: 1 has the largest face, 2 the next (default: 1)"
    )
    parser.add_argument("--workers", type=int, default=1, help="clips at a time (default: %(default)s)")
    parser.add_argument("--shard", default=None, help="I/N: track the I-th of N equal parts only, counted from 0")
    given = parser.parse_args(arguments)
    is_batch = len(given.sources) > 1 or given.sources[0].is_dir() or given.shard is not None
    return _track_many(given) if is_batch else _track_one(given)


def _track_one(given: argparse.Namespace) -> int:
    weights = given.weights if given.refine else None
    report = track_file(given.sources[0], given.out, given.body, given.landmarks, weights, given.person)
    for name, value in report.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    print(given.out / f"{given.sources[0].stem}.track.npz")
    return 0


def _track_many(given: argparse.Namespace) -> int:
    if given.workers < 1:
        raise ValueError(f"--workers {given.workers}: give at least 1")
    require_mediapipe()
    sources = find_sources(given.sources)
    sources = share(sources, given.shard) if given.shard else sources
    if not sources:
        print(f"shard {given.shard} is empty: there are fewer files than shards")
        return 0
    options = ["--body", str(given.body), "--landmarks", str(given.landmarks)]
    options += ["--person", str(given.person)]
    options += ["--refine", "--weights", str(given.weights)] if given.refine else []
    num_threads = max((os.cpu_count() or 1) // given.workers, 1)
    track_one = partial(track_in_process, out=given.out, options=options, num_threads=num_threads)
    result = run_batch(sources, given.out, track_one, given.workers, given.shard, given.refine)
    print(table(result))
    return int(result["num_failed"] == result["num_clips"])


if __name__ == "__main__":
    sys.exit(main())
