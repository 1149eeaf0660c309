"""Autoencoders of FLUX.2, Qwen-Image and Qwen-Image-2.1: files of every layout hold the same one, latents are those of
diffusers' pipelines, and every tensor has one place in the original file."""
import inspect
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLQwenImage21, Flux2KleinPipeline
from finetune.trainers.artifacts.ldm_layout import original_vae_places
from finetune.trainers.artifacts.wan_layout import wan_vae_places
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_recognition import components_of
from finetune.trainers.families.model_parts import ModelSource
from finetune.trainers.families.separate_files import WantedPart, separate_components
from safetensors.torch import load_file, save_file
from support import tiny_vaes
from support.tiny_vaes import base_of, latents_of

FORMATS = {"flux2": (128, 16, 16), "qwen": (16, 8, 16), "qwen21": (64, 16, 32)}
"""(channels, pixels of a latent's side, pixels that sides are a multiple of)"""


@pytest.fixture(scope="module", params=tiny_vaes.KINDS)
def tiny(request, tmp_path_factory):
    """(kind, diffusers' own autoencoder, its folder)"""
    vae, folder = tiny_vaes.make_vae(request.param), tmp_path_factory.mktemp(request.param)
    vae.save_pretrained(folder / "vae")
    return request.param, vae, folder


def pixels(kind: str, side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def diffusers_latents(kind: str, vae, images: torch.Tensor) -> torch.Tensor:
    """As the pipelines of diffusers make them."""
    if kind == "flux2":
        raw = Flux2KleinPipeline._patchify_latents(vae.encode(images).latent_dist.mode())
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return (raw - vae.bn.running_mean.view(1, -1, 1, 1)) / deviation
    if kind == "qwen21":
        opaque = np.concatenate([images.numpy(), np.ones_like(images[:, :1])], 1)
        images = torch.from_numpy(opaque)
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    return ((vae.encode(images[:, :, None]).latent_dist.mode() - mean) / deviation)[:, :, 0]


def diffusers_images(kind: str, vae, latents: torch.Tensor) -> torch.Tensor:
    if kind == "flux2":
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        raw = Flux2KleinPipeline._unpatchify_latents(latents * deviation + vae.bn.running_mean.view(1, -1, 1, 1))
        return vae.decode(raw).sample.clamp(-1, 1)
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1, 1) for each in (vae.config.latents_mean, vae.config.latents_std))
    return vae.decode(latents[:, :, None] * deviation + mean).sample[:, :3, 0]


@torch.no_grad()
def test_latents_and_images_are_those_of_diffusers_pipelines(tiny):
    kind, plain, folder = tiny
    family, base = latents_of(kind), base_of(kind, folder)
    form, images = family.latent_format(base), pixels(kind)
    assert (form.channels, form.downscale, form.multiple) == FORMATS[kind]
    vae = family.load_vae(base)
    latents = family.encode_images(vae, images, form)
    assert latents.shape == (2, form.channels, 32 // form.downscale, 64 // form.downscale)
    assert torch.allclose(latents, diffusers_latents(kind, plain, images), atol=1e-5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    decoded = family.decode_latents(vae, noise, form)
    assert decoded.shape == images.shape and decoded.std() > 0.01 and decoded.abs().max() <= 1
    assert torch.allclose(decoded, diffusers_images(kind, plain, noise), atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_an_original_file_holds_the_same_one_and_is_written_back_bit_for_bit(tiny, prefix, tmp_path):
    kind, plain, folder = tiny
    path = tiny_vaes.make_file(kind, tmp_path / "vae.safetensors", plain, prefix, torch.bfloat16)
    family, base = latents_of(kind), base_of(kind, path, folder, prefix)
    loaded, expected = family.load_vae(base).state_dict(), plain.state_dict()
    if kind == "qwen":  # of kernels over three frames the last one is kept
        expected = {name: tensor[:, :, -1:] if tensor.ndim == 5 else tensor for name, tensor in expected.items()}
    assert loaded.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name].bfloat16().to(tensor.dtype)) for name, tensor in loaded.items())
    stored = load_file(path)
    written = {prefix + name: entry.tensor() for name, entry in family.vae_entries(base).items()}
    assert written.keys() == stored.keys()
    assert all(tensor.dtype == stored[name].dtype and torch.equal(tensor, stored[name]) for name, tensor in written.items())
    from_folder = {prefix + name: entry for name, entry in family.vae_entries(base_of(kind, folder)).items()}
    assert {name: entry.shape for name, entry in from_folder.items()} == {name: tuple(t.shape) for name, t in stored.items()}
    assert family.latent_identity(base, tmp_path) != family.latent_identity(base_of(kind, folder), tmp_path)


SIZES = {"flux2": (AutoencoderKLFlux2, original_vae_places, 251), "qwen": (AutoencoderKLQwenImage, wan_vae_places, 194),
         "qwen21": (AutoencoderKLQwenImage21, wan_vae_places, 238)}
STORED = {
    "flux2": {"decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3), "decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
              "post_quant_conv.weight": (32, 32, 1, 1), "bn.running_var": (128,), "bn.num_batches_tracked": ()},
    "qwen": {"decoder.upsamples.14.residual.6.weight": (96, 96, 3, 3, 3), "conv2.weight": (16, 16, 1, 1, 1),
             "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1), "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
             "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3), "encoder.head.0.gamma": (384, 1, 1, 1),
             "encoder.downsamples.8.time_conv.weight": (384, 384, 3, 1, 1)},
    "qwen21": {"decoder.upsamples.4.upsamples.2.residual.6.weight": (144, 144, 1, 3, 3), "decoder.head.2.weight": (
        4, 144, 1, 3, 3), "encoder.downsamples.1.downsamples.2.time_conv.weight": (192, 192, 1, 1, 1),
        "encoder.downsamples.3.downsamples.2.resample.1.weight": (768, 768, 3, 3), "conv1.bias": (128,),
        "decoder.upsamples.3.upsamples.3.resample.1.weight": (288, 288, 3, 3), "decoder.middle.1.norm.gamma": (1152, 1, 1)},
}
"""Some tensors of the files that people have, by ComfyUI's classes and what other programs say of Qwen-Image-2.1's."""


@pytest.mark.parametrize("kind", SIZES)
def test_every_tensor_of_full_size_has_a_place_of_its_own_and_is_recognized(kind, tmp_path):
    """By the header alone, under both namings; the released config is diffusers' own."""
    make, places, count = SIZES[kind]
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    original = {place.name: place.shape for place in places(shapes).values()}
    assert len(original) == len(shapes) == count and original.items() >= STORED[kind].items()
    for naming, found in (("original", original), ("diffusers", shapes)):
        header = {f"vae.{name}": {"dtype": "BF16", "shape": list(shape)} for name, shape in found.items()}
        [part] = components_of(header)
        family = latents_of(kind)
        assert (part.kind, part.prefix, part.layout, part.width) == (family.vae_kind, "vae.", naming, family.vae_channels)
    path = tmp_path / "denoiser.safetensors"
    save_file({"nothing": torch.zeros(1)}, path)
    config = latents_of(kind).vae_config(base_of(kind, path))
    plain = {name: list(field.default) if isinstance(field.default, tuple) else field.default
             for name, field in inspect.signature(make.__init__).parameters.items() if name in config}
    assert len(plain) >= 10 and plain == {name: config[name] for name in plain}


def test_relatives_are_other_autoencoders(tmp_path):
    """Wan 2.2's, Qwen-Image-Layered's with transparency, and one that makes images larger."""
    stem = {"decoder.middle.0.residual.0.gamma": [16, 1, 1, 1], "conv2.weight": [16, 16, 1, 1, 1]}

    def kind(first: int, last: list[int], levels: bool = False) -> str:
        shapes = {**stem, "encoder.conv1.weight": [16, first, 3, 3, 3], "decoder.head.2.weight": last}
        shapes |= {"decoder.upsamples.0.upsamples.0.residual.2.weight": [16, 16, 3, 3, 3]} if levels else {}
        [found] = components_of({name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()})
        return found.kind
    assert kind(3, [3, 16, 3, 3, 3]) == "qwen_vae"
    assert {kind(12, [12, 16, 3, 3, 3], True), kind(4, [4, 16, 3, 3, 3]), kind(3, [12, 16, 3, 3, 3])} == {"other vae"}
    assert kind(4, [4, 16, 1, 3, 3], True) == "qwen_21_vae"


def test_the_wrong_one_is_refused_by_name(tmp_path):
    paths = [tiny_vaes.make_file(kind, tmp_path / f"{kind}.safetensors", tiny_vaes.make_vae(kind))
             for kind in tiny_vaes.KINDS]
    wanted = WantedPart("vae", "qwen_vae", ("qwen_image_vae.safetensors",), channels=16)
    source = ModelSource(tmp_path / "denoiser.safetensors", "denoiser", others=(paths[0],))
    with pytest.raises(UserError, match="'flux2.safetensors' holds a FLUX.2 VAE with 32 latent channels .fp32., and "
                                        "Qwen-Image takes a Qwen-Image VAE with 16 latent channels. Choose"):
        separate_components(source, "Qwen-Image", [wanted])
    with pytest.raises(UserError, match="lacks its Qwen-Image VAE with 16 latent channels.* Put it into models/vae .people "
                                        "usually have it as qwen_image_vae.safetensors"):
        separate_components(ModelSource(source.path, "denoiser"), "Qwen-Image", [wanted])
    assert separate_components(ModelSource(source.path, "denoiser", others=(paths[1],)), "Qwen-Image", [wanted])


def test_variants_of_flux2s_file_are_read(tmp_path):
    """Convolutions inside encoder and decoder, no counter, a narrower decoder."""
    vae = AutoencoderKLFlux2(block_out_channels=(64, 64, 64, 128), decoder_block_out_channels=(32, 32, 32, 64),
                             layers_per_block=1, latent_channels=4)
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(config | {"decoder_block_out_channels": None}))
    weights = tiny_vaes.original_weights("flux2", vae)
    del weights["bn.num_batches_tracked"]
    moved = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    save_file({next((moved[start] + name.removeprefix(start) for start in moved if name.startswith(start)), name): tensor
               for name, tensor in weights.items()}, tmp_path / "flux2.safetensors")
    family, base = latents_of("flux2"), base_of("flux2", tmp_path / "flux2.safetensors", tmp_path)
    loaded, expected = family.load_vae(base).state_dict(), vae.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    assert family.vae_entries(base).keys() == tiny_vaes.original_weights("flux2", vae).keys()
    save_file({name: tensor for name, tensor in weights.items() if name != "bn.running_var"}, tmp_path / "flux2.safetensors")
    with pytest.raises(UserError, match="'tiny' is not whole: bn.running_var is missing"):
        family.load_vae(base)


def test_statistics_for_each_channel_and_the_right_class_are_required(tiny, tmp_path):
    kind, _, folder = tiny
    config = json.loads((folder / "vae/config.json").read_text())
    field = "batch_norm_eps" if kind == "flux2" else "latents_std"
    wrong = [config | {"_class_name": "AutoencoderKLWan" if kind == "qwen21" else "AutoencoderKLQwenImage21"},
             config | {field: [1.0]}, config | {field: "1"}, config | {"patch_size": [4, 4], "input_channels": 4}]
    (tmp_path / "vae").mkdir()
    for each in wrong:
        (tmp_path / "vae/config.json").write_text(json.dumps(each))
        with pytest.raises(UserError, match="vae/config.json"):
            latents_of(kind).latent_format(base_of(kind, tmp_path))


@torch.no_grad()
def test_they_work_in_tiles_where_the_memory_is_full(tiny, monkeypatch):
    """Whole images are refused as by a full GPU; tiles see 64 pixels at once."""
    monkeypatch.setattr("finetune.trainers.families.kl_latents.TILE", 64)
    kind, _, folder = tiny
    family, base = latents_of(kind), base_of(kind, folder)
    vae, form, images, largest = family.load_vae(base), family.latent_format(base), pixels(kind, 96), []

    def refuse_whole_images(module, arguments):
        side = max(arguments[0].shape[-2:])
        if side > (64 if module is vae.encoder else 64 * vae.encoder_factor):
            raise torch.OutOfMemoryError
        largest.append(side)
    vae.encoder_factor = 1 / (8 if kind != "qwen21" else 16)
    whole = family.encode_images(vae, images, form)
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(refuse_whole_images)
    tiled = family.encode_images(vae, images, form)
    decoded = family.decode_latents(vae, tiled, form)
    assert tiled.shape == whole.shape and decoded.shape == images.shape and len(largest) > 10
    assert not torch.equal(tiled, whole) and (tiled - whole).square().mean() < 0.5 * whole.var()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen", "qwen21"])
def test_nothing_is_kept_for_frames_to_come(kind, tmp_path):
    """While an image is encoded and decoded, whole and in tiles."""
    tiny_vaes.make_vae(kind).save_pretrained(tmp_path / "vae")
    family, base, seen = latents_of(kind), base_of(kind, tmp_path), []
    vae, form = family.load_vae(base), family.latent_format(base)
    for part in (vae.encoder.mid_block, vae.decoder.mid_block):
        part.register_forward_pre_hook(
            lambda module, given, more: seen.extend([*given[1:], *more.values()]), with_kwargs=True)
    for _ in range(2):
        family.decode_latents(vae, family.encode_images(vae, pixels(kind, 64), form), form)
        family.use_tiles(vae, 64, form.downscale)
    assert len(seen) > 6 and not any(isinstance(each, torch.Tensor) for kept in seen if kept for each in kept)
