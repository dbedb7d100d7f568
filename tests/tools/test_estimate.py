"""Estimates of any config against real counts at small size, and the benchmark of the stream."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import ROOT
from tests.shader_inputs import make_condition
from visa import cli as train
from visa.benchmarks import shader as benchmark
from visa.networks import rollout as rollout_module
from visa.networks.codec import WanCodec
from visa.networks.discriminator import WanDiscriminator
from visa.networks.rollout import CachedAttention, CausalRollout
from visa.networks.shader import ShaderCondition, VideoShader, Window
from visa.tools import estimate_scale

STUDENT = ["configs/shader.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_student.yaml"]


@pytest.fixture
def _in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(benchmark, "WARM_UP", 1)


def streaming_shader() -> tuple[VideoShader, CausalRollout, ShaderCondition]:
    """A small shader whose window of 12 latent frames is full, and the condition of 15 frames (4x6 latents)."""
    torch.manual_seed(0)
    shader = VideoShader(
        latent_channels=4, feature_channels=2, semantic_dim=8, condition_channels=3, num_heads=2, head_dim=12,
        num_layers=3, ffn_dim=40, text_dim=16, freq_dim=20,
    ).eval()  # fmt: skip
    condition = make_condition(15, batch=1)
    rollout = CausalRollout(shader, [1.0, 0.5])
    rollout(condition)
    return shader, rollout, shader.encode_condition(condition)


@torch.no_grad()
def test_estimated_operations_are_those_of_a_real_pass() -> None:
    """A denoising step and a cache write of the full window, counted while they run."""
    shader, rollout, condition = streaming_shader()
    chunk, latents = condition.slice(12, 15), torch.randn(1, 4, 3, 4, 6)
    for writes, call in (
        (False, lambda: rollout._denoise(latents, 0.5, chunk)),
        (True, lambda: rollout._write(latents, chunk)),
    ):
        # Only unfused attention is counted on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        products = estimate_scale.pass_products(shader, (4, 6), 3, 1 + 12, 5, writes)
        assert counter.get_total_flops() == sum(product.flops for product in products)


def test_estimated_cache_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the cache's tensors, and of what a training rollout copies out of it."""
    shader, rollout, condition = streaming_shader()
    cache = rollout._cache
    real = sum(tensor.nbytes for tensor in (*cache.keys, *cache.rotated_keys, *cache.values))
    assert estimate_scale.cache_bytes(shader, (4, 6), Window(), 4) == real
    kept: list[Tensor] = []

    class Recording(CachedAttention):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            kept.extend(tensor for pair in self._snapshot or [] for tensor in pair)

    monkeypatch.setattr(rollout_module, "CachedAttention", Recording)
    rollout(condition, requires_grad=True, exit_step=0)
    assert kept
    assert estimate_scale.kept_for_backward_bytes(shader, (4, 6), Window(), 15, 4) == sum(t.nbytes for t in kept)


def test_estimated_training_memory_is_the_real_one() -> None:
    student, critic = nn.Linear(7, 5), nn.Linear(7, 5)
    teacher = nn.Linear(7, 5).requires_grad_(False)
    optimizers = [torch.optim.AdamW(network.parameters()) for network in (student, critic)]
    for network, optimizer in zip((student, critic), optimizers, strict=True):
        network(torch.rand(2, 7)).sum().backward()
        optimizer.step()
    count = estimate_scale.parameters(student)
    memory = estimate_scale.training_memory(
        {"student": count, "critic": count}, {"teacher": count}, "student", 1, False
    )
    moments = [v for o in optimizers for state in o.state.values() for v in state.values() if v.ndim]
    gradients = [p.grad for network in (student, critic) for p in network.parameters()]
    weights = [*student.parameters(), *critic.parameters(), *teacher.parameters()]
    assert memory["optimizer states"] == sum(value.nbytes for value in moments)
    assert memory["gradients"] == sum(value.nbytes for value in gradients)
    assert sum(v for name, v in memory.items() if name.startswith("weights")) == sum(p.nbytes for p in weights)
    shared = estimate_scale.training_memory({"student": count, "critic": count}, {}, "student", 4, True)
    assert shared["optimizer states"] == memory["optimizer states"] / 4


@torch.no_grad()
def test_estimated_codec_work_is_that_of_a_real_chunk() -> None:
    paths = [str(ROOT / name) for name in ("configs/shader.yaml", "configs/scale/tiny_wan.yaml")]
    setup = estimate_scale.read(paths)
    work = estimate_scale.chunk_work(setup)
    config = dict(yaml.safe_load(Path(paths[1]).read_text())["model"]["init_args"]["codec"]["init_args"]["config"])
    codec = WanCodec(config=config)
    stream = codec.stream()
    latents = torch.randn(1, 4, 3, 8, 8)
    frames = torch.rand(1, 12, 3, 64, 64)
    stream.decode(latents[:, :, :1])
    stream.encode(frames[:, :1])
    for name, call in (("decode", lambda: stream.decode(latents)), ("guide encode", lambda: stream.encode(frames))):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
        # Attention of the codec's middle block is fused, hence counted alike, on the meta device.
        assert work[name].flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert work["4 denoising steps"].flops > 4 * work["cache write"].flops


@pytest.mark.parametrize(
    ("chain", "trained", "frozen"),
    [
        (["configs/teacher.yaml"], {"teacher"}, set()),
        (["configs/shader_ode.yaml"], {"student"}, {"teacher"}),
        (["configs/shader.yaml"], {"student", "critic"}, {"teacher"}),
        (["configs/adversarial.yaml"], {"student", "critic", "discriminator"}, {"teacher"}),
    ],
)
def test_the_estimate_counts_the_networks_of_each_stage(chain: list[str], trained: set[str], frozen: set[str]) -> None:
    setup = estimate_scale.read([str(ROOT / path) for path in [*chain, "configs/scale/tiny_wan.yaml"]])
    counted, still, averaged = estimate_scale.networks(setup)
    assert set(counted) == trained
    assert set(still) == frozen | {"codec", "semantic encoder"}
    assert averaged in trained
    shader = sum(parameter.numel() for parameter in setup.shader.parameters())
    assert {value for name, value in (counted | still).items() if "codec" not in name} >= {shader}
    if "discriminator" in counted:  # a frozen backbone is the teacher itself
        judge = WanDiscriminator(VideoShader(**setup.shader.config))
        heads = [p for name, p in judge.named_parameters() if not name.startswith("backbone.")]
        assert counted["discriminator"] == sum(parameter.numel() for parameter in heads)


@pytest.mark.slow
def test_the_full_size_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    alone = estimate_scale.estimate(STUDENT, "H100", 1)
    eight = estimate_scale.estimate(STUDENT, "A100", 8)
    shader = alone["parameters_shader"]
    assert shader == 1_422_759_392
    assert alone["parameters_codec"] == 126_892_531
    # Weights of three networks, one average, two sets of gradients and of two moments, in float32.
    networks = 4 * shader * (3 + 1 + 2 + 4) / 2**30
    small = 4 * (126_892_531 + 86_580_480) / 2**30
    assert alone["training_gib_before_activations"] == pytest.approx(networks + small, rel=1e-6)
    assert eight["training_gib_optimizer_states"] == pytest.approx(alone["training_gib_optimizer_states"] / 8)
    # 16 frames of 1024 tokens x 1536 channels, 30 layers, three tensors of bfloat16.
    assert alone["kv_cache_gib"] == pytest.approx(3 * 30 * 16 * 1024 * 1536 * 2 / 2**30)
    # A pass costs at least two operations for each weight of the blocks and each token.
    assert alone["gflop_cache_write"] * 1e9 > 2 * 3 * 1024 * 1_300_000_000
    ratio = eight["roofline_ms_cache_write"] / alone["roofline_ms_cache_write"]
    assert ratio == pytest.approx(989.4 / 312)  # bound by arithmetic on both
    with pytest.raises(ValueError, match="choose from"):
        estimate_scale.estimate(STUDENT, "Voodoo", 1)
    with pytest.raises(ValueError, match="no shader"):
        estimate_scale.read(["configs/reconstruction.yaml"])


@pytest.mark.slow
@pytest.mark.usefixtures("_in_repository")
def test_the_shader_benchmark_measures_each_part() -> None:
    arguments = argparse.Namespace(config=None, chunks=2, long=False, device="cpu")
    result = benchmark.measure(arguments, ["--data.resolution=64", "--data.predict.num_frames=30"])
    parts = ("splat", "guide_encode", "condition_head", "step", "cache_write", "decode")
    assert all(result[f"{part}_ms"] > 0 for part in parts)
    assert result["fps"] == pytest.approx(1e3 * 3 / result["chunk_ms"], rel=0.5)
    assert result["first_frame_ms"] == pytest.approx(result["start_ms"] + result["first_chunk_ms"])
    assert result["step_gflop"] == pytest.approx(result["step_gflops_per_s"] * result["step_ms"] / 1e3)
    assert 0 < result["share_of_plain_product"] < 1.5
    assert result["resolution"] == 64
    json.dumps(result)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device for gsplat")
@pytest.mark.usefixtures("_in_repository")
def test_the_stream_runs_on_a_gpu_in_mixed_precision() -> None:
    """Photo to frames through gsplat, the cached rollout and the codec on the device, by the benchmark's own path."""
    arguments = argparse.Namespace(config=None, chunks=2, long=False, device="cuda")
    result = benchmark.measure(arguments, ["--data.resolution=64", "--data.predict.num_frames=30"])
    assert result["fps"] > 0
    assert result["peak_memory_mb"] > 0
