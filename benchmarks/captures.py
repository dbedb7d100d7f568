"""How much of what the splat misses on the captures a linear model of the splat could add.

`python -m visa.benchmarks.captures --json`: the shipped reconstruction splats each person from the clip's first frame;
ridge regression predicts the residual (truth less splat) of a pixel from the splat's 5 x 5 surrounding RGB. Three
questions, each as a share of the residual's variance in the mask of frames that were not fitted:
`r2_unseen_people` (fitted on other people), `r2_same_person` (fitted on the first half of the same clip), and
`r2_same_person_place` (the same, with the person's mean residual of each pixel among the inputs).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from visa.artifacts.weights import load_weights
from visa.benchmarks.command import command_line, print_json, run, say, say_figures
from visa.datamodules.clip import Clip
from visa.datamodules.windows import WindowReader
from visa.evaluation.image import psnr
from visa.runtime.photos import photo_of
from visa.runtime.shipped import COMMANDS, build_reconstructor

Floats = NDArray[np.float32]
REACH = 2  # pixels on each side
RIDGE = 1.0  # added to the normal equations of inputs in [0, 1]


def splats(path: Path, num_frames: int, model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Splatted and true frames [T, 3, 128, 128] and masks [T, 1, 128, 128] of frames spread over a clip."""
    clip = Clip(path).load()
    frames = np.unique(np.linspace(clip.num_frames // 8, clip.num_frames - 1, num_frames).astype(int))
    batch = WindowReader((0.5, 0.5, 0.5)).read(clip, frames, clip.reference_frame(), 128)
    with torch.no_grad():
        avatar, _ = model(photo_of(batch))
        maps = avatar.render(model.body, batch.view())
    return maps.rgb[0], batch.frames[0], batch.masks[0]


def samples(splat: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> tuple[list[Floats], list[Floats]]:
    """Of each frame: inputs [n, 76] and residuals [n, 3] of the pixels that are wholly the person's."""
    side = 2 * REACH + 1
    patches = torch.nn.functional.unfold(splat, side, padding=REACH).transpose(1, 2)
    residual = (truth - splat).flatten(2).transpose(1, 2)
    kept = mask.flatten(1) > 0.99
    inputs = [torch.nn.functional.pad(p[k], (0, 1), value=1.0).numpy() for p, k in zip(patches, kept, strict=True)]
    return inputs, [r[k].numpy() for r, k in zip(residual, kept, strict=True)]


def explained(train: tuple[Floats, Floats], test: tuple[Floats, Floats]) -> float:
    """Share of the test residual's variance about the training mean that ridge regression explains."""
    x, y = (part.astype(np.float64) for part in train)
    mean = y.mean(axis=0)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - mean))
    left = test[1] - mean - test[0] @ weights
    return float(1 - (left**2).sum() / ((test[1] - mean) ** 2).sum())


def _join(parts: list[Floats]) -> Floats:
    return np.concatenate(parts)


def _with_place(splat: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, half: int) -> float:
    """As `explained`, with the first half's mean residual of the pixel as three more inputs."""
    inputs, residuals = samples(splat, truth, mask)
    kept = mask.flatten(1) > 0.99
    field = (truth - splat)[:half].mean(dim=0).flatten(1).T
    inputs = [np.concatenate([x, field[k].numpy()], axis=1) for x, k in zip(inputs, kept, strict=True)]
    return explained((_join(inputs[:half]), _join(residuals[:half])), (_join(inputs[half:]), _join(residuals[half:])))


def measure(folder: Path, num_frames: int) -> dict[str, float | int]:
    """All figures, over the people of `folder` and its folder `test`. Raises ValueError where there are none."""
    seen, unseen = sorted(folder.glob("person_??.mp4")), sorted((folder / "test").glob("person_??.mp4"))
    if not seen or not unseen:
        raise ValueError(f"{folder} lacks captures: python -m visa.tools.make_captures --out {folder}")
    model = build_reconstructor("assets/body/smplx_anny.npz", remove_neck=True, feature_channels=16).eval()
    load_weights(model, "assets/weights/reconstruction.safetensors", COMMANDS["reconstruction"])
    others: tuple[list[Floats], list[Floats]] = ([], [])
    held: tuple[list[Floats], list[Floats]] = ([], [])
    same, place, quality = [], [], []
    for path in [*seen, *unseen]:
        say(f"splat {path.stem}")
        splat, truth, mask = splats(path, num_frames, model)
        inputs, residuals = samples(splat, truth, mask)
        half = len(inputs) // 2
        target = others if path in seen else held
        target[0].extend(inputs)
        target[1].extend(residuals)
        first = (_join(inputs[:half]), _join(residuals[:half]))
        same.append(explained(first, (_join(inputs[half:]), _join(residuals[half:]))))
        place.append(_with_place(splat, truth, mask, half))
        quality.append(float(psnr(splat.clamp(0, 1), truth).mean()))
    return {
        "people_seen": len(seen),
        "people_unseen": len(unseen),
        "frames_a_person": num_frames,
        "psnr_splat": round(float(np.mean(quality)), 2),
        "r2_unseen_people": round(explained((_join(others[0]), _join(others[1])), (_join(held[0]), _join(held[1]))), 3),
        "r2_same_person": round(float(np.mean(same)), 3),
        "r2_same_person_place": round(float(np.mean(place)), 3),
    }


def main() -> None:
    """Command line."""
    parser = command_line(__doc__)
    parser.add_argument("--captures", type=Path, default=Path("assets/captures"), help="folder (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=6, help="frames a person (default: %(default)s)")
    given = parser.parse_args()
    found = measure(given.captures, given.frames)
    say_figures(found)
    print_json(found, given.json)


if __name__ == "__main__":
    run(main)
