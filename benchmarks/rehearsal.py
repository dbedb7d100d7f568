"""Every full-size config without memory: `python -m visa.benchmarks.rehearsal [--gpu H100] [--num_gpus 8] [--json]`.

For each stage: parameters that train and that are frozen, memory of one GPU before activations, and operations.
Networks of the shading stages live on the meta device (`visa.tools.estimate_scale`), as do the encoders of the
reconstruction; its template is the shipped body's. Operations are those of one streamed chunk where the stage has a
shader, and those of the encoders on one photo for the reconstruction. A stage that takes more memory than the GPU has
is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from visa.artifacts.configs import read_config
from visa.benchmarks.command import Figure, at_least_one, command_line, print_json, run, say
from visa.networks.encoders import DinoEncoder, WanVisualEncoder
from visa.networks.reconstructor_options import ReconstructorOptions
from visa.runtime.shipped import BODY, build_reconstructor
from visa.tools.estimate_scale import FLOAT, GIB, GPUS, counted, estimate, networks, parameters, read

SCALE = "configs/scale/wan_1_3b"
CONFIGS = {
    "reconstruction": ["configs/reconstruction.yaml", f"{SCALE}_reconstruction.yaml"],
    "teacher": ["configs/teacher.yaml", f"{SCALE}.yaml", f"{SCALE}_teacher.yaml"],
    "shader_ode": ["configs/shader_ode.yaml", f"{SCALE}.yaml", f"{SCALE}_ode.yaml"],
    "shader": ["configs/shader.yaml", f"{SCALE}.yaml", f"{SCALE}_student.yaml"],
    "adversarial": ["configs/adversarial.yaml", f"{SCALE}.yaml", f"{SCALE}_adversarial.yaml"],
}


def rehearse_reconstruction(paths: Sequence[str]) -> dict[str, float]:
    """Parameters, memory and operations of the reconstruction; its encoders have no memory."""
    config = read_config(paths[-1])
    options = config["model"]["init_args"]["reconstructor_options"]
    semantic, visual = options["semantic"]["init_args"], options["visual"]["init_args"]
    with torch.device("meta"):
        tokens = DinoEncoder(config={"image_size": semantic["image_size"]}, image_size=semantic["image_size"])
        pixels = WanVisualEncoder(width=visual["width"])
    sizes = {name: value for name, value in options.items() if name not in ("semantic", "visual")}
    network = build_reconstructor(BODY, True, 16, ReconstructorOptions(**sizes, semantic=tokens, visual=pixels))
    trained = sum(one.numel() for one in network.parameters() if one.requires_grad)
    frozen = parameters(network) - trained
    side = config["data"]["resolution"]
    photo = torch.empty(1, 3, side, side, device="meta"), torch.empty(1, 1, side, side, device="meta")
    flops = sum(counted(encoder, *photo).flops for encoder in (tokens, pixels))
    memory = FLOAT * (trained + frozen) + 4 * FLOAT * trained  # weights; gradients, two moments, the average
    return {"trained": trained, "frozen": frozen, "gib": memory / GIB, "tflop": flops / 1e12}


def rehearse_shading(paths: Sequence[str], gpu: str, num_gpus: int) -> dict[str, float]:
    """The same of a stage with a shader; with what its rollouts hold."""
    figures, (trained, frozen, _) = estimate(list(paths), gpu, num_gpus), networks(read(list(paths)))
    held = [name for name in figures if name.startswith(("training_gib_before", "training_gib_rollout"))]
    flops = sum(float(value) for name, value in figures.items() if name.startswith("gflop_"))
    return {
        "trained": sum(trained.values()),
        "frozen": sum(frozen.values()),
        "gib": sum(float(figures[name]) for name in held),
        "tflop": flops / 1e3,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--gpu", default="H100", choices=GPUS, help="whose memory counts (default: %(default)s)")
    parser.add_argument("--num_gpus", type=at_least_one, default=8, help="that train together (default: %(default)s)")
    given = parser.parse_args(arguments)
    room = GPUS[given.gpu].memory * 1e9 / GIB
    figures: dict[str, Figure] = {"gpu": given.gpu, "num_gpus": given.num_gpus, "gpu_gib": room}
    say(f"{'stage':15} {'trained':>9} {'frozen':>9} {'GiB a GPU':>10} {'Tflop':>8}   ({given.gpu}: {room:.1f} GiB)")
    for stage, paths in CONFIGS.items():
        if stage == "reconstruction":
            row = rehearse_reconstruction(paths)
        else:
            row = rehearse_shading(paths, given.gpu, given.num_gpus)
        counts = f"{row['trained'] / 1e6:8.1f}M {row['frozen'] / 1e6:8.1f}M"
        say(f"{stage:15} {counts} {row['gib']:10.1f} {row['tflop']:8.2f}")
        figures |= {f"{name}_{stage}": value for name, value in row.items()}
    print_json(figures, given.json)
    if too_large := [stage for stage in CONFIGS if float(figures[f"gib_{stage}"] or 0) > room]:
        sys.exit(f"error: {', '.join(too_large)}: more than a {given.gpu} holds, before activations: use more GPUs")


if __name__ == "__main__":
    run(main)
