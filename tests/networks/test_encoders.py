"""Encoders at full size: strict loading of the pretrained networks' own files, values equal to the originals."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visa.networks.encoders import DinoEncoder, SemanticEncoder, VisualEncoder, WanVisualEncoder

transformers = pytest.importorskip("transformers", reason="needs the dinov2 extra")

SMALL_DINO = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SMALL_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A randomly initialised original and the folder that the library writes of it."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL_DINO)).eval()
    folder = tmp_path_factory.mktemp("dino")
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AutoencoderKLWan]:
    torch.manual_seed(0)
    model = AutoencoderKLWan(**SMALL_VAE).eval()
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder / "vae")
    return folder, model


def published_dino_keys(num_layers: int) -> set[str]:
    """Names in the published facebook/dinov2-* files."""
    layer = [
        *(f"attention.attention.{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")),
        *(f"{name}.{kind}" for name in ("attention.output.dense", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
          for kind in ("weight", "bias")),
        "layer_scale1.lambda1",
        "layer_scale2.lambda1",
    ]  # fmt: skip
    embeddings = ["cls_token", "mask_token", "position_embeddings"]
    embeddings += ["patch_embeddings.projection.weight", "patch_embeddings.projection.bias"]
    names = {f"embeddings.{name}" for name in embeddings} | {"layernorm.weight", "layernorm.bias"}
    return names | {f"encoder.layer.{index}.{name}" for index in range(num_layers) for name in layer}


@torch.no_grad()
def test_dino_loads_the_published_names_and_equals_the_original(dino: tuple[Path, nn.Module]) -> None:
    folder, original = dino
    assert set(load_file(folder / "model.safetensors")) == published_dino_keys(2)
    encoder = DinoEncoder(str(folder), image_size=42)  # other than its training size: positions are interpolated
    photo = torch.rand(2, 3, 42, 42)
    tokens = encoder(photo, torch.ones(2, 1, 42, 42))
    assert tokens.shape == (2, 1 + 9, encoder.width) == (2, 10, 24)
    # Pixels by the library's own image processor, without its resizing and cropping.
    processor = transformers.BitImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    processor.image_mean, processor.image_std = mean.tolist(), std.tolist()
    pixels = processor(list(photo), return_tensors="pt", do_rescale=False, input_data_format="channels_first")
    torch.testing.assert_close(encoder.pixels(photo), pixels["pixel_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, original(pixels["pixel_values"]).last_hidden_state, atol=1e-5, rtol=0)


def test_dino_of_full_size_has_the_published_names_and_numbers() -> None:
    """facebook/dinov2-base: 12 layers of width 768, positions of 518 px; no memory is taken."""
    with torch.device("meta"):
        encoder = DinoEncoder(config={"image_size": 518})
    state = encoder.backbone.state_dict()
    assert len(state) == len(published_dino_keys(12)) == 223
    assert sum(value.numel() for value in state.values()) == 86_580_480
    assert encoder.width == 768
    assert state["embeddings.position_embeddings"].shape == (1, 1 + 37 * 37, 768)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_dino_must_fit(dino: tuple[Path, nn.Module], change: str, tmp_path: Path) -> None:
    state = load_file(dino[0] / "model.safetensors")
    name = "encoder.layer.1.mlp.fc1.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["encoder.layer.7.more"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3, 3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((dino[0] / "config.json").read_text())
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        DinoEncoder(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_frozen_dino_stays_as_it_is_and_a_trained_one_learns(dino: tuple[Path, nn.Module]) -> None:
    photo, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    frozen = DinoEncoder(str(dino[0]), image_size=28).train()
    assert not frozen.backbone.training
    assert not frozen(photo, mask).requires_grad
    trained = DinoEncoder(str(dino[0]), image_size=28, train_backbone=True).train()
    trained(photo, mask).square().mean().backward()
    unused = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []


def tap(module: nn.Module) -> list[Tensor]:
    """A list that every later call of the module adds its output to."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda *call: outputs.append(call[-1]))
    return outputs


@torch.no_grad()
def test_wan_features_are_those_of_the_codec_encoding_the_photo(vae: tuple[Path, AutoencoderKLWan]) -> None:
    folder, original = vae
    encoder = WanVisualEncoder(str(folder), width=6)
    photo = torch.rand(2, 3, 32, 48)
    scales = encoder.scales(photo)
    # Of the original: the residual block before each halving, then the middle block.
    blocks = original.encoder.down_blocks
    taps = [tap(blocks[index]) for index in (0, 2, 4)] + [tap(original.encoder.mid_block)]
    original.encode(photo[:, :, None] * 2 - 1)
    assert [tuple(scale.shape) for scale in scales] == [
        (2, 8, 32, 48), (2, 16, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6)
    ]  # fmt: skip
    for scale, (output,) in zip(scales, taps, strict=True):
        torch.testing.assert_close(scale, output[:, :, 0], atol=1e-5, rtol=0)
        assert scale.std() > 0


def test_wan_keys_are_the_encoders_own(vae: tuple[Path, AutoencoderKLWan]) -> None:
    """Small and at full size: every tensor is the original's but the encoder's last layers, ours are the pyramid."""
    with torch.device("meta"):
        pairs = [
            (WanVisualEncoder(config=SMALL_VAE), vae[1]),
            (WanVisualEncoder(), AutoencoderKLWan()),
        ]
    for ours, original in pairs:
        state = {name: value.shape for name, value in ours.state_dict().items()}
        expected = {name: value.shape for name, value in original.encoder.state_dict().items()}
        left_out = {name for name in expected if name.startswith(("norm_out.", "conv_out."))}
        pyramid = {name for name in state if name.startswith(("lateral.", "smooth."))}
        assert len(left_out) == 3
        assert {name: state[name] for name in state.keys() - pyramid} == {
            name: expected[name] for name in expected.keys() - left_out
        }
    assert sum(parameter.numel() for parameter in pairs[1][1].parameters()) == 126_892_531


def test_wan_codec_must_fit(vae: tuple[Path, AutoencoderKLWan], tmp_path: Path) -> None:
    source = vae[0] / "vae"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    state = load_file(source / "diffusion_pytorch_model.safetensors")
    name = "encoder.conv_in.weight"
    for broken, message in (
        ({key: value for key, value in state.items() if key != name}, "missing keys"),
        ({**state, "encoder.more": torch.zeros(1)}, "unexpected keys"),
        ({**state, name: torch.zeros(2, 2)}, "does not fit|mismatched"),
    ):
        save_file(broken, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message) as caught:
            WanVisualEncoder(str(tmp_path))
        assert "\n" not in str(caught.value)


def test_wan_map_is_fused_over_all_scales_and_only_the_pyramid_learns(vae: tuple[Path, AutoencoderKLWan]) -> None:
    encoder = WanVisualEncoder(str(vae[0]), width=6, finest=1)
    photo, mask = torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32)
    fused = encoder(photo, mask)
    assert fused.shape == (1, 6, 16, 16)
    fused.square().mean().backward()
    learned = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in encoder.named_parameters() if name.startswith(("lateral.", "smooth."))}
    with torch.no_grad():
        for index in range(3):  # each scale reaches the map, the mask too
            encoder.lateral[index].weight.mul_(2)
            assert not torch.allclose(encoder(photo, mask), fused)
            encoder.lateral[index].weight.div_(2)
        assert not torch.allclose(encoder(photo, 1 - mask), fused)


def test_misuse_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    for call, message in (
        (lambda: DinoEncoder(str(tmp_path / "none")), "download facebook/dinov2"),
        (lambda: DinoEncoder("somewhere", SMALL_DINO), "not both"),
        (lambda: DinoEncoder(config=SMALL_DINO, image_size=30), "no multiple of the patch"),
        (lambda: WanVisualEncoder(str(tmp_path / "none")), "download Wan-AI"),
        (lambda: WanVisualEncoder("somewhere", SMALL_VAE), "not both"),
        (lambda: WanVisualEncoder(config=SMALL_VAE, finest=4), "finest 4"),
        (lambda: WanVisualEncoder(config=SMALL_VAE)(torch.rand(1, 3, 20, 32), torch.rand(1, 1, 20, 32)), "multiples"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", ["semantic", "visual"])
def test_both_sizes_have_one_interface(kind: str) -> None:
    photo, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    encoders = {
        "semantic": [SemanticEncoder(32, 16, 16, 1, 2), DinoEncoder(config=SMALL_DINO, image_size=28)],
        "visual": [VisualEncoder(8, 8), WanVisualEncoder(config=SMALL_VAE, width=8)],
    }
    for encoder in encoders[kind]:
        output = encoder(photo, mask)
        assert output.shape[2 if kind == "semantic" else 1] == encoder.width
