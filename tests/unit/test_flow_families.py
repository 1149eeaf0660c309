"""SD3 and FLUX.1: what they load is what diffusers loads, from every layout; captions of any length; names of tensors."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune.trainers import families
from finetune.trainers.errors import UserError
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.flux3 import REFERENCE
from finetune.trainers.families.recognition import recognize
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_flow
from support.flow_models import FLOW_MODELS

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ["a cat", "a dog on a hill"]
LONG = "one word after the other " * 120


@pytest.fixture(scope="module", params=tiny_flow.FAMILIES)
def flow(request, tmp_path_factory):
    """(family, recognized diffusers folder, the same model recognized in one file)"""
    place = tmp_path_factory.mktemp(request.param)
    folder = tiny_flow.make_folder(request.param, place / "folder")
    one = tiny_flow.make_single_file(request.param, folder, place / "one.safetensors")
    return (families.get(request.param), recognize(str(folder), "folder"),
            recognize(str(one), "one.safetensors", configs=str(folder)))


def latents_and_timesteps(kind, base):
    generator = torch.Generator().manual_seed(0)
    channels = kind.latent_format(base).channels
    return torch.randn(2, channels, 8, 8, generator=generator), torch.tensor([300.0, 700.0])


@torch.no_grad()
def test_a_prediction_is_that_of_diffusers_own_model(flow):
    kind, base, _ = flow
    latents, timesteps = latents_and_timesteps(kind, base)
    conditioning = kind.encode_captions(kind.load_text(base, torch.float32), CAPTIONS)
    ours = kind.predict(kind.load_denoiser(base, torch.float32), latents, timesteps, conditioning)
    model = FLOW_MODELS[kind.name]
    own = model.pipeline.from_pretrained(base.path).transformer  # with the layers that its folder has
    plain = model.velocity(own, latents, timesteps / 1000, conditioning)
    assert plain.std() > 0.1  # not all zeros, as fresh models predict
    assert torch.allclose(ours, plain, atol=1e-5)


@torch.no_grad()
def test_one_file_holds_the_same_model_as_its_folder(flow):
    kind, folder, one = flow
    assert (one.layout, one.prediction_type) == ("single_file", "flow")
    assert one.multiple == kind.patch * kind.latent_format(folder).downscale
    for load in (kind.load_denoiser, lambda base, dtype: kind.load_vae(base)):
        first, second = load(folder, torch.float32).state_dict(), load(one, torch.float32).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    first, second = (kind.encode_captions(kind.load_text(base, torch.float32), CAPTIONS) for base in (folder, one))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.tensors.items())


@torch.no_grad()
def test_captions_of_different_lengths_are_predicted_as_if_each_were_alone(flow):
    kind, base, _ = flow
    latents, timesteps = latents_and_timesteps(kind, base)
    denoiser, text = kind.load_denoiser(base, torch.float32), kind.load_text(base, torch.float32)
    each = [kind.encode_captions(text, [caption]) for caption in ("a cat", LONG)]
    assert each[0]["hidden"].shape[1] < each[1]["hidden"].shape[1]
    together = kind.predict(denoiser, latents, timesteps, Conditioning.collated(each))
    alone = [kind.predict(denoiser, latents[[number]], timesteps[[number]], said) for number, said in enumerate(each)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_checkpointing_changes_no_gradient(flow):
    """With captions of different lengths."""
    kind, base, _ = flow
    latents, timesteps = latents_and_timesteps(kind, base)
    denoiser, text = kind.load_denoiser(base, torch.float32).train(), kind.load_text(base, torch.float32)
    conditioning, gradients = kind.encode_captions(text, CAPTIONS), []
    for _ in range(2):
        latents = latents.detach().requires_grad_()
        kind.predict(denoiser, latents, timesteps, conditioning).square().sum().backward()
        gradients.append(latents.grad)
        denoiser.enable_gradient_checkpointing()
    assert gradients[0].abs().max() > 1e-3 and torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_names_lead_back(flow):
    """Every tensor of the module has one native name, and no two have the same."""
    kind, _, one = flow
    key_map = kind.layer_names.key_map
    stored = {name.removeprefix("model.diffusion_model.") for name in load_file(one.path) if name.startswith("model.")}
    module = kind.load_denoiser(one, torch.float32).state_dict()
    unread = {name for name in stored if f".{REFERENCE}." in name}  # what FLUX 3 has for images that are edited
    assert {key_map.native_tensor(name) for name in module} == stored - unread and bool(unread) == (kind.name == "flux3")
    assert all(key_map.module_tensor(key_map.native_tensor(name)) == name for name in module)


@pytest.mark.parametrize("family, name, mark, words", [
    ("z_image", "x", ("siglip_embedder.0.weight", 4), "a Z-Image that is given images besides the caption"),
    ("z_image", "x", ("dec_net.cond_embed.weight", 4), "a Z-Image that works on pixels, without a VAE"),
    ("qwen_image", "x", ("__index_timestep_zero__", 0), "Qwen-Image-Edit 2511"),
    ("qwen_image", "x", ("time_text_embed.addition_t_embedding.weight", 4), "Qwen-Image-Layered"),
    ("qwen_image", "x", ("txt_norm.weight", 2560), "Mage-Flow"),
    ("qwen_image", "qwen_image_edit_2509_bf16.safetensors", None, r"Qwen-Image-Edit \(by its name\)")])
def test_relatives_are_refused_by_what_they_are(family, name, mark, words, tiny_bases, tmp_path):
    weights = tiny_flow.single_file_weights(family, Path(tiny_bases[family].path))
    changed = {f"model.diffusion_model.{mark[0]}": torch.zeros(mark[1])} if mark else {}
    save_file({**weights, **changed}, tmp_path / "relative.safetensors")
    words = f"{words}, which is not trained here. Choose a {families.get(family).title} model that makes"
    with pytest.raises(UserError, match=f"'{name}' is {words}"):
        recognize(str(tmp_path / "relative.safetensors"), name)


def test_folders_of_pipelines_that_are_given_images_are_refused(tiny_bases, tmp_path):
    shutil.copytree(tiny_bases["qwen_image"].path, tmp_path / "edit")
    index = tmp_path / "edit" / "model_index.json"
    index.write_text(index.read_text().replace("QwenImagePipeline", "QwenImageEditPlusPipeline"))
    with pytest.raises(UserError, match="'edit' is Qwen-Image-Edit, which is not trained here"):
        recognize(str(tmp_path / "edit"), "edit")


@pytest.mark.parametrize("family", [each for each in tiny_flow.FAMILIES if families.get(each).needs_diffusers])
def test_an_older_diffusers_is_named_before_anything_is_loaded(family, tiny_bases, monkeypatch):
    kind = families.get(family)
    monkeypatch.setattr("finetune.trainers.required_packages.version", lambda package: "0.35.2")
    with pytest.raises(UserError, match=f"^{kind.title} needs diffusers {kind.needs_diffusers} or newer, and 0.35.2 is"):
        recognize(tiny_bases[family].path, "folder")
    monkeypatch.setattr("finetune.trainers.required_packages.version", lambda package: f"{kind.needs_diffusers}.0")
    assert recognize(tiny_bases[family].path, "folder").family == family


@pytest.mark.parametrize("name, title, steps", [
    ("z_image_turbo_bf16.safetensors", "Turbo", 8), ("Z-Image-Turbo", "Turbo", 8), ("z_image_bf16.safetensors", "Base", 28),
    ("z_image_de_turbo_v1_bf16.safetensors", "Base", 28), ("mine/ZImage-DeTurbo.safetensors", "Base", 28)])
def test_turbo_is_told_by_its_name(name, title, steps, tiny_bases):
    """What was trained back out of Turbo is not distilled any more."""
    kind, base = families.get("z_image"), tiny_bases["z_image"].model_copy(update={"name": name})
    assert (kind.base_title(base), kind.usual_sampling(base).steps) == (f"Z-Image {title} (by its name)", steps)
    assert len(kind.base_notes(base)) == (title == "Turbo")


def test_half_precision_is_warned_of_where_values_leave_its_range():
    overflowing = [family for family in tiny_flow.FAMILIES if families.get(family).precision_note(torch.float16)]
    assert "z_image" in overflowing and "flux" not in overflowing
    assert not any(families.get(family).precision_note(torch.bfloat16) for family in tiny_flow.FAMILIES)


def test_nothing_of_a_forward_pass_stays(flow):
    """The joined layers' results are let go, also where gradients flow."""
    kind, base, _ = flow
    latents, timesteps = latents_and_timesteps(kind, base)
    denoiser = kind.load_denoiser(base, torch.float32)
    conditioning = kind.encode_captions(kind.load_text(base, torch.float32), CAPTIONS)
    kind.predict(denoiser, latents.requires_grad_(), timesteps, conditioning).sum().backward()
    joined = [module.joined for module in denoiser.modules() if hasattr(module, "joined")]
    assert (len(joined) > 3) == any(rule.rows for rule in kind.layer_names.key_map.rules)
    assert all(each.given is None and not each.parts for each in joined)


@torch.no_grad()
def test_a_vae_works_in_tiles_where_the_memory_is_full(monkeypatch):
    """Whole images are refused as by a full GPU: what comes back from tiles looks as what comes back from the whole."""
    monkeypatch.setattr("finetune.trainers.families.kl_latents.TILE", 128)
    kind, base = families.get("sd3"), recognize(str(ROOT / "demo_flow_base" / "demo_flow_base.safetensors"), "demo")
    form, vae = kind.latent_format(base), kind.load_vae(base)
    image = Image.open(next((ROOT / "example_datasets" / "openmoji").glob("*.png"))).convert("RGB").resize((256, 192))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    whole = kind.decode_latents(vae, kind.encode_images(vae, pixels, form), form)
    for part in (vae.encoder, vae.decoder):
        part.register_forward_pre_hook(_refuse_whole_images)
    tiled = kind.decode_latents(vae, kind.encode_images(vae, pixels, form), form)
    assert tiled.shape == pixels.shape
    assert (tiled - whole).square().mean() < 0.25 * (whole - pixels).square().mean()


def _refuse_whole_images(module, arguments):
    if max(arguments[0].shape[-2:]) > (128 if arguments[0].shape[1] == 3 else 16):
        raise torch.OutOfMemoryError


def test_anima_is_told_from_cosmos_which_it_is_made_of(tiny_bases, tmp_path):
    """Its adapter is a part of its own in folders; files begin as Cosmos' code writes them, or as ComfyUI does."""
    one = tiny_flow.make_single_file("anima", Path(tiny_bases["anima"].path), tmp_path / "one.safetensors")
    denoiser = {name.replace("model.diffusion_model.", "net."): tensor for name, tensor in load_file(one).items()}
    save_file(denoiser, tmp_path / "net.safetensors")
    first, second = (recognize(str(tmp_path / f"{name}.safetensors"), name, configs=tiny_bases["anima"].path)
                     for name in ("one", "net"))
    one, other = (families.get("anima").load_denoiser(base, torch.float32).state_dict() for base in (first, second))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    cosmos = shutil.copytree(tiny_bases["anima"].path, tmp_path / "cosmos", ignore=shutil.ignore_patterns("text_cond*"))
    with pytest.raises(UserError, match="'cosmos' is not a diffusers model"):
        recognize(str(cosmos), "cosmos")
