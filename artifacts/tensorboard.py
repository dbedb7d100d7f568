"""Pictures and videos in TensorBoard's event files."""

import io
from collections.abc import Iterable, Iterator

from lightning.fabric.loggers import Logger
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from visa.artifacts.media import to_uint8


def log_image(loggers: Iterable[Logger], tag: str, image: Tensor, step: int) -> None:
    """Writes a picture [3, H, W] in [0, 1], e.g. of `artifacts.media.sheet`, to each TensorBoard logger."""
    for writer in _writers(loggers):
        writer.add_image(tag, to_uint8(image), step, dataformats="HWC")


def log_video(loggers: Iterable[Logger], tag: str, frames: Tensor, fps: float, step: int, max_frames: int = 50) -> None:
    """Writes a video [T, 3, H, W] in [0, 1] to each TensorBoard logger, as an animated GIF under "Images".

    `SummaryWriter.add_video` is not used: it needs a moviepy before 2.0, and writes nothing without one. Of a longer
    video the first `max_frames` are written, because an event file is read whole. GIF times are whole 1/100 s.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary

    picture = encode_gif(frames[:max_frames], fps)
    height, width = frames.shape[-2:]
    for writer in _writers(loggers):
        encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture)
        summary = Summary(value=[Summary.Value(tag=tag, image=encoded)])
        assert writer.file_writer is not None
        writer.file_writer.add_summary(summary, step)


def encode_gif(frames: Tensor, fps: float) -> bytes:
    """[T, 3, H, W] in [0, 1] -> an endless GIF; each frame has its own palette of 256 colours."""
    pictures = [Image.fromarray(picture).quantize(256) for picture in to_uint8(frames)]
    buffer = io.BytesIO()
    duration = max(10 * round(100 / fps), 20)
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


def _writers(loggers: Iterable[Logger]) -> Iterator[SummaryWriter]:
    """The open event files; none on other ranks and in `fast_dev_run`, whose experiments are dummies."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and isinstance(logger.experiment, SummaryWriter):
            yield logger.experiment
