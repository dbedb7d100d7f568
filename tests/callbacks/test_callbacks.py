"""Callbacks inside real, tiny Lightning runs on the CPU."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from visa.artifacts.tensorboard import encode_gif, log_image, log_video
from visa.callbacks.ema import ExponentialMovingAverage
from visa.callbacks.gradient_norm import GradientNorm
from visa.callbacks.resume import ResumeCheckpoint
from visa.callbacks.throughput import Throughput
from visa.callbacks.weights import SaveWeights


class Clips(Dataset[dict[str, Tensor]]):
    """Clip k is the same whenever it is asked for: a resumed run sees what the whole run saw."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"frames": torch.randn(3, 4, generator=torch.Generator().manual_seed(index))}


class Toy(LightningModule):
    """A student beside a frozen teacher; automatic optimization."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(4, 4)
        self.student.bias.requires_grad_(False)
        self.teacher = nn.Linear(4, 4).requires_grad_(False)
        self.validated: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        x = batch["frames"]
        l1 = (self.student(x) - self.teacher(x)).abs().mean()
        extra = l1 * 0.0
        self.log("train/l1", l1)
        self.log("train/extra", extra)
        return l1 + extra

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        self.validated.append(self.student.weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.student.parameters(), lr=0.1)

    def export_weights(self, path: Path, metadata: dict[str, str]) -> None:
        save_file(self.student.state_dict(), path, metadata=metadata)


class TwoPlayers(LightningModule):
    """Manual optimization: the critic steps at every batch, the student at every third, or as `every` says."""

    def __init__(self, every: int = 3) -> None:
        super().__init__()
        self.every = every
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.student, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)
        self.student_updates = 0
        self.history: list[Tensor] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        names = ["critic", "student"] if (batch_idx + 1) % self.every == 0 else ["critic"]
        for name in names:
            optimizer = self.optimizers()[["student", "critic"].index(name)]
            optimizer.zero_grad()
            loss = self.critic(self.student(batch["frames"])).square().mean()
            self.log(f"loss/{name}", loss)
            self.manual_backward(loss)
            optimizer.step()
        if "student" in names:
            self.student_updates += 1
            self.history.append(self.student.weight.detach().clone())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.student, self.critic)]


def _loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Clips(), batch_size=2)


def _trainer(folder: Path, callbacks: list[Callback], **options: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "max_steps": 6, "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, "limit_val_batches": 1,
    }  # fmt: skip
    return Trainer(callbacks=callbacks, **(defaults | options))


class Recorder(Callback):
    """Keeps the student's weights after each batch."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        self.weights.append(pl_module.student.weight.detach().clone())


def _average_by_hand(start: Tensor, weights: list[Tensor], decay: float) -> Tensor:
    average = start.double()
    for n, weight in enumerate(weights):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * weight.double()
    return average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_is_the_recursion_over_optimizer_steps(tmp_path: Path, accumulate: int) -> None:
    module, recorder = Toy(), Recorder()
    start = module.student.weight.detach().clone()
    ema = ExponentialMovingAverage("student", decay=0.3)
    trainer = _trainer(tmp_path, [recorder, ema], accumulate_grad_batches=accumulate, limit_val_batches=0)
    trainer.fit(module, _loader())
    expected = _average_by_hand(start, recorder.weights[accumulate - 1 :: accumulate], 0.3)
    assert ema.num_updates == 6
    assert set(ema.average) == {"weight"}  # neither the frozen bias nor the teacher
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_average_counts_the_students_updates_only(tmp_path: Path) -> None:
    module = TwoPlayers()
    start = module.student.weight.detach().clone()
    ema = ExponentialMovingAverage("student", decay=0.9, counter="student_updates")
    trainer = _trainer(tmp_path, [ema], max_steps=-1, limit_train_batches=9, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, _loader())
    assert trainer.global_step == 12  # both players' steps
    assert ema.num_updates == module.student_updates == 3
    torch.testing.assert_close(
        ema.average["weight"].double(), _average_by_hand(start, module.history, 0.9), rtol=1e-5, atol=1e-6
    )


def test_validation_sees_the_average_and_checkpoints_the_live_weights(tmp_path: Path) -> None:
    module, recorder = Toy(), Recorder()
    ema = ExponentialMovingAverage("student", decay=0.9)
    checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=3, enable_version_counter=False)
    trainer = _trainer(
        tmp_path, [checkpoint, recorder, ema], val_check_interval=3, enable_checkpointing=True, num_sanity_val_steps=1
    )
    trainer.fit(module, _loader(), _loader())
    seen = module.validated[-1]
    torch.testing.assert_close(seen, ema.average["weight"])
    assert not torch.equal(seen, recorder.weights[-1])
    assert torch.equal(module.student.weight, recorder.weights[-1])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["student.weight"], recorder.weights[-1])
    assert torch.equal(saved["callbacks"][ema.state_key]["average"]["weight"], ema.average["weight"])


def test_resume_is_bit_equal(tmp_path: Path) -> None:
    whole = ExponentialMovingAverage("student", decay=0.9)
    reference = Toy()
    _trainer(tmp_path, [whole], max_steps=8, limit_val_batches=0).fit(reference, _loader())

    first = ExponentialMovingAverage("student", decay=0.9)
    trainer = _trainer(tmp_path, [first], max_steps=4, limit_train_batches=4, max_epochs=1, limit_val_batches=0)
    trainer.fit(Toy(), _loader())
    trainer.save_checkpoint(tmp_path / "half.ckpt")

    class Rest(Dataset[dict[str, Tensor]]):
        def __len__(self) -> int:
            return 56

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return Clips()[index + 8]

    second, module = ExponentialMovingAverage("student", decay=0.9), Toy()
    trainer = _trainer(tmp_path, [second], max_steps=8, limit_val_batches=0)
    trainer.fit(module, DataLoader(Rest(), batch_size=2), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert second.num_updates == 8
    assert torch.equal(module.student.weight, reference.student.weight)
    assert torch.equal(second.average["weight"], whole.average["weight"])


def test_average_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="decay of the moving average"):
        ExponentialMovingAverage("student", decay=1.0)
    ema, module = ExponentialMovingAverage("generator"), Toy()
    with pytest.raises(ValueError, match="Toy has no submodule 'generator'"):
        ema.on_train_start(Trainer(logger=False), module)
    ema = ExponentialMovingAverage("student", counter="num_updates")
    with pytest.raises(ValueError, match="no update counter 'num_updates'"):
        ema.on_train_start(Trainer(logger=False), module)
    ema = ExponentialMovingAverage("student")
    ema.load_state_dict({"num_updates": 1, "average": {"other": torch.zeros(1)}})
    with pytest.raises(ValueError, match="does not fit the network"):
        ema.on_train_start(Trainer(logger=False), module)


def test_average_is_put_back_after_a_failure(tmp_path: Path) -> None:
    class Failing(Toy):
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if len(self.validated) > 1:
                raise RuntimeError("validation failed")

    module, recorder, ema = Failing(), Recorder(), ExponentialMovingAverage("student", decay=0.9)
    trainer = _trainer(tmp_path, [recorder, ema], val_check_interval=2)
    with pytest.raises(RuntimeError, match="validation failed"):
        trainer.fit(module, _loader(), _loader())
    assert torch.equal(module.student.weight, recorder.weights[-1])


class Overflows(Toy):
    """Finite losses and gradients, and a third step that float32 cannot hold."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        if self.trainer.global_step == 2:
            self.student.weight.data[0, 0] = torch.inf


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit_val_batches": 0, "enable_checkpointing": True}
    trainer = _trainer(tmp_path, [ResumeCheckpoint(every=1)], logger=TensorBoardLogger(tmp_path), **options)
    with pytest.raises(ValueError, match=r"student\.weight is no longer finite: no checkpoint is written; resume"):
        trainer.fit(Overflows(), _loader())
    (path,) = tmp_path.rglob("*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == 2
    assert checkpoint["state_dict"]["student.weight"].isfinite().all()


def test_gradient_norms_of_two_players(tmp_path: Path) -> None:
    class Norms(Callback):
        def __init__(self) -> None:
            self.expected: dict[str, float] = {}

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:  # noqa: ARG002
            name = "student" if optimizer.param_groups[0]["params"][0] is pl_module.student.weight else "critic"
            gradients = [p.grad.flatten() for p in pl_module.get_submodule(name).parameters()]
            self.expected[f"gradient_norm/{name}"] = torch.cat(gradients).norm().item()

    norms = Norms()
    for batches in (1, 3):  # what steps in the first batch of a process is logged like all else
        trainer = _trainer(tmp_path, [norms, GradientNorm()], max_steps=-1, limit_train_batches=batches, max_epochs=1)
        trainer.fit(TwoPlayers(every=batches), _loader())
        logged = {name: trainer.callback_metrics[name].item() for name in norms.expected}
        assert set(norms.expected) == {"gradient_norm/student", "gradient_norm/critic"}
        assert logged == pytest.approx(norms.expected, rel=1e-5)
    with pytest.raises(ValueError, match="has no submodule 'generator'"):
        _trainer(tmp_path, [GradientNorm(["generator"])]).fit(TwoPlayers(), _loader())


def test_throughput_measures_steps_and_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.4, 10.5, 11.4])  # start, end, start after 0.1 s of waiting, end
    monkeypatch.setattr("visa.callbacks.throughput.time.perf_counter", lambda: next(times))
    trainer = _trainer(tmp_path, [Throughput()], max_steps=2, limit_val_batches=0)
    trainer.fit(Toy(), _loader())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items() if "throughput" in name}
    assert logged == pytest.approx(
        {
            "throughput/frames_per_second": 2 * 3 / 1.0,
            "throughput/step_ms": 1000.0,
            "throughput/data_share": 0.1,
        }
    )
    monkeypatch.undo()
    with pytest.raises(ValueError, match="the batch has no 'clips'"):
        _trainer(tmp_path, [Throughput(frames="clips")], limit_val_batches=0).fit(Toy(), _loader())


def test_event_file_holds_the_video_and_the_sheet(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run")
    frames = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    log_video([logger], "validation/video", frames, fps=25, step=7)
    log_image([logger], "validation/sheet", frames[0], step=7)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (video,) = events.Images("validation/video")
    picture = Image.open(io.BytesIO(video.encoded_image_string))
    assert (video.step, video.width, video.height) == (7, 24, 16)
    assert (picture.format, picture.n_frames, picture.size) == ("GIF", 5, (24, 16))
    assert picture.info["duration"] == 40
    (sheet,) = events.Images("validation/sheet")
    assert Image.open(io.BytesIO(sheet.encoded_image_string)).format == "PNG"


def test_gif_keeps_the_time_and_the_colours_of_a_still() -> None:
    still = torch.full((4, 3, 8, 8), 0.25)
    still[:, 0] = 0.75
    picture = Image.open(io.BytesIO(encode_gif(still, fps=10)))
    assert picture.info["duration"] * picture.n_frames == 400  # equal frames are merged, their time is kept
    assert picture.convert("RGB").getpixel((4, 4)) == (191, 64, 64)


def test_weights_of_a_complete_fit(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run")
    Path(logger.log_dir).mkdir(parents=True)
    (Path(logger.log_dir) / "config.yaml").write_text("seed_everything: 1\n")
    module, ema = Toy(), ExponentialMovingAverage("student", decay=0.9)
    trainer = _trainer(tmp_path, [SaveWeights(), ema], logger=logger, limit_val_batches=0)
    trainer.fit(module, _loader())
    path = Path(logger.log_dir) / "weights.safetensors"
    assert torch.equal(load_file(path)["weight"], ema.average["weight"])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["config"] == "seed_everything: 1\n"
    assert metadata["commit"]
    assert metadata["global_step"] == "6"
    assert float(metadata["train/l1"]) == pytest.approx(trainer.callback_metrics["train/l1"].item(), rel=1e-4)


class Falls(Toy):
    """Its validation metric is best after the second of three validations."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        self.log("val/distance", {2: 3.0, 4: 1.0, 6: 2.0}.get(self.trainer.global_step, 9.0))


def test_weights_of_the_best_validation(tmp_path: Path) -> None:
    logger, module, ema = TensorBoardLogger(tmp_path), Falls(), ExponentialMovingAverage("student", decay=0.9)
    recorder = Recorder()
    start = module.student.weight.detach().clone()
    options: dict[str, Any] = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    callbacks = [ema, SaveWeights(monitor="val/distance"), recorder]
    _trainer(tmp_path, callbacks, logger=logger, **options).fit(module, _loader(), _loader())
    path = Path(logger.log_dir) / "weights.safetensors"
    with safe_open(path, "pt") as file:
        assert float(file.metadata()["val/distance"]) == 1.0
        assert file.metadata()["batch"] == "4"
    expected = _average_by_hand(start, recorder.weights[:4], 0.9)
    torch.testing.assert_close(load_file(path)["weight"].double(), expected, atol=1e-6, rtol=0)
    assert not list(tmp_path.rglob("best-*"))
    longer = SaveWeights(monitor="val/distance")
    longer.load_state_dict(callbacks[1].state_dict())  # as a resumed run does; its best was 1
    before = path.read_bytes()
    longer.on_fit_end(module.trainer, module)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="no metric 'val/none' to monitor: choose from val/distance"):
        _trainer(tmp_path, [SaveWeights(monitor="val/none")], logger=logger, **options).fit(
            Falls(), _loader(), _loader()
        )


class Breaks(Callback):
    """Ends a fit after its first batch with an error."""

    def on_train_batch_end(self, *_: Any) -> None:
        raise RuntimeError("switched off")


def test_weights_of_a_failed_fit_are_not_written(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer = _trainer(tmp_path, [SaveWeights(), Breaks()], logger=logger)
    with pytest.raises(RuntimeError, match="switched off"):
        trainer.fit(Toy(), _loader())
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="no method export_weights"):
        _trainer(tmp_path, [SaveWeights()]).fit(TwoPlayers(), _loader())
