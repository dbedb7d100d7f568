"""Pretrained weights: a diffusers-format Wan 2.1 text-to-video transformer in the video shader."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from visa.networks.shader.model import VideoShader


def load_wan_state_dict(shader: VideoShader, state: dict[str, Tensor]) -> None:
    """Take the weights of a diffusers-format Wan 2.1 text-to-video transformer; every key must fit.

    Only the patch embedding differs: its first `latent_channels` inputs are copied, the added ones become zero.
    """
    own = shader.transformer.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        raise ValueError(
            f"the Wan weights lack {len(missing)} tensors ({missing[0]}, ...): is it the right checkpoint?"
        )
    if unexpected := sorted(state.keys() - own.keys()):
        raise ValueError(
            f"the Wan weights hold {len(unexpected)} unknown tensors ({unexpected[0]}, ...): use Wan 2.1 T2V"
        )
    name = "patch_embedding.weight"
    latent_weight = state[name]
    if latent_weight.shape[1] != shader.latent_channels:
        raise ValueError(
            f"{name} reads {latent_weight.shape[1]} latent channels, the shader has {shader.latent_channels}"
        )
    padding = own[name].shape[1] - shader.latent_channels
    state = {**state, name: F.pad(latent_weight, (0, 0, 0, 0, 0, 0, 0, padding))}
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{key} is {tuple(value.shape)}, the shader's {tuple(own[key].shape)}: check its sizes")
    shader.transformer.load_state_dict(state, assign=next(iter(own.values())).is_meta)


def load_wan_checkpoint(shader: VideoShader, folder: str | Path) -> None:
    """`load_wan_state_dict` from a folder of diffusers safetensors (a `transformer` subfolder is found too)."""
    folder = Path(folder)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ValueError(f"no safetensors in {folder}: download Wan-AI/Wan2.1-T2V-1.3B-Diffusers and give its folder")
    load_wan_state_dict(shader, {key: value for shard in shards for key, value in load_file(str(shard)).items()})
