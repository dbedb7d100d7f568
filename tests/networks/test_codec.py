"""Codecs: exact inverses, quality on real video, streaming equal to coding whole."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from tests.conftest import ROOT
from visa.artifacts.media import read_video
from visa.networks.codec import BlockCodec, WanCodec

REAL_CLIP = ROOT / "assets/clips/webcam_man.mp4"
SMALL_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


@pytest.fixture
def whitened() -> BlockCodec:
    codec = BlockCodec()
    generator = torch.Generator().manual_seed(0)
    codec.mean.copy_(torch.randn(96, generator=generator))
    codec.scale.copy_(torch.rand(96, generator=generator) + 0.1)
    return codec


def test_block_codec_inverts_on_its_span(whitened: BlockCodec) -> None:
    whitened, latents = whitened.double(), torch.randn(2, 96, 3, 4, 5).double()  # the basis itself is in float32
    frames = whitened.decode(latents)
    assert frames.shape == (2, 3, 3, 32, 40)
    torch.testing.assert_close(whitened.encode(frames), latents, atol=1e-5, rtol=0)
    # Coding is a projection: a second round trip changes nothing.
    twice = whitened.decode(whitened.encode(frames))
    torch.testing.assert_close(twice, frames, atol=1e-5, rtol=0)


def test_block_codec_equals_a_plain_cosine_transform() -> None:
    """Independent reference: scipy-style DCT sums of one block, written out."""
    codec = BlockCodec()
    assert torch.allclose(codec.basis @ codec.basis.T, torch.eye(96), atol=1e-6)
    frames = torch.rand(1, 1, 3, 8, 8)
    luma = (frames[0, 0].sum(0) - 1.5) / 3**0.5
    x = torch.arange(8)
    wave = torch.cos(torch.pi * (x + 0.5) / 8)  # first horizontal frequency
    expected = (luma * wave[None, :]).sum() * (2 / 8) ** 0.5 * (1 / 8) ** 0.5
    latents = codec.encode(frames)[0, :, 0, 0, 0]
    torch.testing.assert_close(latents[0], luma.sum() / 8, atol=1e-5, rtol=0)
    torch.testing.assert_close(latents[1], expected, atol=1e-5, rtol=0)


def test_block_codec_codes_each_frame_alone(whitened: BlockCodec) -> None:
    frames = torch.rand(1, 4, 3, 16, 16)
    stream = whitened.stream()
    parts = torch.cat([stream.encode(frames[:, :1]), stream.encode(frames[:, 1:])], dim=2)
    torch.testing.assert_close(parts, whitened.encode(frames))
    assert whitened.num_latent_frames(4) == 4
    assert whitened.num_pixel_frames(4) == 4


@pytest.mark.slow
def test_block_codec_quality_on_real_video() -> None:
    pictures = read_video(REAL_CLIP)[0][::150, :, :, 50:350]
    frames = torch.nn.functional.interpolate(pictures, (128, 128), mode="bilinear", antialias=True)[None]
    codec = BlockCodec()
    error = (codec.decode(codec.encode(frames)) - frames).square().mean()
    assert -10 * error.log10() > 44


def test_statistics_survive_a_file(whitened: BlockCodec, tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    whitened.save_statistics(path)
    loaded = BlockCodec(statistics=str(path))
    assert torch.equal(loaded.mean, whitened.mean)
    assert torch.equal(loaded.scale, whitened.scale)


def test_codecs_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        BlockCodec().encode(torch.zeros(1, 1, 3, 20, 16))
    with pytest.raises(ValueError, match="do not exist"):
        BlockCodec(statistics=str(tmp_path / "none.safetensors"))
    codec = WanCodec(config=SMALL_VAE)
    with pytest.raises(ValueError, match="1 \\+ 4k"):
        codec.encode(torch.zeros(1, 4, 3, 16, 16))
    with pytest.raises(ValueError, match="not both"):
        WanCodec("somewhere", SMALL_VAE)


@pytest.fixture(scope="module")
def wan() -> WanCodec:
    torch.manual_seed(0)
    return WanCodec(config=SMALL_VAE)


def test_wan_codec_equals_diffusers(wan: WanCodec) -> None:
    """Ours drives encoder and decoder itself; diffusers' own calls are the reference."""
    frames = torch.rand(2, 9, 3, 16, 24)
    vae: AutoencoderKLWan = wan.vae
    mean = torch.tensor(vae.config.latents_mean[:4]).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std[:4]).view(1, -1, 1, 1, 1)
    with torch.no_grad():
        expected = (vae.encode(frames.transpose(1, 2) * 2 - 1).latent_dist.mode() - mean) / std
        latents = wan.encode(frames)
        decoded = wan.decode(latents)
        reference = vae.decode(latents * std + mean).sample
    assert latents.shape == (2, 4, wan.num_latent_frames(9), 2, 3) == (2, 4, 3, 2, 3)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert decoded.shape[1] == wan.num_pixel_frames(3) == 9
    torch.testing.assert_close(decoded.clamp(0, 1), (reference.transpose(1, 2) + 1) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_wan_streams_equal_coding_whole(wan: WanCodec) -> None:
    frames = torch.rand(1, 25, 3, 16, 16)
    latents = wan.encode(frames)
    stream = wan.stream()
    parts = [stream.encode(piece) for piece in frames.split([9, 12, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=2), latents, atol=1e-6, rtol=0)
    whole = wan.decode(latents)
    parts = [stream.decode(piece) for piece in latents.split([3, 3, 1], dim=2)]
    assert [part.shape[1] for part in parts] == [9, 12, 4]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)


def test_wan_codec_is_frozen_but_lets_gradients_through(wan: WanCodec) -> None:
    assert not any(parameter.requires_grad for parameter in wan.parameters())
    assert not wan.train().training
    latents = torch.randn(1, 4, 2, 2, 2, requires_grad=True)
    wan.decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


class LightDecoder(nn.Module):
    """One linear layer a latent pixel to an 8x8 block of four frames; the first latent of a video gives one frame.

    Each latent frame is mixed with the one before it, so that a stream needs its state.
    """

    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.project = nn.Conv2d(2 * latent_channels, 4 * 3 * 64, 1)

    def forward(self, latents: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        before = torch.zeros_like(latents[:, :, :1]) if state is None else state
        joined = torch.cat([latents, torch.cat([before, latents[:, :, :-1]], dim=2)], dim=1)
        blocks = self.project(joined.transpose(1, 2).flatten(0, 1))
        frames = nn.functional.pixel_shuffle(blocks, 8).unflatten(0, (len(latents), -1)).unflatten(2, (4, 3))
        frames = frames.flatten(1, 2)
        return frames[:, 3:] if state is None else frames, latents[:, :, -1:]


def test_a_light_decoder_takes_the_wan_decoders_place() -> None:
    """Given by its class path, as in a config; a stream equals the whole, the interface is the Wan decoder's own."""
    parser = ArgumentParser()
    parser.add_argument("--codec", type=WanCodec)
    config = {"config": SMALL_VAE, "decoder": {"class_path": "tests.networks.test_codec.LightDecoder"}}
    parsed = parser.parse_object({"codec": {"class_path": "visa.networks.codec.WanCodec", "init_args": config}})
    codec = parser.instantiate_classes(parsed).codec
    assert isinstance(codec.decoder, LightDecoder)
    latents = torch.randn(2, 4, 7, 2, 3, requires_grad=True)
    whole = codec.decode(latents)
    assert whole.shape == (2, codec.num_pixel_frames(7), 3, 16, 24)
    stream = codec.stream()
    parts = [stream.decode(piece) for piece in latents.split([3, 3, 1], dim=2)]
    assert [part.shape[1] for part in parts] == [9, 12, 4]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    whole.sum().backward()
    assert latents.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in codec.parameters())


def test_a_light_decoder_that_miscounts_frames_is_named() -> None:
    def decoder(latents: Tensor, state: None) -> tuple[Tensor, None]:
        del state
        return torch.zeros(1, 4 * latents.shape[2], 3, 16, 16), None

    with pytest.raises(ValueError, match="12 frames for 3 latent frames: it must give 9"):
        WanCodec(config=SMALL_VAE, decoder=decoder).decode(torch.zeros(1, 4, 3, 2, 2))


@torch.no_grad()
def test_a_wan_clip_may_be_streamed_frame_by_frame_of_latents(wan: WanCodec) -> None:
    """Chunks of any length: one latent frame at a time too; the shortest clips are one frame."""
    frames = torch.rand(1, 9, 3, 16, 16)
    latents = wan.encode(frames)
    stream = wan.stream()
    parts = [stream.encode(frames[:, :1]), stream.encode(frames[:, 1:5]), stream.encode(frames[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, dim=2), latents, atol=1e-6, rtol=0)
    decoded = [stream.decode(latents[:, :, index : index + 1]) for index in range(3)]
    assert [part.shape[1] for part in decoded] == [1, 4, 4]
    torch.testing.assert_close(torch.cat(decoded, dim=1), wan.decode(latents), atol=1e-6, rtol=0)
    for length in (1, 5, 81):
        assert wan.num_pixel_frames(wan.num_latent_frames(length)) == length
    # A first call without the lone frame, or a later one with it, would shift every frame after it.
    with pytest.raises(ValueError, match="give 1 \\+ 4k"):
        wan.stream().encode(frames[:, :4])
    with pytest.raises(ValueError, match="give 0 \\+ 4k"):
        stream.encode(frames[:, :5])
