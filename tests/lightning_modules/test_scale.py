"""The full size: configs, checkpoints, one block at full width, sharded optimizers and the estimates."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from tests.conftest import ROOT
from visa import cli as train
from visa.artifacts.configs import read_config
from visa.artifacts.weights import save_weights
from visa.networks.codec import WanCodec
from visa.networks.encoders import DinoEncoder, WanVisualEncoder
from visa.networks.precision import full_precision
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.shader import ShaderCondition, VideoShader, load_wan_state_dict
from visa.runtime.shipped import build_reconstructor

FULL = ROOT / "configs/scale/wan_1_3b.yaml"
BODY = "assets/body/smplx_anny.npz"
CHAINS = {
    "reconstruction": ["configs/reconstruction.yaml", "configs/scale/wan_1_3b_reconstruction.yaml"],
    "teacher": ["configs/teacher.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_teacher.yaml"],
    "ode": [
        "configs/shader_ode.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_ode.yaml",
    ],
    "student": ["configs/shader.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_student.yaml"],
    "adversarial": [
        "configs/adversarial.yaml", "configs/scale/wan_1_3b.yaml", "configs/scale/wan_1_3b_adversarial.yaml",
    ],
}  # fmt: skip
# Every size of the full-size configs and the small one that takes its place here.
SMALL_SHADER = {
    "latent_channels": 4, "semantic_dim": 24, "condition_channels": 8, "num_heads": 2, "head_dim": 24, "num_layers": 2,
    "ffn_dim": 64, "text_dim": 32,
}  # fmt: skip
SMALL_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
SMALL_DINO = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
SMALL_OPTIONS = {"width": 32, "num_clusters": 64, "num_layers": 1, "num_heads": 2, "prior_channels": 8}


def full_arguments(part: str) -> dict[str, Any]:
    """Constructor arguments that the shared full-size config gives `shader` or `codec`."""
    return dict(yaml.safe_load(FULL.read_text())["model"]["init_args"][part]["init_args"])


def wan_1_3b() -> WanTransformer3DModel:
    """The published architecture of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, numbers stated here, without memory."""
    with torch.device("meta"):
        return WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=12, attention_head_dim=128, in_channels=16, out_channels=16,
            text_dim=4096, freq_dim=256, ffn_dim=8960, num_layers=30,
        )  # fmt: skip


def test_the_full_size_shader_takes_the_published_weights() -> None:
    with torch.device("meta"):
        shader = VideoShader(**full_arguments("shader"))
    original = wan_1_3b()
    load_wan_state_dict(shader, original.state_dict())
    ours = {name: value.shape for name, value in shader.transformer.state_dict().items()}
    theirs = {name: value.shape for name, value in original.state_dict().items()}
    assert {name for name in ours if ours[name] != theirs.get(name)} == {"patch_embedding.weight"}
    assert ours["patch_embedding.weight"] == (1536, 16 + 16 + 32, 1, 2, 2)
    assert (shader.chunk_frames, shader.gradient_checkpointing, shader.prediction) == (3, True, "velocity")


def test_full_size_parts_fit_each_other() -> None:
    config = read_config(FULL)
    shader = full_arguments("shader")
    options = config["model"]["init_args"]["reconstructor_options"]
    with torch.device("meta"):
        dino, codec, visual = DinoEncoder(config={"image_size": 518}), WanCodec(config={}), WanVisualEncoder()
    assert shader["semantic_dim"] == dino.width
    assert (shader["latent_channels"], shader["spatial_stride"], shader["temporal_stride"]) == (
        codec.latent_channels, codec.spatial_stride, codec.temporal_stride
    )  # fmt: skip
    assert options["visual"]["init_args"]["width"] == visual.width
    assert options["width"] % options["num_heads"] == 0
    # Stage 1 is built as the later stages read it.
    first = read_config(ROOT / CHAINS["reconstruction"][1])
    assert first["model"]["init_args"]["reconstructor_options"] == options
    assert first["data"]["body_model"] == config["data"]["body_model"]
    for chain in CHAINS.values():
        for phase in yaml.safe_load((ROOT / chain[-1]).read_text())["data"]["schedule"]:
            assert phase["resolution"] % (codec.spatial_stride * 2) == 0
            if chain != CHAINS["reconstruction"]:
                frames = codec.num_latent_frames(phase["num_frames"])
                assert frames % shader["chunk_frames"] == 0


@torch.no_grad()
def test_one_block_at_full_width_equals_diffusers() -> None:
    """Width 1536 and all around the blocks, on a few tokens; conditions are zero, so that Wan's input is ours."""
    torch.manual_seed(0)
    arguments = {**full_arguments("shader"), "num_layers": 1, "gradient_checkpointing": False}
    original = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, text_dim=4096, num_layers=1
    ).eval()
    shader = VideoShader(**arguments).eval()
    load_wan_state_dict(shader, original.state_dict())
    noisy, level = torch.randn(1, 16, 3, 4, 6), torch.full((1, 3), 0.7)
    semantic = torch.randn(1, 5, 768)
    condition = ShaderCondition(guide=torch.zeros_like(noisy), semantic=semantic)
    ours = shader(noisy, level, condition).velocity
    theirs = original(noisy, torch.full((1,), 700.0), shader.semantic_projection(semantic)).sample
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user would download and train, small and random: the folder that the configs call `weights`."""
    transformers = pytest.importorskip("transformers", reason="needs the dinov2 extra")
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    wan = folder / "Wan2.1-T2V-1.3B-Diffusers"
    AutoencoderKLWan(**SMALL_VAE).save_pretrained(wan / "vae")
    WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=32, ffn_dim=64,
        num_layers=2,
    ).save_pretrained(wan / "transformer")  # fmt: skip
    transformers.Dinov2Model(transformers.Dinov2Config(**SMALL_DINO)).save_pretrained(folder / "dinov2-base")
    options = ReconstructorOptions(
        **SMALL_OPTIONS,
        semantic=DinoEncoder(str(folder / "dinov2-base"), image_size=28),
        visual=WanVisualEncoder(str(wan), width=8),
    )
    reconstructor = build_reconstructor(str(ROOT / BODY), True, 16, options)
    save_weights(folder / "reconstruction.safetensors", reconstructor.state_dict(), {})
    shader = VideoShader(**{**full_arguments("shader"), **SMALL_SHADER})
    for name in ("teacher", "student_ode", "student"):
        save_weights(folder / f"{name}.safetensors", shader.state_dict(), {})
    return folder


def shrunk(stage: str, weights: Path, clip: Path) -> list[str]:
    """The stage's full-size command with small sizes, one process on the CPU, and everything else as it stands."""
    options = "--model.init_args.reconstructor_options"
    overrides = {f"{options}.{name}": value for name, value in SMALL_OPTIONS.items()}
    overrides |= {
        f"{options}.semantic.init_args.image_size": 28,
        f"{options}.semantic.init_args.pretrained": weights / "dinov2-base",
        f"{options}.visual.init_args.width": 8,
        f"{options}.visual.init_args.pretrained": weights / "Wan2.1-T2V-1.3B-Diffusers",
        "--data.clips": json.dumps([{"path": str(clip)}]),
        "--data.body_model": BODY,
        "--data.schedule": json.dumps([{"start": 0, "resolution": 64, "num_frames": 9, "batch_size": 1}]),
        "--data.resolution": 64, "--data.num_steps": 1, "--data.validation_frames": 5, "--data.num_workers": 0,
        "--trainer.accelerator": "cpu", "--trainer.devices": 1, "--trainer.strategy": "auto",
        "--trainer.val_check_interval": 1, "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }  # fmt: skip
    if stage != "reconstruction":
        overrides |= {f"--model.init_args.shader.init_args.{name}": value for name, value in SMALL_SHADER.items()}
        overrides["--model.init_args.codec.init_args.pretrained"] = weights / "Wan2.1-T2V-1.3B-Diffusers"
        overrides["--model.init_args.reconstruction_weights"] = weights / "reconstruction.safetensors"
    if stage == "teacher":
        overrides["--model.init_args.wan_checkpoint"] = weights / "Wan2.1-T2V-1.3B-Diffusers"
    elif stage != "reconstruction":
        student = yaml.safe_load((ROOT / CHAINS[stage][-1]).read_text())["model"]["init_args"]["student_weights"]
        overrides["--model.init_args.teacher_weights"] = weights / "teacher.safetensors"
        overrides["--model.init_args.student_weights"] = weights / Path(student).name
        option, value = ("trajectory_steps", 2) if stage == "ode" else ("critic_updates", 1)
        overrides[f"--model.init_args.{option}"] = value
    return [
        "fit",
        *(part for path in CHAINS[stage] for part in ("-c", path)),
        *(f"{k}={v}" for k, v in overrides.items()),
    ]


@pytest.fixture
def _in_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "RUNS", tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.usefixtures("_in_repository")
@pytest.mark.parametrize("stage", CHAINS)
def test_each_full_size_config_is_built(stage: str, downloads: Path, clip_path: Path) -> None:
    cli = train.main(shrunk(stage, downloads, clip_path), cli=train.BuildOnly)
    stage_module = cli.model
    assert cli.trainer.precision == "bf16-mixed"
    if stage == "reconstruction":
        assert isinstance(stage_module.reconstructor.semantic, DinoEncoder)
        return
    reconstructor = stage_module.conditioner.reconstructor
    assert isinstance(reconstructor.semantic, DinoEncoder)
    assert isinstance(reconstructor.visual, WanVisualEncoder)
    assert not any(parameter.requires_grad for parameter in stage_module.conditioner.parameters())
    if stage == "teacher":
        (file,) = (downloads / "Wan2.1-T2V-1.3B-Diffusers" / "transformer").glob("*.safetensors")
        weight = load_file(file)["proj_out.weight"]
        assert torch.equal(stage_module.shader.transformer.proj_out.weight, weight)
    else:
        # Self-Forcing's steps 1000, 750, 500, 250 under shift 5: s = 5 t / (1 + 4 t).
        expected = [5 * t / (1 + 4 * t) for t in (1.0, 0.75, 0.5, 0.25)]
        assert stage_module.noise_levels == pytest.approx(expected, abs=1e-4)
        window = stage_module.rollout.window
        assert (window.sink_frames, window.capacity) == (3, 12)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_repository")
@pytest.mark.parametrize("stage", ["reconstruction", "student"])
def test_full_size_stages_train_in_mixed_precision(stage: str, downloads: Path, clip_path: Path) -> None:
    arguments = shrunk(stage, downloads, clip_path)
    cli = train.main([*arguments, "--model.init_args.learning_rate=0.1"])
    (file,) = train.RUNS.glob("*/version_0/weights.safetensors")
    if stage == "student":
        # Steps without gradient come before the one that learns: mixed precision must not lose its graph.
        before, after = load_file(downloads / "student_ode.safetensors"), load_file(file)
        # The head's outputs meet weights that start at zero: its own gradients begin with the second step.
        names = [name for name, value in before.items() if value.ndim > 1 and not name.startswith("condition_head.")]
        assert [name for name in names if torch.equal(before[name], after[name])] == []
    else:
        frozen = cli.model.reconstructor.semantic.backbone.state_dict()
        (original,) = (downloads / "dinov2-base").glob("*.safetensors")
        assert torch.equal(frozen["layernorm.weight"], load_file(original)["layernorm.weight"])


SHARDING = """
import sys, torch, lightning
from torch import nn
from torch.utils.data import DataLoader
from visa.lightning_modules.strategy import ShardedOptimizerDDP
from lightning.pytorch.strategies import DDPStrategy


class Two(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.first, self.second = (nn.Sequential(*(nn.Linear(8, 8) for _ in range(6))) for _ in range(2))

    def configure_optimizers(self):
        pairs = []
        for network, rate in ((self.first, 1e-2), (self.second, 3e-3)):
            optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.0, 0.99), weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
            pairs.append({"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}})
        return pairs

    def training_step(self, batch, index):
        for network, optimizer, schedule in zip(
            (self.first, self.second), self.optimizers(), self.lr_schedulers(), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward((network(batch) - batch.flip(1)).square().mean())
            optimizer.step()
            schedule.step()


class One(Two):
    # Automatic optimization: the optimizer calls the closure, the trainer clips.

    def __init__(self):
        super().__init__()
        self.automatic_optimization = True

    def configure_optimizers(self):
        return super().configure_optimizers()[0]

    def training_step(self, batch, index):
        return (self.first(batch) - batch.flip(1)).square().mean()


def run(strategy, steps, resume=None, module=Two):
    torch.manual_seed(1)
    data = torch.randn(1, 2, 8).expand(8, 2, 8)  # equal batches, for a resumed loader begins anew
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=2 * steps if module is Two else steps, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=None if module is Two else 0.01,
    )
    model = module()
    trainer.fit(model, DataLoader(data, batch_size=None), ckpt_path=resume)
    return trainer, model


def options():
    return {"find_unused_parameters": True, "gradient_as_bucket_view": True, "process_group_backend": "gloo"}


if __name__ == "__main__":
    folder = sys.argv[1]
    _, plain = run(DDPStrategy(**options()), 4)
    trainer, _ = run(ShardedOptimizerDDP(**options()), 2)
    held = sum(v.numel() for o in trainer.optimizers for s in o.optim.state.values() for v in s.values() if v.ndim)
    trainer.save_checkpoint(folder + "/half.ckpt")
    rates = [o.param_groups[0]["lr"] for o in trainer.optimizers]
    _, sharded = run(ShardedOptimizerDDP(**options()), 4, folder + "/half.ckpt")
    total = 2 * sum(p.numel() for p in sharded.parameters())
    closed = [run(kind(**options()), 3, module=One)[1].state_dict() for kind in (DDPStrategy, ShardedOptimizerDDP)]
    torch.save(
        {"plain": plain.state_dict(), "sharded": sharded.state_dict(), "held": held, "total": total, "rates": rates,
         "closed": closed},
        folder + f"/rank{trainer.global_rank}.pt",
    )
"""


@pytest.mark.slow
def test_sharded_optimizers_step_resume_and_share_memory(tmp_path: Path) -> None:
    """Two processes: the weights after 2 steps, a checkpoint and 2 more are those of 4 steps of plain DDP."""
    (tmp_path / "sharding.py").write_text(SHARDING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "sharding.py", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for rank in ranks:
        for name, value in rank["plain"].items():
            assert torch.equal(rank["sharded"][name], value), name
        first, second = rank["closed"]
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        assert rank["rates"] == pytest.approx([1e-2 / 3, 3e-3 / 3])
    # The two shares are the whole, and neither holds much more than half.
    assert sum(rank["held"] for rank in ranks) == ranks[0]["total"]
    assert max(rank["held"] for rank in ranks) < 0.6 * ranks[0]["total"]


def test_geometry_keeps_full_precision_under_autocast() -> None:
    layer = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.rand(2, 4)).dtype == torch.bfloat16
        assert full_precision(layer)(torch.rand(2, 4)).dtype == torch.float32
        assert layer(torch.rand(2, 4)).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_a_full_width_block_in_bfloat16_stays_near_float32() -> None:
    """Mixed precision on the GPU, against the same network in float32 there."""
    torch.manual_seed(0)
    shader = VideoShader(**{**full_arguments("shader"), "num_layers": 1}).eval().cuda()
    noisy, level = torch.randn(1, 16, 3, 8, 8, device="cuda"), torch.full((1, 3), 0.7, device="cuda")
    condition = ShaderCondition(
        guide=torch.randn(1, 16, 3, 8, 8, device="cuda"), semantic=torch.randn(1, 5, 768, device="cuda")
    )
    exact = shader(noisy, level, condition).velocity
    with torch.autocast("cuda", torch.bfloat16):
        mixed = shader(noisy, level, condition).velocity
    assert (mixed - exact).norm() < 0.02 * exact.norm()
