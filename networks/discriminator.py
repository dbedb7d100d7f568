"""Adversarial judge on a video shader's tokens: is this clip real, given this photo?

Shapes as in `networks/shader`; K depths, W width of the branches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visa.networks.shader import ShaderCondition, TokenFeatures, VideoShader, attend


@dataclass
class Logits:
    """Larger is more real: local `[B,T]`, one a latent frame; clip `[B]`, one a clip."""

    local: Tensor
    clip: Tensor


class WanDiscriminator(nn.Module):
    """Classification heads on the tokens that a (pretrained) shader computes of a noised clip.

    The local branch: a register token cross-attends the tokens of one frame after each depth; the K answers,
    concatenated, give that frame's logit. The global branch: the reference photo's tokens attend those of all frames,
    so that it is judged whether the clip shows this person; without `use_reference` one register token asks in their
    place.

    Args:
        backbone: the shader to read tokens from. Frozen, it may belong to another module as well; give a copy where it
            is to be trained, or where that module trains it.
        depths: shares of the backbone's blocks after which tokens are taken.
        width: W, None for the backbone's token width.
        num_heads: of the branches' attention; divides W.
        use_reference: whether the global branch asks with the reference's tokens.
        train_backbone: whether the backbone learns too; otherwise it is frozen and lets gradients through to its input
            alone.
    """

    def __init__(
        self,
        backbone: VideoShader,
        depths: Sequence[float] = (0.45, 0.70, 0.97),
        width: int | None = None,
        num_heads: int = 4,
        use_reference: bool = True,
        train_backbone: bool = False,
    ) -> None:
        super().__init__()
        num_layers = len(backbone.blocks)
        if not depths or not all(0 < depth <= 1 for depth in depths):
            raise ValueError(f"depths {list(depths)}: give shares of the backbone's depth above 0 and up to 1")
        # Shallow backbones map two depths to one block: it is read once.
        self.layers = sorted({math.ceil(depth * num_layers) - 1 for depth in depths})
        token_width = backbone.num_heads * backbone.head_dim
        width = token_width if width is None else width
        self.backbone = backbone.requires_grad_(train_backbone)
        self.train_backbone, self.use_reference = train_backbone, use_reference
        self.local_probes = nn.ModuleList(TokenProbe(token_width, width, num_heads, False) for _ in self.layers)
        self.clip_probes = nn.ModuleList(TokenProbe(token_width, width, num_heads, use_reference) for _ in self.layers)
        self.local_head = _head(len(self.layers) * width, width)
        self.clip_head = _head(len(self.layers) * width, width)

    def forward(self, noisy: Tensor, level: Tensor, condition: ShaderCondition) -> Logits:
        """Judge noised latents `[B,C,T,h,w]` at levels `[B,T]`; real and fake must be given at the same levels."""
        if self.use_reference and condition.reference is None:
            raise ValueError(
                "the global branch needs a reference: give one in the condition, or set use_reference to false"
            )
        # A frozen backbone of an input without gradient needs no graph: the judge's own updates are then cheap.
        needs_graph = torch.is_grad_enabled() and (self.train_backbone or noisy.requires_grad)
        with torch.set_grad_enabled(needs_graph):
            features = self.backbone.features(noisy, level, condition, self.layers)
        return self.judge(features)

    def judge(self, features: Sequence[TokenFeatures]) -> Logits:
        """Logits from the backbone's tokens after `self.layers`."""
        batch, num_frames = features[0].frames.shape[:2]
        local, clip = [], []
        for probe, clip_probe, feature in zip(self.local_probes, self.clip_probes, features, strict=True):
            local.append(probe(feature.frames.flatten(0, 1), None).unflatten(0, (batch, num_frames)))
            question = None
            if self.use_reference:
                assert feature.reference is not None  # `forward` has asked for it
                question = feature.reference.flatten(1, 2)
            clip.append(clip_probe(feature.frames.flatten(1, 2), question))
        return Logits(
            self.local_head(torch.cat(local, dim=-1)).squeeze(-1), self.clip_head(torch.cat(clip, dim=-1)).squeeze(-1)
        )


class TokenProbe(nn.Module):
    """A hidden layer on each token, then cross-attention that sums them up in one vector: tokens `[B,L,D]` -> `[B,W]`.

    The question is one learned register token, or (`asks_with_tokens`) M tokens `[B,M,D]`, each of which is compared
    with its answer before the mean is taken.
    """

    def __init__(self, token_width: int, width: int, num_heads: int, asks_with_tokens: bool) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads {num_heads} must divide the discriminator's width {width}")
        self.num_heads = num_heads
        # Tokens between blocks are unnormalised and grow with depth.
        self.norm = nn.LayerNorm(token_width)
        # Attention is linear in its values: texture, a second moment, shows only if each token is bent by itself first.
        self.hidden = nn.Sequential(nn.Linear(token_width, width), nn.GELU())
        self.key_value = nn.Linear(width, 2 * width)
        self.query = nn.Linear(token_width, width) if asks_with_tokens else None
        self.register_token = None if asks_with_tokens else nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.compare = (
            nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width)) if asks_with_tokens else None
        )

    def forward(self, tokens: Tensor, question: Tensor | None) -> Tensor:
        key, value = self.key_value(self.hidden(self.norm(tokens))).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        if self.register_token is not None:
            query = self.register_token.to(key.dtype).expand(tokens.shape[0], 1, -1)
        else:
            assert self.query is not None
            query = self.query(self.norm(question))
        answer = attend(query.unflatten(-1, (self.num_heads, -1)), key, value).flatten(-2)
        if self.compare is not None:
            answer = self.compare(torch.cat([answer, query], dim=-1))
        return answer.mean(1)


def _head(in_features: int, width: int) -> nn.Sequential:
    """LayerNorm and two layers to one logit."""
    return nn.Sequential(nn.LayerNorm(in_features), nn.Linear(in_features, width), nn.GELU(), nn.Linear(width, 1))
