"""Speed of the CPU rasterizer against tiled PyTorch: `python -m visa.benchmarks.rasterizer [--json]`.

The scene is the upper half of the shipped body, which fills 40 % of the picture: Gaussians on the
triangles (as dense as the vertices are, so denser on face and hands), as wide as their spacing, opacity 0.8.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from visa.benchmarks.command import add_threads, command_line, print_json, run, say
from visa.networks.rasterizer import rasterize
from visa.networks.rasterizer.reference import rasterize_tiled

BODY = Path(__file__).parent.parent / "assets" / "body" / "smplx_anny.npz"
COVERAGE = 0.4
CHANNELS = 20
OPACITY = 0.8
FIELD = 1.3  # focal length in picture widths
BOTTOM = -0.45  # m, below the chest: lowest triangles taken; the body's origin is at its chest
REACH = 0.3  # m, to either side: the arms beyond would be outside of the picture
Scene = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # means, quats, scales, opacities, features


def place_gaussians(count: int, seed: int = 0) -> Scene:
    """means `[1,N,3]`, quats `[1,N,4]`, scales `[1,N,3]`, opacities `[1,N]`, features `[1,N,C]` on the upper body."""
    if not BODY.exists():
        raise SystemExit(f"{BODY} is missing: check the repository's assets out")
    with np.load(BODY, allow_pickle=False) as body:
        corners = torch.from_numpy(body["v_template"][body["f"].astype(np.int64)]).float()  # [F,3,3]
    middle = corners.mean(1)
    corners = corners[(middle[:, 1] > BOTTOM) & (middle[:, 0].abs() < REACH)]
    generator = torch.Generator().manual_seed(seed)
    face = torch.randint(len(corners), (count,), generator=generator)
    weights = torch.rand(count, 3, generator=generator).log().neg()  # uniform on the triangle after normalising
    means = torch.einsum("nk,nkd->nd", weights / weights.sum(1, keepdim=True), corners[face])
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[face]
    spacing = (0.5 * normal.norm(dim=1) * len(corners) / count).sqrt()
    normal = functional.normalize(normal, dim=1)
    up = torch.tensor([0.0, 0.0, 1.0]).expand_as(normal)
    quats = torch.cat([1 + normal[:, 2:], torch.linalg.cross(up, normal)], dim=1)  # turns z to the normal
    scales = spacing[:, None] * torch.tensor([1.0, 1.0, 0.2])
    features = torch.rand(count, CHANNELS, generator=generator)
    return means[None], quats[None], scales[None], torch.full((1, count), OPACITY), features[None]


def frame(gaussians: Scene, size: int) -> tuple[tuple[Tensor, Tensor], float]:
    """Camera in front of the body, at the distance at which it fills `COVERAGE` of the picture; and what it fills."""
    means = gaussians[0][0]
    centre = (means.amin(0) + means.amax(0)) / 2
    intrinsics = torch.tensor([[[FIELD * size, 0, size / 2], [0, FIELD * size, size / 2], [0, 0, 1]]])
    camera = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))[None]  # the body is y-up and looks along z
    near, far = 0.3, 5.0
    for _ in range(12):
        distance = (near + far) / 2
        camera[0, :3, 3] = torch.stack([-centre[0], centre[1], centre[2] + distance])
        covered = rasterize(*gaussians, intrinsics, camera, size, size).alpha.gt(0.5).float().mean().item()
        near, far = (distance, far) if covered > COVERAGE else (near, distance)
    return (intrinsics, camera), covered


def time_ms(function: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of `function`, after one warm-up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def measure(count: int, size: int, repeats: int) -> dict[str, float]:
    """Milliseconds of both, forward and forward + backward, at one number of Gaussians and one picture size."""
    gaussians = place_gaussians(count)
    cameras, covered = frame(gaussians, size)
    means, quats, scales, opacities, features = (tensor.clone().requires_grad_() for tensor in gaussians)
    leaves = means, quats, scales, opacities, features

    def ours(inputs: Scene) -> tuple[Tensor, Tensor]:
        splat = rasterize(*inputs, *cameras, size, size)
        return splat.image, splat.alpha

    def torch_tiled(inputs: Scene) -> tuple[Tensor, Tensor]:
        return rasterize_tiled(*inputs, *cameras, size, size, 0.01)

    def step(render: Callable[[Scene], tuple[Tensor, Tensor]]) -> None:
        image, alpha = render(leaves)
        torch.autograd.grad(image.sum() + alpha.sum(), leaves)

    with torch.no_grad():
        difference = (ours(gaussians)[0] - torch_tiled(gaussians)[0]).abs()
        if difference.mean() > 1e-4:
            raise AssertionError(f"the two renderers differ by {difference.mean():.2e} on average: nothing to compare")
        result = {
            "coverage": covered,
            "forward_ms": time_ms(lambda: ours(gaussians), repeats),
            "torch_forward_ms": time_ms(lambda: torch_tiled(gaussians), max(repeats // 5, 2)),
        }
    result["forward_backward_ms"] = time_ms(lambda: step(ours), repeats)
    result["torch_forward_backward_ms"] = time_ms(lambda: step(torch_tiled), max(repeats // 5, 2))
    result["speedup_forward"] = result["torch_forward_ms"] / result["forward_ms"]
    result["speedup_forward_backward"] = result["torch_forward_backward_ms"] / result["forward_backward_ms"]
    return result


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="timed runs of our kernel; PyTorch gets a fifth")
    add_threads(parser)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    flat: dict[str, float | int] = {
        "threads": torch.get_num_threads(),
        "channels": CHANNELS,
        "load": os.getloadavg()[0],
    }
    say(f"{'size':>5} {'N':>6} {'filled':>7} {'pass':>9} {'ours ms':>9} {'torch ms':>9} {'times':>7}")
    for size in (128, 256):
        for count in (14_000, 40_000):
            result = measure(count, size, arguments.repeats)
            suffix = f"{size}px_{count // 1000}k"
            flat |= {f"{name}_{suffix}": value for name, value in result.items()}
            for name, label in (("forward", "forward"), ("forward_backward", "+backward")):
                ours, theirs, times = (result[key] for key in (f"{name}_ms", f"torch_{name}_ms", f"speedup_{name}"))
                row = (
                    f"{size:5d} {count:6d} {result['coverage']:7.1%} {label:>9} {ours:9.2f} {theirs:9.1f} {times:6.1f}x"
                )
                say(row)
    print_json(flat, arguments.json, digits=3)


if __name__ == "__main__":
    run(main)
