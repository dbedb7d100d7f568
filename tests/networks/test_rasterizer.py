"""The rasterizer against a slow dense reference, gsplat's own torch code, and itself on other threads and batches."""

import math
import multiprocessing.connection
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import ROOT
from visa.networks.rasterizer import Splat, rasterize
from visa.networks.rasterizer.reference import project_dense, rasterize_dense, rasterize_tiled, rotation_matrices

WIDTH, HEIGHT, NEAR = 45, 37, 0.01
NAMES = ("means", "quats", "scales", "opacities", "features", "intrinsics", "world_to_camera")


def make_scene(
    batch: int, count: int, channels: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Random Gaussians of all sizes, partly outside of the picture, seen by slightly turned cameras 2 m away."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = (uniform(batch, count, 3) - 0.5) * torch.tensor([2.4, 2.4, 1.0])
    scales = torch.exp(0.8 * normal(batch, count, 3) - 3.0)
    intrinsics = torch.tensor([[1.2 * WIDTH, 0, 0.52 * WIDTH], [0, 1.3 * WIDTH, 0.47 * HEIGHT], [0, 0, 1]])
    camera = torch.eye(4, dtype=torch.float64).repeat(batch, 1, 1)
    camera[:, :3, :3] = rotation_matrices(torch.tensor([1.0, 0.05, -0.03, 0.02]) + 0.03 * normal(batch, 4))
    camera[:, :3, 3] = torch.tensor([0.0, 0.0, 2.0]) + 0.05 * normal(batch, 3)
    scene = [means, normal(batch, count, 4), scales, uniform(batch, count), normal(batch, count, channels)]
    return [tensor.to(dtype) for tensor in (*scene, intrinsics.repeat(batch, 1, 1), camera)]


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of a random linear function of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum((out * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in outputs)
    return torch.autograd.grad(loss, inputs)


def outputs_of(splat: Splat) -> tuple[Tensor, Tensor, Tensor]:
    return splat.image, splat.alpha, splat.depth


def check_against_dense(scene: list[Tensor], width: int = WIDTH, height: int = HEIGHT) -> Splat:
    """Values to 1e-5 and all gradients to 1e-4 of their largest entry."""
    inputs = [tensor.clone().requires_grad_() for tensor in scene]
    splat = rasterize(*inputs, width, height, near=NEAR)
    expected = rasterize_dense(*inputs, width, height, NEAR)
    for got, want in zip(outputs_of(splat), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    pairs = zip(NAMES, gradients(outputs_of(splat), inputs), gradients(expected, inputs), strict=True)
    for name, got, want in pairs:
        assert torch.isfinite(got).all(), name
        if want.numel():
            assert (got - want).abs().max() <= 1e-4 * want.abs().max() + 1e-12, name
    return splat


@pytest.mark.parametrize(("channels", "seed"), [(1, 0), (3, 1), (20, 2), (37, 3)])
def test_random_scenes_match_dense(channels: int, seed: int) -> None:
    splat = check_against_dense(make_scene(2, 70, channels, seed))
    assert 0.15 < splat.alpha.mean() < 0.99  # the scene is neither empty nor saturated


def test_early_stop_matches_dense() -> None:
    scene = make_scene(1, 150, 4, seed=5)
    scene[2], scene[3] = scene[2] * 4, torch.full_like(scene[3], 0.97)
    splat = check_against_dense(scene)
    stopped = (1 - splat.alpha) < 5e-3
    assert stopped.float().mean() > 0.1
    assert (1 - splat.alpha).min() > 1e-4  # the Gaussian that would cross the limit is left out


def test_saturated_alpha_passes_no_gradient() -> None:
    scene = make_scene(1, 1, 3)
    scene[0][:], scene[2][:], scene[3][:] = 0.0, 2.0, 1.0
    splat = check_against_dense(scene)
    assert splat.alpha.max().item() == pytest.approx(0.999)


def test_edge_cases_match_dense() -> None:
    scene = make_scene(1, 40, 3, seed=7)
    means, _, scales, opacities = scene[:4]
    means[0, :8, 2] = -3.0  # behind the camera
    means[0, 8:12, 0] = 50.0  # off screen
    means[0, 12:16, 0] = 2.5  # off screen, but wide enough to show; the Jacobian is held there
    scales[0, 12:16] = 1.0
    scales[0, 16:20] = 20.0  # larger than the picture
    scales[0, 20:24] = 1e-6  # far smaller than a pixel
    opacities[0, 24:28] = 0.0
    opacities[0, 28:30] = 1 / 255 - 1e-6
    means[0, 30, 2] = -2.0 + 0.02  # just beyond the near plane
    splat = check_against_dense(scene)
    assert splat.alpha.min() > 0.05


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_see(count: int) -> None:
    scene = make_scene(2, count, 5)
    scene[0][..., 2] = -9.0
    inputs = [tensor.requires_grad_() for tensor in scene]
    splat = rasterize(*inputs, 20, 10, background=torch.arange(5.0))
    assert splat.image.shape == (2, 10, 20, 5)
    torch.testing.assert_close(splat.image, torch.arange(5.0).double().expand(2, 10, 20, 5))
    assert splat.alpha.abs().max() == 0
    assert splat.depth.abs().max() == 0
    for gradient in gradients(outputs_of(splat), inputs):
        assert gradient.abs().sum() == 0


def test_finite_differences() -> None:
    scene = make_scene(1, 3, 2, seed=11)
    scene[0][..., :2] *= 0.3
    scene[2] = scene[2].clamp(min=0.05)
    scene[3] = 0.3 + 0.6 * scene[3]
    weights = [torch.randn(1, 8, 8, size, dtype=torch.float64) for size in (2, 1, 1)]
    scene[5][:] = torch.tensor([[9.0, 0, 4], [0, 9, 4], [0, 0, 1]])

    def loss(*inputs: Tensor) -> Tensor:
        splat = rasterize(*inputs, 8, 8)
        return sum((out * weight).sum() for out, weight in zip(outputs_of(splat), weights, strict=True))

    inputs = [tensor.clone().requires_grad_() for tensor in scene]
    analytic = torch.autograd.grad(loss(*inputs), inputs)
    step = 1e-6
    for i, tensor in enumerate(scene):
        for k in torch.randperm(tensor.numel())[:5].tolist():
            moved = [other.clone() for other in scene]
            moved[i].view(-1)[k] += step
            above = loss(*moved)
            moved[i].view(-1)[k] -= 2 * step
            numeric = float(above - loss(*moved)) / (2 * step)
            if NAMES[i] == "intrinsics" and k not in (0, 2, 4, 5):
                continue  # skew and the last row are no parameters of a pinhole
            if NAMES[i] == "world_to_camera" and k >= 12:
                continue
            assert float(analytic[i].view(-1)[k]) == pytest.approx(numeric, rel=1e-4, abs=1e-5), (NAMES[i], k)


def test_projection_matches_gsplat() -> None:
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    scene = make_scene(1, 500, 1, seed=13)
    scene[0][..., :2] *= 4  # many outside of the field of view, where the Jacobian is held
    means, quats, scales, _, _, intrinsics, camera = scene
    covariance, _ = gsplat._quat_scale_to_covar_preci(quats[0], scales[0], compute_preci=False)
    radii, centre, depth, conic, _ = gsplat._fully_fused_projection(
        means[0], covariance, camera, intrinsics, WIDTH, HEIGHT, eps2d=0.3, near_plane=NEAR
    )
    ours_centre, ours_covariance, ours_depth = project_dense(*scene[:3], intrinsics, camera, WIDTH, HEIGHT)
    ours_conic = torch.linalg.inv(ours_covariance)
    torch.testing.assert_close(ours_centre, centre)
    torch.testing.assert_close(ours_depth, depth)
    torch.testing.assert_close(
        torch.stack([ours_conic[..., 0, 0], ours_conic[..., 0, 1], ours_conic[..., 1, 1]], -1), conic
    )
    # and the kernel's own, one Gaussian at a time
    from visa.networks.rasterizer.projection import project

    rotation, translation = tuple(camera[0, :3, :3].reshape(-1).tolist()), tuple(camera[0, :3, 3].tolist())
    pinhole = tuple(intrinsics[0][[0, 1, 0, 1], [0, 1, 2, 2]].tolist())
    for i in range(0, 500, 5):
        row = [tuple(tensor[0, i].tolist()) for tensor in (means, quats, scales)]
        seen, x, y, a, b, c, z, half_width, half_height, _ = project(
            *row, 1.0, rotation, translation, pinhole, WIDTH, HEIGHT, NEAR
        )
        assert seen
        assert (x, y) == pytest.approx(centre[0, i].tolist(), rel=1e-9)
        assert (a, b, c) == pytest.approx(conic[0, i].tolist(), rel=1e-9)
        assert z == pytest.approx(depth[0, i].item())
        if (radii[0, i] > 0).all():  # gsplat rounds up, and takes 3.33 standard deviations for 3.329
            assert math.ceil(half_width) == pytest.approx(radii[0, i, 0].item(), abs=1)
            assert math.ceil(half_height) == pytest.approx(radii[0, i, 1].item(), abs=1)


def test_single_precision_is_close() -> None:
    scene = make_scene(1, 80, 20, seed=17)
    exact = rasterize(*scene, WIDTH, HEIGHT)
    inputs = [tensor.float().requires_grad_() for tensor in scene]
    splat = rasterize(*inputs, WIDTH, HEIGHT)
    assert splat.image.dtype == torch.float32
    # a pixel right at a cut-off may fall to the other side of it
    assert ((splat.image - exact.image).abs() < 1e-4).float().mean() > 0.999
    doubles = [tensor.clone().requires_grad_() for tensor in scene]
    got = torch.autograd.grad(splat.image.square().sum(), inputs[:5])
    want = torch.autograd.grad(rasterize(*doubles, WIDTH, HEIGHT).image.square().sum(), doubles[:5])
    for name, single, double in zip(NAMES, got, want, strict=False):
        assert torch.linalg.norm(single - double) < 2e-2 * torch.linalg.norm(double), name


def test_half_precision_inputs_are_widened() -> None:
    scene = make_scene(1, 30, 3, dtype=torch.bfloat16)
    assert rasterize(*scene, WIDTH, HEIGHT).image.dtype == torch.float32


def run_float32(threads: int, batch: slice = slice(None)) -> list[Tensor]:
    torch.set_num_threads(threads)
    inputs = [tensor[batch].float().requires_grad_() for tensor in make_scene(3, 900, 20, seed=19)]
    splat = rasterize(*inputs, 70, 50)
    loss = splat.image.sin().sum() + splat.alpha.sin().sum() + splat.depth.sin().sum()
    return [*outputs_of(splat), *torch.autograd.grad(loss, inputs)]


@pytest.fixture
def keep_threads() -> None:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("keep_threads")
def test_thread_count_changes_no_bit() -> None:
    single = run_float32(1)
    for threads in (2, 5):
        for one, many in zip(single, run_float32(threads), strict=True):
            assert torch.equal(one, many)


@pytest.mark.usefixtures("keep_threads")
def test_batch_equals_frame_by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    together = run_float32(2)
    for i in range(3):
        for one, many in zip(run_float32(2, slice(i, i + 1)), together, strict=True):
            assert torch.equal(one[0], many[i])
    monkeypatch.setattr("visa.networks.rasterizer.cpu._PAIR_BUFFER_BYTES", 1)  # one frame at a time
    for one, many in zip(run_float32(2), together, strict=True):
        assert torch.equal(one, many)


@pytest.mark.usefixtures("keep_threads")
def test_concurrent_calls_agree() -> None:
    torch.set_num_threads(2)
    scene = [tensor.float() for tensor in make_scene(1, 300, 8)]
    expected = rasterize(*scene, WIDTH, HEIGHT).image
    with ThreadPoolExecutor(4) as pool:
        for splat in pool.map(lambda _: rasterize(*scene, WIDTH, HEIGHT), range(12)):
            assert torch.equal(splat.image, expected)


def _rasterize_in_child(scene: list[Tensor], sender: multiprocessing.connection.Connection) -> None:
    sender.send_bytes(rasterize(*scene, WIDTH, HEIGHT).image.numpy().tobytes())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.usefixtures("keep_threads")
def test_forked_child_rasterizes() -> None:
    torch.set_num_threads(2)
    scene = [tensor.float() for tensor in make_scene(1, 300, 8)]
    expected = rasterize(*scene, WIDTH, HEIGHT).image
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_rasterize_in_child, args=(scene, sender))
    child.start()
    try:
        assert receiver.poll(20), "the child hangs"
        assert receiver.recv_bytes() == expected.numpy().tobytes()
    finally:
        child.kill()
        child.join()


def test_background_and_depth() -> None:
    scene = make_scene(2, 50, 3, seed=23)
    background = torch.rand(2, 3, dtype=torch.float64)
    plain, over = rasterize(*scene, WIDTH, HEIGHT), rasterize(*scene, WIDTH, HEIGHT, background=background)
    torch.testing.assert_close(over.image, plain.image + (1 - plain.alpha) * background[:, None, None])
    covered = plain.alpha > 0
    assert plain.depth[covered].min() > 1.0
    assert plain.depth[covered].max() < 3.0


def test_camera_moves_like_the_world() -> None:
    """Turning camera and Gaussians together changes nothing: an invariance that needs no second implementation."""
    scene = make_scene(1, 60, 3, seed=29)
    before = rasterize(*scene, WIDTH, HEIGHT).image
    turn = torch.tensor([0.8, 0.3, -0.4, 0.33], dtype=torch.float64)
    w, x, y, z = turn / turn.norm()
    left = torch.stack([w, -x, -y, -z, x, w, -z, y, y, z, w, -x, z, -y, x, w]).view(4, 4)
    matrix, shift = rotation_matrices(turn), torch.tensor([0.4, -3.0, 1.0], dtype=torch.float64)
    scene[0], scene[1] = scene[0] @ matrix.T + shift, scene[1] @ left.T
    scene[6] = scene[6].clone()
    scene[6][:, :3, 3] -= scene[6][:, :3, :3] @ matrix.T @ shift
    scene[6][:, :3, :3] = scene[6][:, :3, :3] @ matrix.T
    torch.testing.assert_close(rasterize(*scene, WIDTH, HEIGHT).image, before, atol=1e-9, rtol=0)


def test_tiled_baseline_matches_dense() -> None:
    scene = make_scene(1, 120, 4, seed=31)
    image, alpha = rasterize_tiled(*scene, 48, 40, NEAR, chunk=16)
    expected = rasterize_dense(*scene, 48, 40, NEAR)
    torch.testing.assert_close(image, expected[0])
    torch.testing.assert_close(alpha, expected[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_input_is_named(name: str, value: float) -> None:
    scene = make_scene(1, 6, 3)
    scene[NAMES.index(name)].view(-1)[2] = value
    with pytest.raises(ValueError, match=f"{name} has values that are not finite"):
        rasterize(*scene, WIDTH, HEIGHT)


def test_wrong_arguments_are_named() -> None:
    scene = make_scene(2, 6, 3)
    with pytest.raises(ValueError, match=r"quats must have the shape \[2,6,4\]"):
        rasterize(scene[0], scene[1][..., :3], *scene[2:], WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=r"intrinsics must have the shape \[2,3,3\]"):
        rasterize(*scene[:5], scene[5][:1], scene[6], WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="background must have the shape"):
        rasterize(*scene, WIDTH, HEIGHT, background=torch.zeros(4))
    with pytest.raises(ValueError, match="width and height"):
        rasterize(*scene, 0, HEIGHT)
    with pytest.raises(ValueError, match="near"):
        rasterize(*scene, WIDTH, HEIGHT, near=0.0)
    with pytest.raises(ValueError, match="backend 'gsplat' does not take"):
        rasterize(*scene, WIDTH, HEIGHT, backend="gsplat")
    with pytest.raises(ValueError, match="opacities must be floating point"):
        rasterize(*scene[:3], scene[3].long(), *scene[4:], WIDTH, HEIGHT)


@pytest.mark.slow
def test_cache_elsewhere_when_home_is_read_only(tmp_path: Path) -> None:
    """A home that is a plain file cannot hold a cache: the temporary directory takes it."""
    home = tmp_path / "home"
    home.write_text("")
    environment = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home), "TMPDIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    code = "from visa.networks.rasterizer import compiler; print(compiler._CACHE_DIRECTORY)"
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path / "visa"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device for gsplat")
@pytest.mark.parametrize("channels", [3, 20, 37])
def test_gsplat_backend_matches_cpu(channels: int) -> None:
    scene = [tensor.float() for tensor in make_scene(2, 300, channels, seed=37)]
    results = []
    for device in ("cpu", "cuda"):
        inputs = [
            tensor.to(device).detach().requires_grad_(name != "intrinsics")
            for name, tensor in zip(NAMES, scene, strict=True)
        ]
        splat = rasterize(*inputs, WIDTH, HEIGHT, background=torch.full((channels,), 0.3, device=device))
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        grads = torch.autograd.grad(splat.image.square().sum() + splat.alpha.sum() + splat.depth.sum(), leaves)
        results.append([tensor.detach().cpu() for tensor in (*outputs_of(splat), *grads)])
    for ours, theirs in zip(*results, strict=True):
        # a pixel right at a cut-off may fall to the other side of it
        assert torch.linalg.norm(ours - theirs) <= 2e-3 * torch.linalg.norm(ours) + 1e-6
