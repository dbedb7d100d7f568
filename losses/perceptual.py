"""Learned perceptual distance between frames: one class for the loss (`alex`) and the reported metric (`vgg`)."""

import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# LPIPS input normalisation for frames in [-1, 1] (Zhang et al. 2018, arXiv:1801.03924).
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class _Conv(NamedTuple):
    key: str  # "slice.index" of the convolution in the published state dict
    channels_in: int
    channels_out: int
    kernel: int
    padding: int


class _BlurPool(NamedTuple):
    """Anti-aliased halving: reflect padding by 2, binomial 3x3 filter, stride 2 (ST-LPIPS, arXiv:2207.13686)."""


class _MaxPool(NamedTuple):
    kernel: int  # stride 1: the blur after it halves


class _ReLU(NamedTuple):
    pass


_Op = _Conv | _BlurPool | _MaxPool | _ReLU


def _alex_stages() -> list[list[_Op]]:
    return [
        [_Conv("slice1.0", 3, 64, 11, 2), _BlurPool(), _ReLU()],
        [_MaxPool(3), _BlurPool(), _Conv("slice2.5", 64, 192, 5, 2), _ReLU()],
        [_MaxPool(3), _BlurPool(), _Conv("slice3.9", 192, 384, 3, 1), _ReLU()],
        [_Conv("slice4.11", 384, 256, 3, 1), _ReLU()],
        [_Conv("slice5.13", 256, 256, 3, 1), _ReLU()],
    ]


def _vgg_stages() -> list[list[_Op]]:
    widths = (64, 128, 256, 512, 512)
    indices = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))
    stages: list[list[_Op]] = []
    channels = 3
    for number, (width, convolutions) in enumerate(zip(widths, indices, strict=True), start=1):
        stage: list[_Op] = [] if number == 1 else [_MaxPool(2), _BlurPool()]
        for index in convolutions:
            stage += [_Conv(f"slice{number}.{index}", channels, width, 3, 1), _ReLU()]
            channels = width
        stages.append(stage)
    return stages


def _blur_pool(x: Tensor) -> Tensor:
    """[N, C, H, W] -> about [N, C, H/2 + 1, W/2 + 1]."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    kernel = (line[:, None] * line[None, :]).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class _ShiftTolerantNetwork(nn.Module):
    """Trunk and calibration of ST-LPIPS, written from the paper and the shapes of its published weights.

    The weights are those inside the `stlpips_pytorch` wheel; its modules are never imported, because they pull in
    IPython and torchsummary, which the wheel does not declare.
    """

    def __init__(self, network: str) -> None:
        super().__init__()
        self.stages = {"alex": _alex_stages, "vgg": _vgg_stages}[network]()
        state = torch.load(_stlpips_weights(network), map_location="cpu", weights_only=True)
        self.convolutions = nn.ModuleDict()
        for op in (op for stage in self.stages for op in stage if isinstance(op, _Conv)):
            convolution = nn.Conv2d(op.channels_in, op.channels_out, op.kernel, padding=op.padding)
            convolution.load_state_dict({name: state[f"net.{op.key}.{name}"] for name in ("weight", "bias")})
            self.convolutions[op.key.replace(".", "_")] = convolution
        self.calibrations = nn.ParameterList(state[f"lin{k}.model.1.weight"][0] for k in range(len(self.stages)))

    def trunk(self, x: Tensor) -> list[Tensor]:
        """Normalised frames [N, 3, H, W] -> activations of the five stages, each [N, C_k, H_k, W_k]."""
        activations = []
        for stage in self.stages:
            for op in stage:
                if isinstance(op, _Conv):
                    x = self.convolutions[op.key.replace(".", "_")](x)
                elif isinstance(op, _BlurPool):
                    x = _blur_pool(x)
                elif isinstance(op, _MaxPool):
                    x = F.max_pool2d(x, op.kernel, stride=1)
                else:
                    x = F.relu(x)
            activations.append(x)
        return activations


class _LpipsNetwork(nn.Module):
    """Trunk and calibration of the `lpips` package, under the same two names. torchvision downloads the trunk."""

    def __init__(self, network: str) -> None:
        super().__init__()
        if importlib.util.find_spec("lpips") is None:
            raise ValueError(
                "perceptual backend 'lpips' needs the package lpips: pip install '.[lpips]', or use backend 'stlpips'"
            )
        from lpips import LPIPS

        model = LPIPS(net=network, verbose=False)
        self.net = model.net
        self.calibrations = nn.ParameterList(layer.model[-1].weight[0] for layer in model.lins)

    def trunk(self, x: Tensor) -> list[Tensor]:
        return list(self.net(x))


def _stlpips_weights(network: str) -> Path:
    spec = importlib.util.find_spec("stlpips_pytorch")
    if spec is None or spec.origin is None:
        raise ValueError(
            "perceptual backend 'stlpips' needs the package stlpips_pytorch 0.0.2: pip install stlpips_pytorch==0.0.2"
        )
    path = Path(spec.origin).parent / "weights" / "vST0.0" / f"{network}_shift_tolerant.pth"
    if not path.is_file():
        raise ValueError(f"{path} is missing: pip install --force-reinstall stlpips_pytorch==0.0.2")
    return path


def normalize_channels(x: Tensor, eps: float = 1e-10) -> Tensor:
    """Unit length over the channels of [N, C, H, W]."""
    # The small term sits inside the root as well: the gradient of a plain norm is NaN where a whole pixel is zero
    # after ReLU.
    return x / (x.square().sum(dim=1, keepdim=True).add(eps * eps).sqrt() + eps)


class PerceptualDistance(nn.Module):
    """Perceptual distance of frames, [N, 3, H, W] in [0, 1] against the same -> [N], 0 for equal frames.

    What is trained on is not what is reported: losses take `network="alex"`, metrics `network="vgg"`.
    `backend="stlpips"` is shift-tolerant LPIPS (Ghildyal and Liu 2022, arXiv:2207.13686), whose weights are inside its
    wheel; `backend="lpips"` is LPIPS (Zhang et al. 2018), whose trunk torchvision downloads at first use. Nothing in
    here is trained, and gradients reach the frames only. Frames need at least 32 px a side.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, network: Literal["alex", "vgg"] = "alex", backend: Literal["stlpips", "lpips"] = "stlpips"
    ) -> None:
        super().__init__()
        if network not in ("alex", "vgg"):
            raise ValueError(f"perceptual network {network!r} is unknown: choose 'alex' or 'vgg'")
        if backend not in ("stlpips", "lpips"):
            raise ValueError(f"perceptual backend {backend!r} is unknown: choose 'stlpips' or 'lpips'")
        self.model = _ShiftTolerantNetwork(network) if backend == "stlpips" else _LpipsNetwork(network)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        # oneDNN's channels-last kernels are faster for these trunks on CPU, and do not change a value by more than
        # rounding.
        self.to(memory_format=torch.channels_last)
        super().train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":  # noqa: ARG002
        """Stays in evaluation mode: a parent's `train()` must not switch on anything in a fixed measure."""
        return self

    def activations(self, frames: Tensor) -> list[Tensor]:
        """Frames [N, 3, H, W] in [0, 1] -> raw activations of the five stages, each [N, C_k, H_k, W_k]."""
        x = (2 * frames - 1 - self.shift) / self.scale
        return self.model.trunk(x.contiguous(memory_format=torch.channels_last))

    def features(self, frames: Tensor) -> list[Tensor]:
        """Frames [N, 3, H, W] in [0, 1] -> channel-normalised activations, to be compared by `between`."""
        return self.normalized(self.activations(frames))

    @staticmethod
    def normalized(activations: list[Tensor]) -> list[Tensor]:
        """Raw activations -> what `between` compares: unit length over the channels."""
        return [normalize_channels(x) for x in activations]

    def between(self, features: list[Tensor], target_features: list[Tensor]) -> Tensor:
        """Distance [N] of two results of `features`: weighted squared differences, mean over space (LPIPS eq. 1)."""
        total = features[0].new_zeros(features[0].shape[0])
        for x, y, weight in zip(features, target_features, self.model.calibrations, strict=True):
            total = total + ((x - y).square().mean(dim=(2, 3)) * weight.view(1, -1)).sum(dim=1)
        return total

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3:
            raise ValueError(
                "perceptual distance wants two [N, 3, H, W] tensors of one shape, "
                f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        return self.between(self.features(prediction), self.features(target))


def enlarged(frames: Tensor, factor: int = 2) -> Tensor:
    """Frames [N, 3, H, W] in [0, 1], bicubically enlarged and held in [0, 1].

    The first layer of `alex` looks at every fourth pixel through windows of 11, and hardly sees the finest detail of
    small frames; on frames of twice the size it does.
    """
    return F.interpolate(frames, scale_factor=factor, mode="bicubic", align_corners=False).clamp(0, 1)
