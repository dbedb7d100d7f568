"""What a run survives: `python -m visa.benchmarks.faults [--kills 2] [--stages teacher ...] [--json]`.

A tiny run of each stage (64 px, a window of three frames, four batches, a checkpoint after each) is killed (SIGKILL)
at random moments, and told to end (SIGTERM) at others, as is a `predict`. After each no visible file may be half a
file, and the run, gone on with, must end as the run that nothing happened to: weights, averages, optimizers and
schedules bit for bit. Then one stage meets a full disk, a folder that it may not write, checkpoints and weights that
are cut off or not its own: each must end in one line, nothing half-written, and nothing lost of what was whole before.

A full disk is a limit on the size of files (RLIMIT_FSIZE): the kernel refuses the rest of a write half-way, as it does
there. Runs are forks of this process, which saves them the time of loading. Linux and macOS.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open

from visa import cli as train
from visa.artifacts.checkpoints import CheckpointFile
from visa.artifacts.configs import read_config
from visa.benchmarks.command import Figure, at_least_one, command_line, print_json, run, say
from visa.benchmarks.tiny_clip import write_tiny_clip
from visa.lightning_modules.stage import Stage

STAGES = {
    "reconstruction": "configs/reconstruction.yaml",
    "teacher": "configs/teacher.yaml",
    "shader_ode": "configs/shader_ode.yaml",
    "shader": "configs/shader.yaml",
    "adversarial": "configs/adversarial.yaml",
}
PARTS = ("signals", "disk", "files")
NUM_STEPS = 4
NOBODY = 65534  # the user that root becomes where a folder may not be written
CODE_RUN = "code_was_run"  # a file that a checkpoint would make, could it run code
Prepare = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        code: exit status; minus the signal's number where one ended it.
        text: what it printed.
        seconds: from the start of its fit, or of itself, to its end.
    """

    code: int
    text: str
    seconds: float

    def is_one_line(self) -> bool:
        """Whether it ended with an error of one line."""
        errors = [line for line in self.text.splitlines() if line.startswith("error: ")]
        return self.code == 1 and len(errors) == 1 and "Traceback" not in self.text


@dataclass
class Tally:
    """How often each fault was injected and survived.

    Attributes:
        injected, survived: counts by fault.
    """

    injected: dict[str, int] = field(default_factory=dict)
    survived: dict[str, int] = field(default_factory=dict)

    def add(self, fault: str, wrong: Sequence[str]) -> None:
        """Count one; `wrong` is what was not as it must be."""
        self.injected[fault] = self.injected.get(fault, 0) + 1
        self.survived[fault] = self.survived.get(fault, 0) + (not wrong)
        for line in wrong:
            say(f"  {fault}: {line}")

    def table(self) -> str:
        """A row a fault."""
        width = max(map(len, self.injected))
        rows = [f"{'fault':{width}}  injected  survived"]
        rows += [f"{name:{width}}  {count:8d}  {self.survived[name]:8d}" for name, count in self.injected.items()]
        return "\n".join(rows)

    def figures(self) -> dict[str, Figure]:
        """The flat object."""
        pairs = [(name.replace(" ", "_").replace(",", ""), name) for name in self.injected]
        figures: dict[str, Figure] = {f"{key}_injected": self.injected[name] for key, name in pairs}
        return figures | {f"{key}_survived": self.survived[name] for key, name in pairs}


class Child:
    """A fork of this process that runs the command line.

    Args:
        arguments: of the command line.
        folder: of its runs.
        prepare: entered in the fork alone, before the command line.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, prepare: Prepare = contextlib.nullcontext) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.told, tell = os.pipe()
        self.printed, out = os.pipe()  # no file: a full disk would take the last line as well
        self.begin = time.perf_counter()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.told)
            os.close(self.printed)
            _run_in_fork(list(arguments), folder, out, tell, prepare)
        os.close(tell)
        os.close(out)

    def wait_for_fit(self) -> None:
        """Until its fit or its picture starts, or it has ended."""
        os.read(self.told, 1)
        self.begin = time.perf_counter()

    def wait(self) -> Ended:
        """Until it has ended."""
        text = b""
        while block := os.read(self.printed, 1 << 16):
            text += block
        _, status = os.waitpid(self.pid, 0)
        seconds = time.perf_counter() - self.begin
        os.close(self.told)
        os.close(self.printed)
        return Ended(os.waitstatus_to_exitcode(status), text.decode(errors="replace"), seconds)


def _run_in_fork(arguments: list[str], folder: Path, out: int, tell: int, prepare: Prepare) -> None:
    """Never returns."""

    class Telling(train.StageCLI):
        def before_fit(self) -> None:
            os.write(tell, b"f")
            super().before_fit()

        def before_predict(self) -> None:
            os.write(tell, b"p")
            super().before_predict()

    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        train.RUNS = folder
        with prepare():
            train.run(arguments, Telling)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
        if isinstance(ended.code, str):
            os.write(2, f"{ended.code}\n".encode())
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def arguments_of(stage: str, clip: Path) -> list[str]:
    """`fit` of a stage, as small as it gets."""
    schedule = [{"start": 0, "resolution": 64, "num_frames": 3, "batch_size": 1}]
    return [
        "fit", "-c", STAGES[stage], f"--data.clips={json.dumps([{'path': str(clip)}])}",
        f"--data.schedule={json.dumps(schedule)}", f"--data.num_steps={NUM_STEPS}", "--data.resolution=64",
        "--data.validation_windows=1", "--data.validation_frames=3", f"--trainer.val_check_interval={NUM_STEPS // 2}",
        "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--resume.every=1",
    ]  # fmt: skip


def half_files(folder: Path) -> list[str]:
    """Visible files of runs that are not whole; event files grow as they are written, and count as they are."""
    broken = []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            if path.suffix == ".ckpt":
                torch.load(path, weights_only=True)["optimizer_states"]
            elif path.suffix == ".safetensors":
                with safe_open(str(path), "pt") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no mapping)
            elif path.name.startswith("config"):
                read_config(path)["model"]
            elif path.suffix == ".mp4" and not path.stat().st_size:
                raise ValueError("empty")
        except Exception as error:  # whatever half a file makes of its reader
            broken.append(f"{path.name} is not whole ({type(error).__name__})")
    return broken


def first_difference(one: Any, other: Any) -> str | None:
    """Where two nested states are not equal, tensors bit for bit: keys with slashes between them; None if they are."""
    if isinstance(one, dict) and isinstance(other, dict):
        if odd := one.keys() ^ other.keys():
            return str(sorted(map(str, odd))[0])
        pairs = [(str(name), value, other[name]) for name, value in one.items()]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(str(number), value, other[number]) for number, value in enumerate(one)]
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return None if one.dtype == other.dtype and torch.equal(one, other) else "tensor"
    else:
        return None if bool(one == other) else f"{one} and {other}"
    found = ((name, first_difference(*values)) for name, *values in pairs)
    return next((f"{name}/{place}" for name, place in found if place is not None), None)


def differences(folder: Path, reference: Path) -> list[str]:
    """What differs between the end of the newest run in `folder` and of the one in `reference`."""
    pair = []
    for one in (reference, folder):
        run_folder = max(one.glob("*/version_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        if not (run_folder / "weights.safetensors").is_file():
            return [f"{run_folder} has no weights: its run did not end"]
        held = torch.load(run_folder / "checkpoints/last.ckpt", weights_only=True)
        with safe_open(str(run_folder / "weights.safetensors"), "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = ("step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks")
        pair.append({**{key: held[key] for key in kept}, "weights": weights})
    found = {key: first_difference(pair[0][key], pair[1][key]) for key in pair[0]}
    return [f"{key}/{place} is not that of the unbroken run"[:300] for key, place in found.items() if place is not None]


def go_on(arguments: list[str], folder: Path) -> Ended:
    """Resume the run in `folder`, or start it anew where it had no checkpoint yet."""
    found = list(folder.glob("*/version_*/checkpoints/last.ckpt"))
    return Child([*arguments, *(["--ckpt_path=last"] if found else [])], folder).wait()


def break_off(stage: str, clip: Path, folder: Path, how: signal.Signals, moments: list[float], tally: Tally) -> None:
    """Runs of a stage that a signal meets at `moments`, shares of the time that a fit takes."""
    arguments, fault = arguments_of(stage, clip), f"{how.name}, {stage}"
    whole = Child(arguments, folder / "whole")
    whole.wait_for_fit()
    reference = whole.wait()
    if reference.code != 0:
        raise ValueError(f"{stage}: a run that nothing was done to failed:\n{reference.text[-2000:]}")
    for number, moment in enumerate(moments):
        place = folder / str(number)
        child = Child(arguments, place)
        child.wait_for_fit()
        time.sleep(moment * reference.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, how)
        ended = child.wait()
        wrong = half_files(place)
        if how == signal.SIGTERM and ended.code != 0:
            wrong += [] if ended.code == train.TOLD_TO_END else [f"exit code {ended.code}: {ended.text[-500:]}"]
            is_saved = any(place.rglob("last.ckpt"))
            wrong += ["says nothing"] if is_saved and "told to end (SIGTERM)" not in ended.text else []
        resumed = go_on(arguments, place)
        wrong += [] if resumed.code == 0 else [f"does not go on: {resumed.text[-500:]}"]
        wrong += half_files(place) + (differences(place, folder / "whole") if resumed.code == 0 else [])
        tally.add(fault, wrong)


@contextlib.contextmanager
def full_disk(owner: type, method: str, limit: int, call: int = 1) -> Iterator[None]:
    """From the `call`-th call of a method on, files may be no larger than `limit` bytes."""
    own, count = getattr(owner, method), [0]

    def limited(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return own(*arguments, **options)

    with mock.patch.object(owner, method, limited):
        yield


def scratch_files(folder: Path) -> list[str]:
    """What a run that ended by itself has left beside its files."""
    return [f"leaves {path.name}" for path in folder.rglob(".*") if path.is_file()]


def fill_disk(stage: str, clip: Path, folder: Path, tally: Tally) -> None:
    """A disk that is full when checkpoint, weights or config are written; the runs end and go on as if it never was."""
    arguments = arguments_of(stage, clip)
    if Child(arguments, folder / "whole").wait().code != 0:
        raise ValueError(f"{stage}: a run that nothing was done to failed")
    places: dict[str, Prepare] = {
        "checkpoint": lambda: full_disk(CheckpointFile, "save_checkpoint", 100_000, call=3),
        "weights": lambda: full_disk(Stage, "export_weights", 100_000),
        "config": lambda: full_disk(train.SaveRunConfig, "setup", 1_000),
        "curves": lambda: full_disk(Stage, "on_train_batch_start", 64, call=2),
    }
    for name, prepare in places.items():
        place = folder / name
        ended = Child(arguments, place, prepare).wait()
        wrong = half_files(place) + scratch_files(place)
        wrong += [] if ended.is_one_line() else [f"exit code {ended.code}: {ended.text[-700:]}"]
        wrong += ["weights of a run that did not end"] if any(place.rglob("weights.safetensors")) else []
        wrong += ["the checkpoint before is gone"] if name == "checkpoint" and not any(place.rglob("*.ckpt")) else []
        resumed = go_on(arguments, place)
        wrong += [] if resumed.code == 0 else [f"does not go on: {resumed.text[-500:]}"]
        wrong += half_files(place) + (differences(place, folder / "whole") if resumed.code == 0 else [])
        tally.add(f"full disk, {name}", wrong)


def predict_arguments(clip: Path, out: Path) -> list[str]:
    """`predict` of four pictures, as small as it gets."""
    return [
        "predict", "-c", "configs/shader.yaml", "--image=assets/photos/astronaut.png", "--weights=shipped",
        f"--driving={clip.with_suffix('.track.npz')}", f"--out={out}", "--data.resolution=64",
        "--data.predict.num_frames=4", "--model.init_args.fit.steps=1", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip


def end_predict(clip: Path, folder: Path, moments: list[float], tally: Tally) -> None:
    """A `predict` that SIGTERM meets at `moments`, shares of the time that one takes: it ends, and leaves no half."""
    whole = Child(predict_arguments(clip, folder / "whole.mp4"), folder / "runs")
    whole.wait_for_fit()
    reference = whole.wait()
    if reference.code != 0:
        raise ValueError(f"a predict that nothing was done to failed:\n{reference.text[-2000:]}")
    for number, moment in enumerate(moments):
        place = folder / str(number)
        child = Child(predict_arguments(clip, place / "out.mp4"), place)
        child.wait_for_fit()
        time.sleep(moment * reference.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
        ended = child.wait()
        wrong = half_files(place) + scratch_files(place)
        if ended.code != 0:
            wrong += [] if ended.code == train.TOLD_TO_END else [f"exit code {ended.code}: {ended.text[-500:]}"]
            wrong += ["out.mp4 is there"] if (place / "out.mp4").exists() else []
        tally.add("SIGTERM, predict", wrong)


def fill_disk_of_predict(clip: Path, folder: Path, tally: Tally) -> None:
    """A disk that is full while the mp4 is written."""
    arguments = predict_arguments(clip, folder / "out.mp4")
    from visa.lightning_modules.student import StudentStage

    ended = Child(arguments, folder, lambda: full_disk(StudentStage, "predict_step", 3_000)).wait()
    wrong = half_files(folder) + scratch_files(folder)
    wrong += [] if ended.is_one_line() else [f"exit code {ended.code}: {ended.text[-700:]}"]
    wrong += ["out.mp4 is there"] if (folder / "out.mp4").exists() else []
    tally.add("full disk, mp4", wrong)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere: it becomes a user who may not."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    yield


def forbid_folder(stage: str, clip: Path, folder: Path, tally: Tally) -> None:
    """A folder of runs that may be read and not written."""
    place = folder / "runs"
    place.mkdir(parents=True)
    place.chmod(0o555)
    ended = Child(arguments_of(stage, clip), place, as_nobody).wait()
    place.chmod(0o755)
    wrong = [] if ended.is_one_line() else [f"exit code {ended.code}: {ended.text[-700:]}"]
    wrong += [f"{path.name} is there" for path in place.iterdir()]
    tally.add("read-only folder", wrong)


class _Code:
    """Pickled, it runs a command where it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def hand_wrong_files(stage: str, other: str, clip: Path, folder: Path, rng: random.Random, tally: Tally) -> None:
    """Checkpoints and weights that are cut off, of another stage, or something else."""
    runs = folder / "runs"
    for one in (stage, other):
        if Child(arguments_of(one, clip), runs).wait().code != 0:
            raise ValueError(f"{one}: a run that nothing was done to failed")
    files = {one: next((runs / one).glob("version_*")) for one in (stage, other)}
    whole = (files[stage] / "checkpoints/last.ckpt").read_bytes()
    wrong_files = folder / "files"
    wrong_files.mkdir()
    cuts = [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(2))]
    for number, cut in enumerate(cuts):
        (wrong_files / f"cut{number}.ckpt").write_bytes(whole[:cut])
    (wrong_files / "foreign0.ckpt").write_bytes((files[other] / "checkpoints/last.ckpt").read_bytes())
    torch.save({"weight": torch.zeros(3)}, wrong_files / "foreign1.ckpt")
    torch.save(_Code(wrong_files / CODE_RUN), wrong_files / "foreign2.ckpt")
    (wrong_files / "foreign3.ckpt").write_bytes(pickle.dumps(_Code(wrong_files / CODE_RUN)))
    for path in sorted(wrong_files.glob("*.ckpt")):
        ended = Child([*arguments_of(stage, clip), f"--ckpt_path={path}"], folder / "out").wait()
        wrong = [] if ended.is_one_line() and str(path) in ended.text else [f"{path.name}: {ended.text[-700:]}"]
        wrong += ["code was run"] if (wrong_files / CODE_RUN).exists() else []
        tally.add("checkpoint cut off" if path.name.startswith("cut") else "checkpoint of something else", wrong)
    weights = (files[stage] / "weights.safetensors").read_bytes()
    for number, cut in enumerate((0, 7, len(weights) - 1, rng.randrange(len(weights)))):
        (wrong_files / f"cut{number}.safetensors").write_bytes(weights[:cut])
    (wrong_files / "foreign.safetensors").write_bytes((files[other] / "weights.safetensors").read_bytes())
    for path in sorted(wrong_files.glob("*.safetensors")):
        options = [word for word in arguments_of(stage, clip)[1:] if not word.startswith("--resume")]
        ended = Child(["validate", *options, f"--weights={path}"], folder / "out").wait()
        wrong = [] if ended.is_one_line() and str(path) in ended.text else [f"{path.name}: {ended.text[-700:]}"]
        tally.add("weights cut off" if path.name.startswith("cut") else "weights of something else", wrong)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--kills", type=at_least_one, default=2, help="SIGKILLs of each stage (default: %(default)s)")
    parser.add_argument("--terms", type=at_least_one, default=1, help="SIGTERMs of each stage (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="by default all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="by default all parts")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a fork has no other threads than the one that forked
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    tally, rng = Tally(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        clip = write_tiny_clip(folder / "clip")
        if "signals" in given.only:
            for how, count in ((signal.SIGKILL, given.kills), (signal.SIGTERM, given.terms)):
                for stage in given.stages:
                    say(f"{how.name}, {stage}: {count} runs")
                    moments = [rng.random() for _ in range(count)]
                    break_off(stage, clip, folder / how.name / stage, how, moments, tally)
            say(f"SIGTERM, predict: {given.terms} runs")
            end_predict(clip, folder / "ended", [rng.random() for _ in range(given.terms)], tally)
        stage, other = given.stages[0], "teacher" if given.stages[0] != "teacher" else "reconstruction"
        if "disk" in given.only:
            fill_disk(stage, clip, folder / "disk", tally)
            fill_disk_of_predict(clip, folder / "predict", tally)
            forbid_folder(stage, clip, folder / "forbidden", tally)
        if "files" in given.only:
            hand_wrong_files(stage, other, clip, folder / "wrong", rng, tally)
    say(tally.table())
    print_json(tally.figures(), given.json)
    if tally.injected != tally.survived:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
