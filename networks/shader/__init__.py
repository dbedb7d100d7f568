"""The video shader: diffusers' Wan transformer, told what to paint by splatted maps, a photo and F_sem tokens.

Shapes: B batch, C latent channels, T latent frames, Tpix pixel frames, H W pixels, h w latent grid, N tokens a frame, D
token width, F splatted feature channels, R reference frames (0 or 1). Noise level s in [0,1]: x_s = (1 - s) x0 + s e,
velocity v = e - x0.
"""

from visa.networks.shader.attention import (
    AttentionContext,
    AttentionMode,
    RotaryTable,
    SemanticContext,
    Window,
    attend,
    rotate,
)
from visa.networks.shader.condition import PICTURE_CHANNELS, SIGNALS, ShaderCondition, Signal
from visa.networks.shader.head import ConditionHead
from visa.networks.shader.model import EmbeddedLevel, Prediction, TokenFeatures, VideoShader
from visa.networks.shader.wan import load_wan_checkpoint, load_wan_state_dict

__all__ = [
    "PICTURE_CHANNELS",
    "SIGNALS",
    "AttentionContext",
    "AttentionMode",
    "ConditionHead",
    "EmbeddedLevel",
    "Prediction",
    "RotaryTable",
    "SemanticContext",
    "ShaderCondition",
    "Signal",
    "TokenFeatures",
    "VideoShader",
    "Window",
    "attend",
    "load_wan_checkpoint",
    "load_wan_state_dict",
    "rotate",
]
