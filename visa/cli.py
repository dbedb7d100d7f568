"""Command line of every stage: `python train.py fit|validate|test|predict -c configs/STAGE.yaml`."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, get_args

import lightning
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from visa.artifacts.checkpoints import check_checkpoint
from visa.artifacts.configs import read_config
from visa.artifacts.files import shipped
from visa.artifacts.provenance import peak_memory_mb
from visa.callbacks.ema import ExponentialMovingAverage
from visa.callbacks.resume import ResumeCheckpoint
from visa.callbacks.weights import SaveWeights
from visa.datamodules.own_pose import HEAD_HELP, Head
from visa.datamodules.video import VideoDataModule
from visa.lightning_modules.stage import Stage
from visa.tools.track.face_points import face_points
from visa.tools.track.on_demand import tracked

RUNS = Path(os.environ.get("VISA_RUNS", "runs"))
SUBCOMMANDS = ("fit", "validate", "test", "predict")
DEFAULT_CONFIG = "configs/shader.yaml"
TEST_FRAMES = 16  # of each block, that `test` reads by itself: a third of the shipped ones
# Options that list rows of `test`, and the rows that take longest.
FULL_ROWS = {"teacher_test_steps": [50], "test_photos": [1, 4, 16]}
TOLD_TO_END = 128 + 15  # the exit code of a process that ended by SIGTERM


class ComposedConfigFile(ActionConfigFile):
    """A config file that may stand on others, which it names under `base`."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Merge the file over its bases, then as any other file over what was given before it."""
        value = str(shipped(value))  # from any folder: `-c configs/shader.yaml` is the package's own
        if Path(value).is_file():
            value = yaml.safe_dump(read_config(value), sort_keys=False)
        ActionConfigFile.apply_config(parser, cfg, dest, value)


class StageCLI(LightningCLI):
    """LightningCLI with a run folder for each launch and weights chosen as the docs say."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Lightning's, with configs that stand on others."""
        kwargs.setdefault("dump_header", [f"lightning.pytorch=={lightning.__version__}"])
        parser = LightningArgumentParser(**kwargs)
        parser.add_argument("-c", "--config", action=ComposedConfigFile, help="Path to a configuration file in yaml.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What every run does under keys of its own; values that data, model and these share are given once."""
        parser.add_lightning_class_args(ExponentialMovingAverage, "average")
        parser.add_lightning_class_args(ResumeCheckpoint, "resume")
        parser.add_lightning_class_args(SaveWeights, "export")
        parser.link_arguments("model", "average.module", compute_fn=_exported)
        parser.link_arguments("data.num_steps", "model.init_args.num_steps")
        parser.link_arguments("data.body_model", "model.init_args.body_model")
        parser.link_arguments("data.seed", "model.init_args.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: object) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.add_argument(
                "--weights",
                default=None,
                help="`shipped` or a file; by default the newest complete fit run's, else the shipped",
            )
        if "weights_only" in parser.get_defaults():
            parser.set_defaults({"weights_only": True})  # a checkpoint is data: nothing in it may run
        if subcommand == "test":
            parser.add_argument("--quick", action="store_true", help="every 4th frame of the whole test blocks")
            parser.add_argument(
                "--full",
                action="store_true",
                help="every frame of the test blocks, and the rows that take longest; without this and --quick the "
                f"middle {TEST_FRAMES} frames of each block",
            )
        if subcommand == "predict":
            parser.add_argument(
                "--image", type=str, nargs="+", required=True, help="photo or photos of the person, or a clip"
            )
            parser.add_argument("--photos", type=int, default=None, help="frames of the clip to take as photos (8)")
            parser.add_argument(
                "--driving", required=True, help="motion: a .track.npz, or a video, which is tracked first"
            )
            parser.add_argument("--out", default="out.mp4", help="video to write")
            parser.add_argument("--size", type=int, default=None, help="side of its pictures in px (512)")
            parser.add_argument("--head", choices=get_args(Head), default="photo", help=HEAD_HELP)
        return parser

    def _parse_ckpt_path(self) -> None:
        """No options are taken from a checkpoint: a run's config says all."""

    def before_instantiate_classes(self) -> None:
        """Hand the flags on to data and model."""
        config = self.config[self.subcommand]
        if "subcommand" in config.model.init_args:
            config.model.init_args.subcommand = self.subcommand
        if self.subcommand == "test":
            self._choose_test_frames(config)
        if self.subcommand == "predict":
            config.data.predict.image, config.data.predict.driving = config.image, config.driving
            config.data.predict.photos, config.data.predict.size = config.photos, config.size
            config.data.predict.head = config.head
            if "out" not in config.model.init_args:
                raise ValueError(
                    f"{config.model.class_path} paints no video: "
                    "predict with -c configs/shader.yaml or configs/adversarial.yaml"
                )
            config.model.init_args.out = config.out

    @staticmethod
    def _choose_test_frames(config: Namespace) -> None:
        """What `test` reads and shows by itself, with `--quick` and with `--full`."""
        if config.quick and config.full:
            raise ValueError("--quick and --full exclude each other: give one")
        if config.quick:
            config.data.test_stride = 4
        elif not config.full and config.data.test_frames is None and config.data.test_stride == 1:
            config.data.test_frames = TEST_FRAMES
        for name, more in FULL_ROWS.items():
            given = config.model.init_args.get(name)
            if config.full and given is not None:
                config.model.init_args[name] = [*given, *(value for value in more if value not in given)]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A run folder: `runs/STAGE/version_N`; a resumed fit goes on in the folder of the run that was cut off."""
        config = self.config[self.subcommand]
        name, version = self.model.stage, None
        if config.get("ckpt_path") is not None:
            path, is_fit = self._checkpoint(config.ckpt_path), self.subcommand == "fit"
            check_checkpoint(path, self.model.state_dict(), self.model.frozen, is_whole=is_fit)
            self.config_init[self.subcommand]["ckpt_path"] = str(path)
            if is_fit and path.resolve().is_relative_to((RUNS / name).resolve()):
                version = path.parent.parent.name
        if self.subcommand != "fit":
            name = f"{self.subcommand}/{name}"
        kwargs["logger"] = TensorBoardLogger(str(RUNS), name=name, version=version, default_hp_metric=False)
        return super().instantiate_trainer(**kwargs)

    def _checkpoint(self, given: str) -> Path:
        if given != "last":
            path = Path(given)
        else:
            found = sorted((RUNS / self.model.stage).glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
            path = found[-1] if found else RUNS / self.model.stage / "version_0/checkpoints/last.ckpt"
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}: start the run without --ckpt_path")
        return path

    def _run_subcommand(self, subcommand: str) -> None:
        """Run. SIGTERM ends at once what has no batch to wait for; Lightning by itself would bypass it there."""
        if subcommand == "fit" or threading.current_thread() is not threading.main_thread():
            super()._run_subcommand(subcommand)
            return
        before = signal.signal(signal.SIGTERM, _end)
        try:
            super()._run_subcommand(subcommand)
        finally:
            signal.signal(signal.SIGTERM, before)

    def before_fit(self) -> None:
        """Say where results go."""
        self.trainer.print(f"run folder: {self.trainer.log_dir}")

    def after_fit(self) -> None:
        """Say where results are."""
        folder = self.trainer.log_dir
        self.trainer.print(f"peak memory: {peak_memory_mb() / 1000:.1f} GB")
        self.trainer.print(f"weights: {folder}/weights.safetensors\npictures and curves: tensorboard --logdir {RUNS}")

    def _load(self) -> None:
        config = self.config[self.subcommand]
        stage = self.model
        assert isinstance(stage, Stage)
        stage.load_exported(config.weights, RUNS)

    before_validate = _load

    def before_test(self) -> None:
        """Load, and hand over the tracker's detector where its extra is installed."""
        self._load()
        if importlib.util.find_spec("mediapipe") is not None:
            self.model.face_points = face_points

    def before_predict(self) -> None:
        """Load, and track what has no track."""
        self._load()
        data = self.datamodule
        assert isinstance(data, VideoDataModule)
        given = data.predict_input
        given.image = [str(tracked(image, data.body_model, "--image")) for image in given.image or []]
        given.driving = str(tracked(given.driving or "", data.body_model, "--driving"))

    def after_test(self) -> None:
        """The table, and the path of metrics.json as the last line."""
        self.model.report.write(weights=self.model.loaded)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 (a handler's signature)
    """End by an exception, so that half-written files are removed on the way."""
    sys.exit(TOLD_TO_END)


def _exported(model: Namespace) -> str:
    """The network of a stage that is averaged and whose weights are its result."""
    return pkgutil.resolve_name(model.class_path).network


def with_default_config(arguments: list[str]) -> list[str]:
    """Without `-c`, the shader's config (a default file would be merged under every other one)."""
    has_config = any(a in ("-c", "--config", "-h", "--help") or a.startswith("--config=") for a in arguments)
    if arguments and arguments[0] in SUBCOMMANDS and not has_config:
        return [arguments[0], "-c", DEFAULT_CONFIG, *arguments[1:]]
    return arguments


def main(arguments: list[str] | None = None, cli: type[StageCLI] = StageCLI) -> StageCLI:
    """Parse and run.

    Args:
        arguments: instead of the process's own.
        cli: `BuildOnly` instantiates without running, for tests.
    """
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # The sampler itself goes on where the checkpoint ended.
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.filterwarnings("ignore", message=".*predict returned None.*")  # it writes a video
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings(
        "ignore", message=".*in eval mode at the start of training.*"
    )  # the fixed perceptual network
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
    try:
        return _run(cli, with_default_config(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        raise _first_line_cause(error) from None


def _run(cli: type[StageCLI], arguments: list[str]) -> StageCLI:
    return cli(
        Stage,
        VideoDataModule,
        subclass_mode_model=True,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        # The sampler knows rank and world size itself; Lightning's would share its steps out among the ranks.
        trainer_defaults={"use_distributed_sampler": False},
        args=arguments,
    )


def _first_line_cause(error: BaseException) -> BaseException:
    """The constructor's own one-line error: the parser folds it into a page about every type it tried."""
    cause: BaseException | None = error
    while cause is not None and "\n" in str(cause):
        cause = cause.__cause__ or cause.__context__
    return error if cause is None else cause


class BuildOnly(StageCLI):
    """Instantiates without running."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class SaveRunConfig(SaveConfigCallback):
    """`config.yaml` is the record of a fit and of a test; validation and predict write none.

    A resumed run keeps the record of its start: its own is `config_2.yaml`, the next one's `config_3.yaml`.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the config of what leaves something to look at, whole or not at all."""
        if stage not in ("fit", "test"):
            return
        folder = Path(trainer.log_dir or ".")
        written, name = len(list(folder.glob("config*.yaml"))), "config.yaml"
        if written and self.config.get("ckpt_path") is not None:
            name = f"config_{written + 1}.yaml"
        self.config_filename = f".{name}"
        try:
            super().setup(trainer, pl_module, stage)
            if trainer.is_global_zero and (folder / self.config_filename).is_file():
                (folder / self.config_filename).replace(folder / name)
        finally:
            if trainer.is_global_zero:
                (folder / self.config_filename).unlink(missing_ok=True)


def leave_process_group() -> None:
    """Let Gloo's threads end before the interpreter does.

    Lightning destroys the group at exit for NCCL alone. A Gloo thread that then still waits for the interpreter, to
    drop the tensors of the last broadcast, aborts a process whose work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _leave_to_main_thread(ended: threading.ExceptHookArgs) -> None:
    """What a thread says of its end: nothing of a disk that took no more curves, which their writer hands on."""
    if ended.exc_type is None or not issubclass(ended.exc_type, OSError):
        threading.__excepthook__(ended)


def run(arguments: list[str] | None = None, cli: type[StageCLI] = StageCLI) -> None:
    """The process: errors of input and disk end in one line, VISA_TRACEBACK=1 shows where they come from."""
    if not os.environ.get("VISA_TRACEBACK"):
        threading.excepthook = _leave_to_main_thread
    try:
        main(arguments, cli)
        leave_process_group()
    except SIGTERMException:
        sys.exit(TOLD_TO_END)
    except (OSError, ValueError) as error:
        if os.environ.get("VISA_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
