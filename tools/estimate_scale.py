"""What a config needs: `python -m visa.tools.estimate_scale -c configs/shader.yaml -c configs/scale/wan_1_3b.yaml`.

Prints parameters, operations of a streamed chunk by part, cache and training memory of one GPU, and the time that a
named GPU would need at its published bfloat16 peak (roofline): a bound from below, no measurement. Networks are built
without memory, so any size runs anywhere. Checkpoints are not opened: a codec or encoder that a config takes from a
folder counts as the published Wan 2.1 codec and DINOv2 base.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from visa.artifacts.command_line import one_line_errors
from visa.artifacts.configs import read_config
from visa.networks.codec import BlockCodec, WanCodec
from visa.networks.encoders import DinoEncoder, SemanticEncoder
from visa.networks.shader import PICTURE_CHANNELS, VideoShader, Window

GIB = 2**30
FLOAT = 4  # bytes of a weight, gradient, average or moment: mixed precision keeps them in float32


@dataclass(frozen=True)
class Gpu:
    """Published peaks of one GPU.

    Attributes:
        tflops: bfloat16 with float32 accumulation, dense (data sheets that print the sparse figure print twice this).
        bandwidth: of its memory, GB/s.
        memory: GB.
        source: where the figures stand.
    """

    tflops: float
    bandwidth: float
    memory: float
    source: str


GPUS = {
    "H200": Gpu(989.4, 4800, 141, "NVIDIA H200 data sheet, SXM"),
    "H100": Gpu(989.4, 3350, 80, "NVIDIA H100 data sheet, SXM"),
    "H100-PCIe": Gpu(756.5, 2000, 80, "NVIDIA H100 data sheet, PCIe"),
    "A100": Gpu(312.0, 2039, 80, "NVIDIA A100 80GB data sheet, SXM"),
    "L40S": Gpu(362.05, 864, 48, "NVIDIA L40S data sheet"),
    "RTX-4090": Gpu(165.2, 1008, 24, "NVIDIA Ada GPU architecture white paper, appendix A"),
}


@dataclass(frozen=True)
class Work:
    """Operations (a multiplication and an addition are two) and bytes moved to and from memory at least."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Work:
        return Work(self.flops * times, self.bytes * times)

    def milliseconds(self, gpu: Gpu) -> float:
        """The longer of computing at peak and moving at full bandwidth."""
        return 1e3 * max(self.flops / (gpu.tflops * 1e12), self.bytes / (gpu.bandwidth * 1e9))


@dataclass(frozen=True)
class Product:
    """`count` matrix products `[rows, inner] x [inner, columns]`, each done for `batch` pairs at once."""

    count: int
    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Of all of them."""
        return 2 * self.count * self.batch * self.rows * self.inner * self.columns


def pass_products(
    shader: VideoShader,
    size: tuple[int, int],
    num_frames: int,
    held_frames: int,
    semantic_tokens: int,
    writes_cache: bool = False,
) -> list[Product]:
    """Matrix products of one pass of `num_frames` latent frames that see `held_frames` more in the cache.

    Args:
        shader: the network; it may live on the meta device.
        size: latent grid (h, w).
        num_frames, held_frames: latent frames, the reference among the held.
        semantic_tokens: tokens of F_sem, whose keys and values are kept.
        writes_cache: the pass over the clean chunk, which gives keys and values and no picture; otherwise a denoising
            step.
    """
    config = shader.transformer.config
    model, heads, head, layers = (
        shader.num_heads * shader.head_dim,
        shader.num_heads,
        shader.head_dim,
        config.num_layers,
    )
    frame_tokens = (size[0] // shader.patch_size[1]) * (size[1] // shader.patch_size[2])
    tokens, seen = num_frames * frame_tokens, (num_frames + held_frames) * frame_tokens
    patch = shader.patch_size[1] * shader.patch_size[2]
    output = [] if writes_cache else [Product(1, 1, tokens, model, config.out_channels * patch)]
    return [
        Product(6 * layers, 1, tokens, model, model),  # query, key, value, output; query and output of cross-attention
        Product(layers, 1, tokens, model, config.ffn_dim),
        Product(layers, 1, tokens, config.ffn_dim, model),
        Product(layers, heads, tokens, head, seen),
        Product(layers, heads, tokens, seen, head),
        Product(layers, heads, tokens, head, semantic_tokens),
        Product(layers, heads, tokens, semantic_tokens, head),
        Product(1, 1, tokens, config.in_channels * patch, model),
        Product(1, 1, num_frames, config.freq_dim, model),
        Product(1, 1, num_frames, model, model),
        Product(1, 1, num_frames, model, 6 * model),
        *output,
    ]


def pass_work(products: list[Product], width: int) -> Work:
    """Work of `pass_products` with values of `width` bytes: fused attention keeps its scores to itself."""
    moved = 0
    for product in products:
        if product.batch == 1:
            moved += product.count * (
                product.rows * (product.inner + product.columns) + product.inner * product.columns
            )
        else:  # of scores and their sum of values, the queries or outputs and the keys or values
            channels, others = min(product.inner, product.columns), max(product.inner, product.columns)
            moved += product.count * product.batch * channels * (product.rows + others)
    return Work(sum(product.flops for product in products), moved * width)


class TrafficCounter(TorchDispatchMode):
    """Sums the bytes that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("convolution", "mm", "addmm", "bmm", "baddbmm"):
            tensors = [item for item in (*args, result) if isinstance(item, Tensor)]
            self.bytes += sum(item.numel() * item.element_size() for item in tensors)
        return result


def counted(function: Any, *arguments: Any) -> Work:
    """Work of a call, counted while it runs (on the meta device: without computing)."""
    with torch.no_grad(), TrafficCounter() as traffic, FlopCounterMode(display=False) as flops:
        function(*arguments)
    return Work(flops.get_total_flops(), traffic.bytes)


def cache_bytes(shader: VideoShader, size: tuple[int, int], window: Window, width: int, batch: int = 1) -> int:
    """Keys, rotated keys and values of reference, window and the chunk being painted, `KVCache`'s tensors."""
    frame_tokens = (size[0] // shader.patch_size[1]) * (size[1] // shader.patch_size[2])
    slots = 1 + window.capacity + shader.chunk_frames
    layers = len(shader.transformer.blocks)
    return 3 * layers * batch * slots * frame_tokens * shader.num_heads * shader.head_dim * width


def kept_for_backward_bytes(
    shader: VideoShader, size: tuple[int, int], window: Window, num_frames: int, width: int, batch: int = 1
) -> int:
    """What a training rollout of `num_frames` latent frames copies out of the cache, held until its backward pass."""
    frame_tokens = (size[0] // shader.patch_size[1]) * (size[1] // shader.patch_size[2])
    held = sum(1 + len(window.held(start)) for start in range(0, num_frames, shader.chunk_frames))
    return 2 * len(shader.transformer.blocks) * batch * held * frame_tokens * shader.num_heads * shader.head_dim * width


def training_memory(
    trained: dict[str, int], frozen: dict[str, int], averaged: str, num_gpus: int, shards_optimizer: bool
) -> dict[str, float]:
    """Bytes of one GPU before activations.

    Args:
        trained: parameters of each trained network.
        frozen: parameters of each frozen one.
        averaged: the trained network that has a moving average.
        num_gpus: over which optimizer states are shared out where `shards_optimizer`.
        shards_optimizer: whether they are.
    """
    total = sum(trained.values())
    return {
        **{f"weights of {name}": FLOAT * count for name, count in (trained | frozen).items()},
        f"average of {averaged}": FLOAT * trained[averaged],
        "gradients": FLOAT * total,
        "optimizer states": 2 * FLOAT * total / (num_gpus if shards_optimizer else 1),
    }


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass
class Setup:
    """What a merged config asks for; networks live on the meta device.

    Attributes:
        shader, codec, semantic: the networks.
        stage: name of the stage's class.
        num_steps: denoising steps of the student.
        window: of its rollouts.
        resolution: side of the picture in pixels.
        num_frames: latent frames of the longest training window.
        width: bytes of an activation.
        shards_optimizer: whether the strategy shares optimizer states out.
        trains_backbone: whether the discriminator trains a copy of the teacher; otherwise it reads the teacher itself.
    """

    shader: VideoShader
    codec: BlockCodec | WanCodec
    semantic: SemanticEncoder | DinoEncoder
    stage: str
    num_steps: int
    window: Window
    resolution: int
    num_frames: int
    width: int
    shards_optimizer: bool
    trains_backbone: bool

    @property
    def has_critic(self) -> bool:
        """Whether the student learns on its own rollouts, against a critic."""
        return self.stage in ("Distillation", "Adversarial")

    @property
    def size(self) -> tuple[int, int]:
        """Latent grid."""
        side = self.resolution // self.codec.spatial_stride
        return side, side

    @property
    def semantic_tokens(self) -> int:
        """Tokens of F_sem."""
        if isinstance(self.semantic, DinoEncoder):
            patch_size = self.semantic.backbone.config.patch_size
            assert isinstance(patch_size, int)  # DINOv2's patches are square
            return 1 + (self.semantic.image_size // patch_size) ** 2
        return self.semantic.position.shape[1]


def read(paths: list[str]) -> Setup:
    """Merge config files as the command line does, and build what they name. ValueError for a stage without shader."""
    config = OmegaConf.merge(*(read_config(path) for path in paths))
    assert isinstance(config, DictConfig)
    arguments = config.model.init_args
    if "shader" not in arguments:
        raise ValueError(f"{paths[-1]} has no shader: give a config of the stages teacher, shader or adversarial")
    data, trainer = config.get("data", {}), config.get("trainer", {})
    sizes = _plain(arguments.shader.init_args)
    is_wan = arguments.codec.class_path.endswith("WanCodec")
    semantic = arguments.get("reconstructor_options", {}).get("semantic")
    with torch.device("meta"):
        shader = VideoShader(**sizes)
        codec = WanCodec(config=_plain(arguments.codec.get("init_args", {}).get("config"))) if is_wan else BlockCodec()
        encoder: SemanticEncoder | DinoEncoder = SemanticEncoder()
        if semantic is not None and semantic.class_path.endswith("DinoEncoder"):
            options = semantic.get("init_args", {})
            encoder = DinoEncoder(
                config=_plain(options.get("config")) or {"image_size": 518}, image_size=options.get("image_size", 518)
            )
    phases = data.get("schedule", [{"num_frames": 9}])
    strategy = trainer.get("strategy", "auto")
    return Setup(
        shader=shader, codec=codec, semantic=encoder,
        stage=config.model.class_path.rsplit(".", 1)[-1],
        num_steps=len(arguments.get("noise_levels", [1.0, 0.9, 0.75, 0.5])),
        window=Window(**_plain(arguments.get("rollout_window"))),
        resolution=data.get("resolution", 128),
        num_frames=codec.num_latent_frames(max(phase.get("num_frames", 9) for phase in phases)),
        width=2 if "16" in str(trainer.get("precision", "32-true")) else 4,
        shards_optimizer="ShardedOptimizerDDP" in str(strategy),
        trains_backbone=bool(arguments.get("train_backbone", False)),
    )  # fmt: skip


def _plain(value: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(value) if value is not None else {}
    assert isinstance(plain, dict)
    return {str(name): entry for name, entry in plain.items()}


def chunk_work(setup: Setup) -> dict[str, Work]:
    """Work of each part of a streamed chunk once the window is full."""
    shader, codec, chunk = setup.shader, setup.codec, setup.shader.chunk_frames
    frames = chunk * codec.temporal_stride
    maps, held = shader.config["feature_channels"] + PICTURE_CHANNELS, 1 + setup.window.capacity
    step, write = (
        pass_work(pass_products(shader, setup.size, chunk, held, setup.semantic_tokens, writes), setup.width)
        for writes in (False, True)
    )
    dtype = torch.bfloat16 if setup.width == 2 else torch.float32
    codec, head = codec.to(dtype), shader.condition_head.to(dtype)
    with torch.device("meta"):
        pixels = torch.empty(1, frames, 3, setup.resolution, setup.resolution, dtype=dtype)
        splat = torch.empty(1, frames, maps, setup.resolution, setup.resolution, dtype=dtype)
        latents = torch.empty(1, codec.latent_channels, chunk, *setup.size, dtype=dtype)
        stream = codec.stream()
        with torch.no_grad():  # the first chunk of a codec with memory is another one
            stream.encode(pixels[:, : codec.num_pixel_frames(1)])
            stream.decode(latents[:, :, :1])
        return {
            "guide encode": counted(stream.encode, pixels),
            "condition head": counted(head, splat, False),
            f"{setup.num_steps} denoising steps": step * setup.num_steps,
            "cache write": write,
            "decode": counted(stream.decode, latents),
        }


def networks(setup: Setup) -> tuple[dict[str, int], dict[str, int], str]:
    """Parameters of trained and frozen networks of the stage, and which one is averaged."""
    count = parameters(setup.shader)
    frozen = {"codec": parameters(setup.codec), "semantic encoder": parameters(setup.semantic)}
    if setup.stage == "Teacher":
        return {"teacher": count}, frozen, "teacher"
    trained, frozen = {"student": count}, {"teacher": count, **frozen}
    if setup.has_critic:
        trained["critic"] = count
    if setup.stage == "Adversarial":
        from visa.networks.discriminator import WanDiscriminator

        with torch.device("meta"):
            judge = WanDiscriminator(VideoShader(**setup.shader.config))
        trained["discriminator"] = parameters(judge) - (0 if setup.trains_backbone else count)
    return trained, frozen, "student"


def estimate(paths: list[str], gpu_name: str, num_gpus: int) -> dict[str, float | str]:
    """Everything that is printed, flat, units in the names."""
    if gpu_name not in GPUS:
        raise ValueError(f"--gpu {gpu_name} is not known: choose from {', '.join(GPUS)}")
    setup, gpu = read(paths), GPUS[gpu_name]
    trained, frozen, averaged = networks(setup)
    memory = training_memory(trained, frozen, averaged, num_gpus, setup.shards_optimizer)
    cached = cache_bytes(setup.shader, setup.size, setup.window, setup.width)
    kept = kept_for_backward_bytes(setup.shader, setup.size, setup.window, setup.num_frames, setup.width)
    result: dict[str, float | str] = {"gpu": gpu_name, "gpu_source": gpu.source, "num_gpus": num_gpus}
    for name, module in (("shader", setup.shader), ("codec", setup.codec), ("semantic_encoder", setup.semantic)):
        result[f"parameters_{name}"] = parameters(module)
    work = chunk_work(setup)
    total = sum((part.milliseconds(gpu) for part in work.values()), 0.0)
    for name, part in work.items():
        key = "".join(letter if letter.isalnum() else "_" for letter in name)
        result[f"gflop_{key}"] = part.flops / 1e9
        result[f"roofline_ms_{key}"] = part.milliseconds(gpu)
    frames = setup.shader.chunk_frames * setup.codec.temporal_stride
    result |= {
        "frames_per_chunk": frames,
        "roofline_ms_chunk": total,
        "roofline_fps": 1e3 * frames / total,
        "kv_cache_gib": cached / GIB,
        "streaming_weights_gib": setup.width * (parameters(setup.shader) + parameters(setup.codec)) / GIB,
    }
    for name, value in memory.items():
        result[f"training_gib_{name.replace(' ', '_')}"] = value / GIB
    result["training_gib_before_activations"] = sum(memory.values()) / GIB
    if setup.has_critic:
        result["training_gib_rollout_cache"] = cached / GIB
        result["training_gib_rollout_kept_for_backward"] = kept / GIB
    result["optimizer_states"] = f"shared out over {num_gpus} GPUs" if setup.shards_optimizer else "whole on each GPU"
    return result


@one_line_errors
def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", action="append", required=True, help="as for train.py; later ones win")
    parser.add_argument("--gpu", default="H100", help=f"one of {', '.join(GPUS)}")
    parser.add_argument("--num_gpus", type=int, default=8, help="GPUs that train together")
    parser.add_argument("--json", action="store_true", help="print one flat JSON object on standard output")
    arguments = parser.parse_args()
    result = estimate(arguments.config, arguments.gpu, arguments.num_gpus)
    for name, value in result.items():
        shown = value if isinstance(value, str) else f"{value:,.0f}" if value >= 1000 else f"{value:,.3f}"
        print(f"{name:52s} {shown}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
