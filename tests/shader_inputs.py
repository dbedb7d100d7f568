"""Small shaders and what they paint from, for the tests of everything that is built on a shader."""

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from visa.networks.shader import PICTURE_CHANNELS, ShaderCondition, VideoShader

SMALL = {
    "latent_channels": 4,
    "feature_channels": 2,
    "semantic_dim": 8,
    "condition_channels": 3,
    "spatial_stride": 8,
    "num_heads": 2,
    "head_dim": 12,
    "num_layers": 3,
    "ffn_dim": 32,
    "text_dim": 16,
    "freq_dim": 16,
    "head_channels": 8,
}
MAP_CHANNELS = SMALL["feature_channels"] + PICTURE_CHANNELS


def make_shader(**overrides: object) -> VideoShader:
    """A small shader, all weights away from their special starts."""
    torch.manual_seed(0)
    shader = VideoShader(**{**SMALL, **overrides}).eval()
    with torch.no_grad():
        for name, parameter in shader.named_parameters():
            # The condition head reads a thousand random numbers a latent: its output stays of size one.
            parameter.add_((0.01 if "condition_head" in name else 0.1) * torch.randn_like(parameter))
    return shader


def make_condition(num_frames: int = 8, batch: int = 2, temporal_stride: int = 1) -> ShaderCondition:
    """Every signal, random: `num_frames` latent frames of 4x6."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return ShaderCondition(
        guide=normal(batch, 4, num_frames, 4, 6),
        maps=normal(batch, 1 + temporal_stride * (num_frames - 1), MAP_CHANNELS, 32, 48),
        reference=normal(batch, 4, 1, 4, 6),
        reference_guide=normal(batch, 4, 1, 4, 6),
        reference_maps=normal(batch, 1, MAP_CHANNELS, 32, 48),
        semantic=normal(batch, 5, 8),
    )


def make_noisy(num_frames: int = 8, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Latents `[B,4,T,4,6]` and a level for each frame."""
    generator = torch.Generator().manual_seed(2)
    shape = (batch, 4, num_frames, 4, 6)
    return torch.randn(shape, generator=generator), torch.rand(batch, num_frames, generator=generator)


def make_wan_1_3b() -> tuple[VideoShader, WanTransformer3DModel]:
    """The shader at the size of Wan-AI/Wan2.1-T2V-1.3B-Diffusers, and diffusers' own; without memory (meta device)."""
    with torch.device("meta"):
        shader = VideoShader(
            latent_channels=16, semantic_dim=768, temporal_stride=4, num_heads=12, head_dim=128, num_layers=30,
            ffn_dim=8960, text_dim=4096, guide_skip_init=0.0,
        )  # fmt: skip
        original = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960, text_dim=4096
        )
    return shader, original
