"""Speed of the video shader as it streams: `python -m visa.benchmarks.shader [--json] [--long]`.

Paints the shipped photo in the shipped motion through the object that `predict` and live applications use: photo ->
avatar, then for each chunk pose, splat, guide, denoising, cache write and decoding; batch 1, warm-up dropped. Other
configs and overrides go to the command line as for `train.py`: `-c configs/shader.yaml --data.resolution=96`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visa import cli as train
from visa.artifacts.provenance import device_name, git_commit, peak_memory_mb
from visa.benchmarks.command import add_threads, at_least_one, command_line, print_json, run, say, say_figures
from visa.datamodules.batch import VideoBatch
from visa.lightning_modules.student import StudentStage
from visa.networks.rollout import CausalRollout
from visa.networks.shader import Prediction, ShaderCondition, VideoShader, Window
from visa.runtime.stream import AvatarStream
from visa.tools.estimate_scale import Product, pass_products

PHOTO, DRIVING = "assets/photos/astronaut.png", "assets/clips/webcam_man.track.npz"
WARM_UP = 6  # chunks; by then the window of 12 latent frames is full
LONG_FRAMES = 1500  # 60 s at 25 frames/s
BUSY = 0.5  # load average of the last minute above which others are at work


def now(device: torch.device) -> float:
    """Seconds, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class TimedRollout(CausalRollout):
    """The rollout, keeping the milliseconds of each part of a step."""

    def __init__(self, shader: VideoShader, noise_levels: list[float], window: Window) -> None:
        super().__init__(shader, noise_levels, window)
        self.times: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        device = self.shader.skip.device
        begin = now(device)
        yield
        self.times[name].append(1e3 * (now(device) - begin))

    def _driving(self, condition: ShaderCondition) -> ShaderCondition:
        with self._timed("condition_head"):
            return super()._driving(condition)

    def _denoise(self, state: Tensor, level: float, condition: ShaderCondition, keep_keys: bool = False) -> Prediction:
        with self._timed("step"):
            return super()._denoise(state, level, condition, keep_keys)

    def _write(self, x0: Tensor, condition: ShaderCondition) -> None:
        with self._timed("cache_write"):
            super()._write(x0, condition)


def build(configs: list[str], overrides: list[str], device: torch.device) -> tuple[StudentStage, VideoBatch]:
    """The student's stage and the whole shipped motion put on the shipped photo."""
    options = [part for path in configs for part in ("-c", path)]
    inputs = [f"--image={PHOTO}", f"--driving={DRIVING}", *overrides]
    cli = train.main(["predict", *options, *inputs], cli=train.BuildOnly)
    if not isinstance(cli.model, StudentStage):
        raise SystemExit(f"error: {configs[0]} has no student: give configs/shader.yaml or configs/adversarial.yaml")
    batch = next(iter(cli.datamodule.predict_dataloader()))
    return cli.model.eval().to(device), cli.model.transfer_batch_to_device(batch, device, 0)


def bounce(num_frames: int, total: int) -> Tensor:
    """`[num_frames]` indices that play `total` frames forth and back."""
    there_and_back = np.r_[np.arange(total), np.arange(total - 2, 0, -1)]
    return torch.from_numpy(np.resize(there_and_back, num_frames))


def resident_mb() -> float:
    """Memory of this process now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def time_ms(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Median milliseconds of `function`, after two warm-ups."""
    function(), function()
    times = []
    for _ in range(repeats):
        begin = now(device)
        function()
        times.append(1e3 * (now(device) - begin))
    return float(np.median(times))


class Streamed:
    """One unbroken stream: milliseconds and memory of every chunk, and of the parts."""

    def __init__(self, stage: StudentStage, batch: VideoBatch, num_frames: int) -> None:
        self.rollout = TimedRollout(stage.student, stage.noise_levels, stage.rollout_window)
        self.stream = AvatarStream(stage.conditioner, self.rollout, matte=stage.matte)
        self.device, self.batch = stage.device, batch
        index = bounce(num_frames, batch.intrinsics.shape[1])
        self.body = batch.body.map(lambda value: value[:, index])
        self.chunks: list[float] = []
        self.memory: list[float] = []
        self.frames_per_chunk = stage.student.chunk_frames * stage.codec.temporal_stride
        begin = now(self.device)
        self.stream.start(batch)
        self.start_ms = 1e3 * (now(self.device) - begin)
        first = 0
        while first + self.stream.chunk_length() <= num_frames:
            last = first + self.stream.chunk_length()
            self.chunk(slice(first, last))
            first = last

    def chunk(self, frames: slice) -> None:
        """Paint the next chunk."""
        count = frames.stop - frames.start
        begin = now(self.device)
        params = self.body.map(lambda value: value[:, frames])
        self.stream.step(replace(self.batch.cut(slice(count)).view(), body=params))
        self.chunks.append(1e3 * (now(self.device) - begin))
        self.memory.append(resident_mb())

    def part(self, name: str) -> float:
        """Median milliseconds of a part once the window is full."""
        per_chunk = len(self.rollout.times[name]) // len(self.chunks)
        return float(np.median(self.rollout.times[name][WARM_UP * per_chunk :]))


def plain_product_ms(products: list[Product], repeats: int, like: Tensor) -> float:
    """Milliseconds of the matrix products of a step alone, on tensors of `like`'s device and precision."""
    pairs = []
    for product in products:
        lead = (product.batch,) if product.batch > 1 else ()
        left = torch.randn(*lead, product.rows, product.inner, device=like.device, dtype=like.dtype)
        right = torch.randn(*lead, product.inner, product.columns, device=like.device, dtype=like.dtype)
        pairs.append((product.count, left, right, left @ right))

    def run() -> None:
        for count, left, right, out in pairs:
            for _ in range(count):
                torch.matmul(left, right, out=out)

    return time_ms(run, repeats, like.device)


def measure_stream(stage: StudentStage, batch: VideoBatch, num_chunks: int) -> dict[str, float]:
    """End to end and by part."""
    codec, device = stage.codec, stage.device
    num_frames = codec.num_pixel_frames(stage.student.chunk_frames)
    per_chunk = stage.student.chunk_frames * codec.temporal_stride
    Streamed(stage, batch, num_frames + WARM_UP * per_chunk)  # the warm-up of allocators and compiled kernels
    streamed = Streamed(stage, batch, num_frames + (WARM_UP + num_chunks - 1) * per_chunk)
    steady = np.asarray(streamed.chunks[WARM_UP:])
    size = batch.reference.shape[-1]
    frames = torch.rand(1, per_chunk, 3, size, size, device=device)
    stream, latents = codec.stream(), torch.randn(1, codec.latent_channels, 1, 1, 1, device=device)
    latents = latents.expand(-1, -1, stage.student.chunk_frames, *[size // codec.spatial_stride] * 2).contiguous()
    stream.encode(frames[:, : codec.num_pixel_frames(1)])
    avatar, _ = stage.conditioner.avatar(batch)
    cut = batch.cut(slice(0, per_chunk))
    body = stage.conditioner.body
    return {
        "fps": 1e3 * per_chunk / float(steady.mean()),
        "chunk_ms": float(np.median(steady)),
        "chunk_p99_ms": float(np.percentile(steady, 99)),
        "start_ms": streamed.start_ms,
        "first_chunk_ms": streamed.chunks[0],
        "first_frame_ms": streamed.start_ms + streamed.chunks[0],
        "splat_ms": time_ms(lambda: avatar.render(body, cut.view()), 9, device),
        "guide_encode_ms": time_ms(lambda: stream.encode(frames), 9, device),
        "condition_head_ms": streamed.part("condition_head"),
        "step_ms": streamed.part("step"),
        "cache_write_ms": streamed.part("cache_write"),
        "decode_ms": time_ms(lambda: stream.decode(latents), 9, device),
    }


def measure_products(stage: StudentStage, batch: VideoBatch, step_ms: float) -> dict[str, float]:
    """Achieved speed of a step against its own matrix products alone."""
    side = batch.reference.shape[-1] // stage.codec.spatial_stride
    _, still = stage.conditioner.avatar(batch)
    window = stage.rollout_window
    assert still.semantic is not None  # a photo has its tokens
    num_tokens, num_frames = still.semantic.shape[1], stage.student.chunk_frames
    products = pass_products(stage.student, (side, side), num_frames, 1 + window.capacity, num_tokens)
    is_autocast = torch.is_autocast_enabled(stage.device.type)
    dtype = torch.get_autocast_dtype(stage.device.type) if is_autocast else stage.student.skip.dtype
    plain_ms = plain_product_ms(products, 15, torch.empty(0, device=stage.device, dtype=dtype))
    gflop = sum(product.flops for product in products) / 1e9
    return {
        "step_gflop": gflop,
        "step_gflops_per_s": 1e3 * gflop / step_ms,
        "plain_product_gflops_per_s": 1e3 * gflop / plain_ms,
        "share_of_plain_product": plain_ms / step_ms,
    }


def measure_recomputed(stage: StudentStage, batch: VideoBatch, cached_ms: float) -> dict[str, float]:
    """A chunk painted without a cache: the whole masked forward pass over all frames so far, for each step."""
    shader, result = stage.student, {"cached_chunk_ms": cached_ms}
    _, still = stage.conditioner.avatar(batch)
    window = stage.rollout_window
    for num_frames in (window.capacity + shader.chunk_frames, 2 * (window.capacity + shader.chunk_frames)):
        guide = still.guide[:, :, :1].expand(-1, -1, num_frames, -1, -1)
        once = shader.encode_condition(still)
        assert once.encoded is not None
        condition = ShaderCondition(
            guide=guide, encoded=once.encoded[:, :, :1].expand(-1, -1, num_frames, -1, -1), reference=still.reference,
            reference_guide=still.reference_guide, reference_encoded=once.reference_encoded, semantic=still.semantic,
        )  # fmt: skip
        level = torch.full((1, num_frames), 0.5, device=stage.device)
        noisy = torch.randn(guide.shape, device=stage.device)

        def forward(noisy: Tensor = noisy, level: Tensor = level, condition: ShaderCondition = condition) -> None:
            shader(noisy, level, condition, "block_causal", window)

        milliseconds = len(stage.noise_levels) * time_ms(forward, 5, stage.device)
        result[f"recomputed_chunk_ms_{num_frames}_latent_frames"] = milliseconds
        result[f"speedup_of_cache_{num_frames}_latent_frames"] = milliseconds / cached_ms
    return result


def measure_long(stage: StudentStage, batch: VideoBatch) -> dict[str, float]:
    """Whether time and memory of a chunk stay flat over a minute of video."""
    streamed = Streamed(stage, batch, LONG_FRAMES)
    times, memory = np.asarray(streamed.chunks[WARM_UP:]), np.asarray(streamed.memory[WARM_UP:])
    tenth = len(times) // 10
    first, last = np.median(times[:tenth]), np.median(times[-tenth:])
    return {
        "long_frames": LONG_FRAMES,
        "long_fps": 1e3 * streamed.frames_per_chunk / float(times.mean()),
        "long_first_tenth_chunk_ms": float(first),
        "long_last_tenth_chunk_ms": float(last),
        "long_last_over_first": float(last / first),
        "long_chunk_p99_ms": float(np.percentile(times, 99)),
        "long_memory_growth_mb": float(memory[-1] - memory[0]),
    }


def measure(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, float | str | bool]:
    """Everything that is measured, flat."""
    load = os.getloadavg()[0]
    device = torch.device(arguments.device)
    stage, batch = build(arguments.config or [train.DEFAULT_CONFIG], overrides, device)
    result: dict[str, float | str | bool] = {
        "device": device_name(device),
        "commit": git_commit(),
        "load": load,
        "is_busy": load > BUSY,
        "resolution": batch.reference.shape[-1],
        "num_steps": len(stage.noise_levels),
        "chunk_latent_frames": stage.student.chunk_frames,
        "window_latent_frames": stage.rollout_window.capacity,
        "codec": type(stage.codec).__name__,
    }
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        parts = measure_stream(stage, batch, arguments.chunks)
        cached_ms = len(stage.noise_levels) * parts["step_ms"] + parts["cache_write_ms"]
        result |= parts | measure_products(stage, batch, parts["step_ms"])
        result |= measure_recomputed(stage, batch, cached_ms)
        if arguments.long:
            result |= measure_long(stage, batch)
    is_cuda = device.type == "cuda"
    result["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6 if is_cuda else peak_memory_mb()
    return result


def main() -> None:
    parser = command_line(__doc__, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="append", help=f"as for train.py; without it {train.DEFAULT_CONFIG}")
    parser.add_argument("--long", action="store_true", help=f"also paint {LONG_FRAMES} frames in one rollout")
    parser.add_argument("--chunks", type=at_least_one, default=60, help="timed chunks of the end-to-end run")
    add_threads(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments, overrides = parser.parse_known_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measure(arguments, overrides)
    say_figures(result)
    if result["is_busy"]:
        say("others were at work on this machine: times are longer than on a quiet one")
    print_json(result, arguments.json, digits=3)


if __name__ == "__main__":
    run(main)
