"""A person and a small shader for the tests of what is live."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ROOT
from visa.live.shading import Shading
from visa.networks.codec import BlockCodec
from visa.networks.fit import FitOptions
from visa.networks.shader import VideoShader, Window
from visa.networks.splat_maps import MatteOptions
from visa.person import Person


@pytest.fixture(scope="session")
def person() -> Person:
    return Person.from_photos(ROOT / "assets/photos/astronaut.png", resolution=64, size=128, fit=FitOptions(steps=3))


@pytest.fixture(scope="session")
def shading() -> Shading:
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "head_dim": 12, "num_layers": 2, "ffn_dim": 32, "text_dim": 16, "freq_dim": 16}
    shader = VideoShader(**sizes, head_channels=8, condition_channels=4, prediction="x0").eval()
    with torch.no_grad():
        for name, parameter in shader.named_parameters():  # away from zero, so that it paints
            parameter.add_((0.01 if "condition_head" in name else 0.1) * torch.randn_like(parameter))
    return Shading(shader, BlockCodec(), (1.0, 0.5), Window(0, 3), MatteOptions(), 64)
