"""Families load the same model from a diffusers folder and from a single file, in every precision."""
import json
import struct
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers.data.images.buckets import Crop
from finetune.trainers.errors import UserError
from finetune.trainers.families.recognition import recognize
from safetensors.torch import load_file, save_file
from support import tiny


def outputs(base, dtype=torch.float32):
    """Everything a family computes, on fixed inputs."""
    family = families.get(base.family)
    form = family.latent_format(base)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((1, 3, 64, 64), generator=generator) * 2 - 1
    latents = family.encode_images(family.load_vae(base), pixels, form)
    text = family.load_text(base, dtype)
    conditioning = family.encode_captions(text, ["a red square"])
    denoiser = family.load_denoiser(base, dtype)
    conditioning |= family.crop_conditioning([Crop.whole(64, 64)])
    with torch.no_grad():
        noise = family.predict(denoiser, latents.to(dtype), torch.tensor([500]), conditioning)
    return [latents, *(conditioning[name] for name in sorted(conditioning.tensors)), noise]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_file_equals_folder(family, dtype, tiny_bases, tmp_path):
    folder = tiny_bases[family]
    path = tiny.make_single_file(family, folder.path, tmp_path / "model.safetensors", dtype)
    single = recognize(str(path), "model", folder.prediction_type, configs=folder.path)
    assert (single.family, single.layout) == (family, "single_file")
    for one, other in zip(outputs(folder), outputs(single), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol={torch.float32: 1e-5, torch.float16: 5e-3}.get(dtype, 5e-2))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_captions_are_encoded_as_diffusers_does(family, tiny_bases):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    base = tiny_bases[family]
    ours = families.get(family)
    conditioning = ours.encode_captions(ours.load_text(base, torch.float32), ["a cat, two dogs"])
    arguments = dict(device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline.from_pretrained(base.path)
        hidden, _, pooled, _ = pipeline.encode_prompt("a cat, two dogs", **arguments)
        torch.testing.assert_close(conditioning["pooled"], pooled)
    else:
        hidden, _ = StableDiffusionPipeline.from_pretrained(base.path).encode_prompt("a cat, two dogs", **arguments)
    torch.testing.assert_close(conditioning["hidden"], hidden)


def test_objective_is_read_from_the_model(tiny_bases):
    assert [tiny_bases[family].prediction_type for family in tiny.FAMILIES] == ["epsilon", "v_prediction", "epsilon"]


def test_marker_of_v_prediction(tiny_bases, tmp_path):
    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "v.safetensors")
    from safetensors.torch import load_file

    save_file({**load_file(path), "v_pred": torch.zeros(0)}, path)
    assert recognize(str(path), "v").prediction_type == "v_prediction"


def refusal(path) -> str:
    with pytest.raises(UserError) as problem:
        recognize(str(path), path.name)
    return str(problem.value)


def test_files_that_are_no_base(tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("this is not a model")
    assert "not a safetensors file" in refusal(text)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    assert "not a safetensors file" in refusal(empty)
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, lora)
    assert "is a LoRA, not a checkpoint" in refusal(lora)
    other = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.zeros(1)}, other)
    assert "not a Stable Diffusion checkpoint" in refusal(other)
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1, 4, 1, 1),
             "conditioner.embedders.0.model.ln_final.weight": torch.zeros(1)}
    save_file(first, other)
    assert "SD 2.x checkpoint in the generative-models layout" in refusal(other)
    save_file({**first, "model.diffusion_model.label_emb.0.0.weight": torch.zeros(1)}, other)
    assert "is an SDXL refiner" in refusal(other)
    pickled = tmp_path / "model.ckpt"
    pickled.touch()
    assert "Only .safetensors" in refusal(pickled)
    alone, text_alone = tmp_path / "alone.safetensors", tmp_path / "text_alone.safetensors"
    save_file({"input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}, alone)
    assert "holds a denoiser (fp32) alone" in refusal(alone) and "Base Model from Parts" in refusal(alone)
    save_file({"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(4, 4)}, text_alone)
    assert "holds a CLIP-L text encoder (fp32), and no denoiser" in refusal(text_alone)
    assert "is not there" in refusal(tmp_path / "missing.safetensors")
    (tmp_path / "folder").mkdir()
    assert "not a diffusers model" in refusal(tmp_path / "folder")


def test_truncated_checkpoint(tiny_bases, tmp_path):
    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "is incomplete" in refusal(path)


def test_header_that_claims_too_much(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "not a safetensors file" in refusal(path)
    path.write_bytes(struct.pack("<Q", 12) + json.dumps({"a": [1, 2]}).encode().ljust(12))
    assert "not a safetensors file" in refusal(path)


@pytest.mark.parametrize("missing, words", [
    ("cond_stage_model.", "no text encoder"), ("first_stage_model.", "no VAE"),
])
def test_incomplete_checkpoints(missing, words, tiny_bases, tmp_path):
    from safetensors.torch import load_file

    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "part.safetensors")
    save_file({name: t for name, t in load_file(path).items() if not name.startswith(missing)}, path)
    assert words in refusal(path)


def test_a_file_of_an_unknown_size_is_explained(tiny_bases, tmp_path):
    path = tiny.make_single_file("sd1", tiny_bases["sd1"].path, tmp_path / "model.safetensors")
    base = recognize(str(path), "model")  # with the configs of full-size SD 1.x
    with pytest.raises(UserError, match="another size .* its UNet is 32, not 320.* Choose the diffusers folder"):
        families.get("sd1").load_denoiser(base, torch.float32)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_denoiser_with_files_beside_it_is_the_same_model(prefix, tiny_bases, tmp_path):
    """As ComfyUI's loaders take them: denoiser, VAE and text encoder in files of their own."""
    whole = tiny_bases["sd1"]
    stored = load_file(tiny.make_single_file("sd1", Path(whole.path), tmp_path / "whole.safetensors"))
    parts = {"denoiser": ("model.diffusion_model.", prefix), "vae": ("first_stage_model.", ""),
             "text": ("cond_stage_model.transformer.", "")}
    for name, (start, own) in parts.items():
        save_file({own + key.removeprefix(start): tensor for key, tensor in stored.items() if key.startswith(start)},
                  tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("text", "vae")]
    base = recognize(str(tmp_path / "denoiser.safetensors"), "apart", configs=whole.path, others=files)
    assert (base.family, base.layout, base.prediction_type) == ("sd1", "separate_files", "epsilon")
    family = families.get("sd1")
    for load in (family.load_vae, lambda base: family.load_denoiser(base, torch.float32),
                 lambda base: family.load_text(base, torch.float32)):
        one, other = load(base).state_dict(), load(whole).state_dict()
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    denoiser = family.load_denoiser(base, torch.float32)
    pairs = list(family.trained_and_base(base, denoiser, family.load_text(base, torch.float32).encoders))
    assert len(pairs) > 100 and all(torch.equal(*pair) for pair in pairs)
    with pytest.raises(UserError, match="lacks its VAE with 4 latent channels.*models/vae"):
        recognize(str(tmp_path / "denoiser.safetensors"), "apart", configs=whole.path, others=files[:1])
