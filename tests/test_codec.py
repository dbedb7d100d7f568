"""Codecs: exact inverses, quality on real video, streaming equal to coding whole."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from networks.codec import BlockCodec, WanCodec
from runtime.media import read_video

REAL_CLIP = Path(__file__).parents[1] / "assets" / "clips" / "webcam_man.mp4"
SMALL_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}


@pytest.fixture
def whitened() -> BlockCodec:
    codec = BlockCodec()
    generator = torch.Generator().manual_seed(0)
    codec.mean.copy_(torch.randn(64, generator=generator))
    codec.scale.copy_(torch.rand(64, generator=generator) + 0.1)
    return codec


def test_block_codec_inverts_on_its_span(whitened: BlockCodec) -> None:
    latents = torch.randn(2, 64, 3, 4, 5)
    frames = whitened.decode(latents)
    assert frames.shape == (2, 3, 3, 32, 40)
    torch.testing.assert_close(whitened.encode(frames), latents, atol=1e-5, rtol=0)
    # Coding is a projection: a second round trip changes nothing.
    twice = whitened.decode(whitened.encode(frames))
    torch.testing.assert_close(twice, frames, atol=1e-5, rtol=0)


def test_block_codec_equals_a_plain_cosine_transform() -> None:
    """Independent reference: scipy-style DCT sums of one block, written out."""
    codec = BlockCodec()
    assert torch.allclose(codec.basis @ codec.basis.T, torch.eye(64), atol=1e-6)
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


def test_block_codec_quality_on_real_video() -> None:
    pictures = read_video(REAL_CLIP)[0][::150, :, :, 50:350]
    frames = torch.nn.functional.interpolate(pictures, (128, 128), mode="bilinear", antialias=True)[None]
    codec = BlockCodec()
    error = (codec.decode(codec.encode(frames)) - frames).square().mean()
    assert -10 * error.log10() > 44
    codec.measure_statistics(frames)
    latents = codec.encode(frames)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 1e-4
    assert latents.std((0, 2, 3, 4)).max() < 1.001


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


def test_a_light_decoder_takes_the_wan_decoders_place() -> None:
    def decoder(latents: torch.Tensor, state: int | None) -> tuple[torch.Tensor, int]:
        seen = 0 if state is None else state
        num_frames = 4 * latents.shape[2] - (3 if state is None else 0)
        batch, _, _, height, width = latents.shape
        return torch.full((batch, num_frames, 3, 8 * height, 8 * width), float(seen)), seen + num_frames

    codec = WanCodec(config=SMALL_VAE, decoder=decoder)
    stream = codec.stream()
    first, second = stream.decode(torch.zeros(1, 4, 3, 2, 2)), stream.decode(torch.zeros(1, 4, 3, 2, 2))
    assert first.shape[1] == 9
    assert second.shape[1] == 12
    assert float(second.mean()) == 9
