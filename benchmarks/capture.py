"""The causal face tracker against the fitted track: `python -m visa.benchmarks.capture [--clips CLIP] [--json]`.

Each clip's frames go one by one through `visa.live.capture.FaceCapture` (extra `track`), as a camera would give them.
Its head, jaw and lids are compared with those of the track that `visa track` has fitted to the whole clip, both
relative to the first frames: degrees that the head's turn is off (median), and correlations of jaw and blinks, which do
not depend on how far each says that a mouth is open. Milliseconds a frame are from the picture to the signal.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from visa.benchmarks.command import add_clips, at_least_one, clip_paths, command_line, print_json, run, say
from visa.datamodules.clip import frame_rate, load_track
from visa.evaluation.table import format_table
from visa.live.capture import NEUTRAL_FRAMES, FaceCapture
from visa.live.signal import Signal
from visa.networks.body import BodyModel, BodyParams
from visa.networks.joints import HEAD
from visa.runtime.shipped import BODY
from visa.tools.track.read import read_frames

CLIPS = ("assets/clips/webcam_man.mp4",)
BLINKS = ("eyeBlinkLeft", "eyeBlinkRight")


def correlation(found: np.ndarray, right: np.ndarray) -> float:
    """Pearson's; 0 where one of them never moves."""
    return float(np.corrcoef(found, right)[0, 1]) if found.std() > 0 and right.std() > 0 else 0.0


def measure(body: BodyModel, path: Path, most: int) -> dict[str, float]:
    """All figures of one clip."""
    track = load_track(path.with_name(path.stem + ".track.npz"))
    rate, capture = frame_rate(track), FaceCapture(body)
    found: dict[int, Signal] = {}
    milliseconds, count = [], 0
    for number, frame in enumerate(islice(read_frames(path), most)):
        begin = time.perf_counter()
        signal = capture(frame, number / rate)
        milliseconds.append(1e3 * (time.perf_counter() - begin))
        count += 1
        if signal is not None and track["frame_valid"][number]:
            found[number] = signal
    capture.close()
    if len(found) <= NEUTRAL_FRAMES:
        raise ValueError(f"{path} shows a face in {len(found)} frames: give another clip")
    numbers, signals = np.asarray(list(found)), list(found.values())
    params = BodyParams.from_track(track, numbers)
    heads = Rotation.from_matrix(body.joint_transforms(params)[:, HEAD, :3, :3].numpy())
    right = heads[:NEUTRAL_FRAMES].mean().inv() * heads
    turns = Rotation.from_rotvec(torch.stack([signal.turn for signal in signals]).numpy())
    values = torch.stack([signal.values for signal in signals]).numpy()
    names, actions = capture.solver.shapes.names, params.expression.numpy()
    blinks = values[:, [names.index(name) for name in BLINKS]].mean(1)
    lids = actions[:, [body.expression_names.index(name) for name in BLINKS]].mean(1)
    return {
        "frames": count,
        "with_face": len(found),
        "ms": float(np.median(milliseconds)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "head_off_degrees": float(np.degrees(np.median((right.inv() * turns).magnitude()))),
        "head_moves_degrees": float(np.degrees(np.median(right.magnitude()))),
        "jaw_correlation": correlation(values[:, names.index("jawOpen")], params.jaw_pose[:, 0].numpy()),
        "blink_correlation": correlation(blinks, lids),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    add_clips(parser, CLIPS)
    parser.add_argument("--frames", type=at_least_one, default=250, help="of each clip (default: %(default)s)")
    given = parser.parse_args(arguments)
    body = BodyModel.from_file(BODY)
    rows = {path.stem: measure(body, path, given.frames) for path in clip_paths(given.clips)}
    columns = list(next(iter(rows.values())))
    means = {column: statistics.fmean(row[column] for row in rows.values()) for column in columns}
    say(format_table({**rows, "mean": means}, columns))
    print_json({"clips": len(rows), **means}, given.json)


if __name__ == "__main__":
    run(main)
