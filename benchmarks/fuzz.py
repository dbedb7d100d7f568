"""Broken and hostile files: `python -m visa.benchmarks.fuzz --cases 1000 [--kinds track photo ...] [--json]`.

Each case is a file of `benchmarks.mutations`, opened as the programs open it. It must be read, or end in one ValueError
or OSError of one line that names the file. What counts as a fault: any other exception, a line that does not name it, a
process that dies, more than `--seconds` of work, more than 2 GB of memory, code that is run (a pickle's class looked
up, a program started). Cases run in forks of this process; a case is told by its number and the seed. Linux.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visa.artifacts.checkpoints import check_checkpoint
from visa.artifacts.configs import read_config
from visa.artifacts.files import shipped
from visa.artifacts.photos import read_grey, read_photo
from visa.artifacts.weights import load_weights, save_weights
from visa.benchmarks import mutations as broken
from visa.benchmarks.command import Figure, at_least_one, command_line, print_json, run, say
from visa.datamodules.clip import Splits, frame_rate, load_track
from visa.datamodules.decode import stream_frames, video_info
from visa.networks.body import BodyModel, BodyParams
from visa.runtime.avatar_files import load_avatar
from visa.runtime.shipped import BODY
from visa.runtime.splat_files import read_splat

MOST_MEMORY = 2 << 30  # bytes that a process may take beside what it has as it starts
PER_PROCESS = 2000  # cases
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "ctypes.dlopen")
SPLITS = b"test: [[1, 2]]\nvalidation: [[0, 0]]\ngap: 1\nreference: 2\ntrain: true\nperson: anna\n"
CONFIG = b"base: [self.txt]\nmodel:\n  class_path: visa.x\n  init_args: {a: 1.0e-3, b: [1, 2]}\ndata:\n  num_steps: 3\n"


@dataclass
class Kind:
    """A kind of file.

    Attributes:
        suffixes: names that it may have.
        make: bytes of a case.
        open: reads it as the programs do.
    """

    suffixes: tuple[str, ...]
    make: Callable[[random.Random], bytes]
    open: Callable[[Path], object]


class Small(nn.Module):
    """What weights files and checkpoints are read into."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(2, 3)


def open_track(path: Path) -> None:
    """Track and motion, as a driver's."""
    track = load_track(path)
    frame_rate(track)
    BodyParams.from_track(track, np.flatnonzero(track["frame_valid"]))


def open_splits(path: Path) -> None:
    """Splits, and the frames that they leave."""
    Splits.read(path, 40).free_mask(40)


def open_video(path: Path) -> None:
    """Index and frames."""
    video_info(path)
    for _ in stream_frames(path, gray=False):
        pass


def make_track(rng: random.Random) -> bytes:
    """A track that is changed in its fields, its entries or its bytes."""
    arrays = broken.track_arrays(np.random.default_rng(rng.getrandbits(32)))
    draw = rng.random()
    if draw < 0.5:
        return broken.npz(broken.change_arrays(arrays, rng))
    return broken.lying_npz(arrays, rng) if draw < 0.6 else broken.change_bytes(broken.npz(arrays), rng)


def kinds_of_files(folder: Path) -> dict[str, Kind]:
    """Every kind, its whole files made in `folder`."""
    body, photos, small = BodyModel.from_file(shipped(BODY)), broken.pictures(), Small()
    weights = save_weights(folder / "whole.safetensors", small.state_dict(), {}).read_bytes()
    avatar, checkpoint = broken.avatar_bytes(body), broken.checkpoint_bytes()
    ply, spz, video = broken.splat_bytes(folder, ".ply"), broken.splat_bytes(folder, ".spz"), broken.video_bytes(folder)
    (folder / "self.txt").write_text("data: {num_steps: 4}\n")
    header, text, plain = broken.change_header, broken.change_text, broken.change_bytes
    state = small.state_dict()

    def of(*wholes: bytes, says: Callable[[bytes, random.Random], bytes] = plain) -> Callable[[random.Random], bytes]:
        return lambda rng: broken.changed(wholes, says, rng)

    return {
        "track": Kind((".track.npz",), make_track, open_track),
        "photo": Kind((".png", ".jpg", ".tif", ".webp"), of(*photos), read_photo),
        "mask": Kind((".png",), of(*photos), read_grey),
        "weights": Kind((".safetensors",), of(weights, says=header), lambda path: load_weights(small, path, "train")),
        "avatar": Kind((".safetensors",), of(avatar, says=header), lambda path: load_avatar(path, body)),
        "ply": Kind((".ply",), of(ply), read_splat),
        "spz": Kind((".spz",), of(spz), read_splat),
        "splits": Kind((".splits.yaml",), of(SPLITS, says=text), open_splits),
        "config": Kind((".yaml",), of(CONFIG, says=text), read_config),
        "checkpoint": Kind((".ckpt",), of(checkpoint), lambda path: check_checkpoint(path, state, ())),
        "video": Kind((".mp4",), of(video), open_video),
    }


def fault_of(kind: Kind, path: Path) -> str | None:
    """Open a case; what is wrong with how it ended, in one line, or None."""
    try:
        kind.open(path)
    except (ValueError, OSError) as error:
        if "\n" in str(error):
            return f"{type(error).__name__} of several lines: {str(error).splitlines()[0][:100]}"
        if path.name not in str(error):
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} without the file's name, {Path(where.filename).name}: {str(error)[:100]}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return f"{type(error).__name__} in {place}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return None


def cases_in_fork(kind: Kind, name: str, numbers: range, seed: int, folder: Path, tell: int) -> None:
    """Run cases, and tell of each before and after; never returns."""
    faulthandler.disable()  # a death is told by the process that waits
    torch.set_num_threads(1)  # a fork has no other threads than the one that forked, and would wait for them
    ran: list[str] = []
    watched = [False]

    def listen(event: str, given: tuple[Any, ...]) -> None:  # noqa: ARG001
        if watched[0] and event in RUNS_CODE:
            ran.append(event)

    sys.addaudithook(listen)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, resource.RLIM_INFINITY))
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        path = folder / f"case{rng.choice(kind.suffixes)}"
        os.write(tell, f"{number}\t\n".encode())
        path.write_bytes(kind.make(rng))
        ran.clear()
        watched[0] = True
        fault = fault_of(kind, path)
        watched[0] = False
        fault = f"runs code: {ran[0]}" if ran else fault
        if fault:
            os.write(tell, f"{number}\t{fault}\n".encode(errors="replace"))
        path.unlink()
    os._exit(0)


def run_cases(kind: Kind, name: str, numbers: range, seed: int, seconds: float, folder: Path) -> dict[int, str]:
    """Faults of a kind by case; a fork that dies or hangs costs its case, and another goes on behind it."""
    faults: dict[int, str] = {}
    first = numbers.start
    while first < numbers.stop:
        last = min(first + PER_PROCESS, numbers.stop)
        hear, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                cases_in_fork(kind, name, range(first, last), seed, folder, tell)
            os._exit(1)
        os.close(tell)
        at, is_late = follow(hear, first, seconds, faults)
        os.close(hear)
        if is_late:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if is_late:
            faults[at] = f"still at work after {seconds:g} s"
        elif code != 0:
            faults[at] = f"the process died ({signal.Signals(-code).name if code < 0 else code})"
        first = at + 1 if code != 0 else last
    return faults


def follow(hear: int, first: int, seconds: float, faults: dict[int, str]) -> tuple[int, bool]:
    """Read what a fork tells until it ends or is silent for too long; its last case, and whether it was late."""
    at, rest = first, b""
    while True:
        ready, _, _ = select.select([hear], [], [], seconds)
        if not ready:
            return at, True
        block = os.read(hear, 1 << 16)
        if not block:
            return at, False
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number, _, fault = line.decode(errors="replace").partition("\t")
            at = int(number)
            if fault:
                faults[at] = fault


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--cases", type=at_least_one, default=1000, help="of each kind (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="that a case may take (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=None, help="of files; by default all")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    figures: dict[str, Figure] = {"cases": 0, "faults": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = kinds_of_files(folder)
        if unknown := sorted(set(given.kinds or ()) - set(kinds)):
            raise ValueError(f"--kinds: no kind '{unknown[0]}'; choose from {', '.join(kinds)}")
        say(f"{'kind':12} {'cases':>9} {'faults':>7} {'cases/s':>8}")
        for key in given.kinds or kinds:
            begin = time.perf_counter()
            numbers = range(given.first, given.first + given.cases)
            faults = run_cases(kinds[key], key, numbers, given.seed, given.seconds, folder)
            speed = given.cases / (time.perf_counter() - begin)
            say(f"{key:12} {given.cases:9d} {len(faults):7d} {speed:8.0f}")
            for fault, count in Counter(faults.values()).most_common(12):
                example = next(number for number, one in faults.items() if one == fault)
                say(f"    {count} x {fault} (case {example})")
            figures |= {f"cases_{key}": given.cases, f"faults_{key}": len(faults)}
            figures["cases"] = int(figures["cases"] or 0) + given.cases
            figures["faults"] = int(figures["faults"] or 0) + len(faults)
    print_json(figures, given.json)
    if figures["faults"]:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
