"""The video shader: diffusers' Wan transformer, told what to paint by splatted maps, a photo and F_sem tokens."""

from visa.networks.shader.model import (
    PICTURE_CHANNELS,
    SIGNALS,
    AttentionContext,
    AttentionMode,
    ConditionHead,
    EmbeddedLevel,
    Prediction,
    RotaryTable,
    SemanticContext,
    ShaderCondition,
    Signal,
    TokenFeatures,
    VideoShader,
    Window,
    attend,
    rotate,
)

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
    "rotate",
]
