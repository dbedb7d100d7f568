"""Measure the statistics of the block codec's latents: `python -m visa.tools.measure_latents`.

The mean is that of the training frames' latents. The scale is the standard deviation of what the shader has to add: the
residual between a frame's latent and its splat's. Noise of unit variance then covers the residual evenly in every
channel, which trains a small shader several times faster than whitening the latents themselves.
"""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from visa.artifacts.files import atomic_path
from visa.artifacts.weights import load_weights
from visa.datamodules.augment import Augment
from visa.datamodules.video import VideoDataModule
from visa.networks.codec import BlockCodec
from visa.runtime.conditioner import Conditioner
from visa.runtime.shipped import COMMANDS, build_reconstructor

# A tenth of a grey level: a channel that is empty in the sample must not blow noise up.
SMALLEST_SCALE = 0.1 / 255


@torch.no_grad()
def measure(codec: BlockCodec, reconstruction: str, body_model: str, remove_neck: bool, batches: int) -> BlockCodec:
    """Set `mean` and `scale` of an unwhitened codec from augmented training windows."""
    reconstructor = build_reconstructor(body_model, remove_neck, feature_channels=16)
    load_weights(reconstructor, reconstruction, COMMANDS["reconstruction"])
    conditioner = Conditioner(reconstructor, codec)
    data = VideoDataModule(num_steps=batches, augment=Augment())
    data.setup("fit")
    latents, residuals = [], []
    for batch in tqdm(data.train_dataloader(), desc="latents"):
        condition, _ = conditioner(batch)
        truth = codec.encode(batch.frames)
        latents.append(truth.transpose(0, 1).flatten(1))
        residuals.append((truth - condition.guide).transpose(0, 1).flatten(1))
    codec.mean.copy_(torch.cat(latents, dim=1).mean(dim=1))
    codec.scale.copy_(torch.cat(residuals, dim=1).std(dim=1).clamp_min(SMALLEST_SCALE))
    return codec


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reconstruction", default="assets/weights/reconstruction.safetensors")
    parser.add_argument("--body-model", default="assets/body/smplx_anny.npz")
    parser.add_argument("--remove-neck", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--out", default="assets/weights/codec_statistics.safetensors")
    options = parser.parse_args()
    codec = measure(BlockCodec(), options.reconstruction, options.body_model, options.remove_neck, options.batches)
    with atomic_path(options.out) as scratch:
        codec.save_statistics(scratch)
    print(f"scale from {codec.scale.min():.5f} to {codec.scale.max():.5f}\n{options.out}")


if __name__ == "__main__":
    main()
