"""What the repository ships, loaded; and the commands that make it."""

from __future__ import annotations

from visa.artifacts.weights import load_weights
from visa.networks.body import BodyModel
from visa.networks.reconstructor import GaussianReconstructor
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.networks.template import build_template

BODY = "assets/body/smplx_anny.npz"
WEIGHTS = "assets/weights/reconstruction.safetensors"
BACKGROUND = (0.5, 0.5, 0.5)  # behind the matted person
# What makes the weights of a stage. A run on overlays (configs/scale: the full size) needs those of its own overlays.
COMMANDS = {
    stage: f"python train.py fit -c configs/{stage}.yaml [-c OVERLAYS OF THIS RUN]"
    for stage in ("reconstruction", "teacher", "shader_ode", "shader", "adversarial")
}


def build_reconstructor(
    body_model: str, remove_neck: bool, feature_channels: int, options: ReconstructorOptions | None = None
) -> GaussianReconstructor:
    """The reconstructor on the template of a body model file; without `options`, of the embedded size."""
    body = BodyModel.from_file(body_model)
    return GaussianReconstructor(body, build_template(body, remove_neck), feature_channels, options)


def load_reconstructor(body_model: str, weights: str, feature_channels: int = 16) -> GaussianReconstructor:
    """The reconstructor with trained weights, ready to use."""
    reconstructor = build_reconstructor(body_model, remove_neck=True, feature_channels=feature_channels)
    load_weights(reconstructor, weights, COMMANDS["reconstruction"])
    return reconstructor.eval()
