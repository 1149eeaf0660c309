"""An assistant LoRA is on while training and in nothing else: losses are those of a base that has it in its weights, images
those of the base, and files hold none of it."""
import numpy as np
import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.recognition import recognize
from finetune.trainers.memory.placement import Placement
from finetune.trainers.training.assistant import Assistant
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny_flow
from support.running import losses_of, losses_with_a_stop, training_of

RANK, ALPHA, STRENGTH = 3, 1.5, 0.5
DENOISER = "model.diffusion_model."
LAYERS = {"transformer.transformer_blocks.0.attn.to_k": ("double_blocks.0.img_attn.qkv", 128, 256),
          "diffusion_model.double_blocks.1.txt_mlp.0": ("double_blocks.1.txt_mlp.0", 0, 512),
          "lora_unet_single_blocks_0_linear1": ("single_blocks.0.linear1", 0, 896),
          "lora_unet_single_blocks_1_modulation_lin": ("single_blocks.1.modulation.lin", 0, 384)}
"""Layers of the tiny FLUX.1 as three programs spell them → their native names, and the first and the last of their rows."""
TEXT = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def a_lora(path, shapes, **changes):
    """A plain LoRA for layers of these names and shapes, with other tensors in place of its own."""
    draw, tensors = torch.Generator().manual_seed(11), {}
    for name, (rows, columns, *kernel) in shapes.items():
        tensors |= {f"{name}.lora_down.weight": torch.randn(RANK, columns, *kernel, generator=draw) / columns**0.5,
                    f"{name}.lora_up.weight": torch.randn(rows, RANK, *[1] * len(kernel), generator=draw),
                    f"{name}.alpha": torch.tensor(ALPHA)}
    save_file({**tensors, **changes}, path)
    return tensors


def assisted(base, path, strength=STRENGTH):
    return base.model_copy(update={"assistant": specs.AssistantSpec(
        path=str(path), name=path.name, fingerprint="1", strength=strength)})


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """(FLUX.1 schnell as one file, the same with an assistant, the same with that in its weights)"""
    place = tmp_path_factory.mktemp("assistant")
    folder = tiny_flow.make_folder("flux", place / "folder", plain=True)
    weights = tiny_flow.single_file_weights("flux", folder)
    shapes = {name: (last - first, weights[f"{DENOISER}{native}.weight"].shape[1])
              for name, (native, first, last) in LAYERS.items()}
    lora = a_lora(place / "assistant.safetensors", {**shapes, TEXT: (64, 32)})
    save_file(weights, place / "base.safetensors")
    for name, (native, first, last) in LAYERS.items():
        change = lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]
        weights[f"{DENOISER}{native}.weight"][first:last] += STRENGTH * ALPHA / RANK * change
    save_file(weights, place / "merged.safetensors")
    base, merged = (recognize(str(place / f"{name}.safetensors"), "base", configs=str(folder))
                    for name in ("base", "merged"))
    return base, assisted(base, place / "assistant.safetensors"), merged


METHODS = {"lora": specs.LoraSpec(rank=2, alpha=2, targets="all with convolutions"),
           "full": specs.FullSpec(file_precision="fp32")}


def first_preview(run):
    return np.asarray(Image.open(run.folder / "previews" / "step_000000.png"), np.int16)


def spec_for(make_spec, base, method=METHODS["lora"], **parts):
    """Plain gradient descent, which makes no more of rounding than it is."""
    return make_spec(base, method=method, **{
        "training": specs.TrainingSpec(steps=3, batch_size=2, resolution=64),
        "optimizer": specs.OptimizerSpec(name="sgd", learning_rate=0.1, weight_decay=0), **parts})


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_a_base_that_holds_it_and_the_result_holds_none_of_it(name, flux, make_spec):
    validation, found, files = specs.ValidationSpec(fraction=0.25, every=3), [], []
    _, *bases = flux
    for number, base in enumerate(bases):
        losses, run = losses_of(spec_for(make_spec, base, METHODS[name], validation=validation, name=f"run {number}"))
        found.append([*losses, run.report.validation.first, run.report.validation.last])
        files.append(load_file(run.artifact))
    assert found[0] == pytest.approx(found[1], abs=1e-5) and len(set(found[0])) == 5
    one, other = files
    assert one.keys() == other.keys()
    starts = [load_file(base.path) if name == "full" else dict.fromkeys(one, 0) for base in bases]
    for key, tensor in one.items():
        assert torch.allclose(tensor - starts[0][key], other[key] - starts[1][key], atol=2e-5), key


def test_previews_are_made_without_it_and_a_stop_changes_nothing(flux, make_spec, tmp_path):
    base, with_it, merged = (spec_for(make_spec, each, name=f"run {number}", previews=specs.PreviewSpec(
        prompts=("an image",), every=3, sampler_steps=2)) for number, each in enumerate(flux))
    losses, run = losses_of(with_it)
    resumed, again = losses_with_a_stop(with_it, 2, tmp_path / "elsewhere")
    assert resumed == losses
    one, other = load_file(run.artifact), load_file(again.artifact)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    previews = [first_preview(losses_of(each.model_copy(update={"training": specs.TrainingSpec(
        steps=1, batch_size=2, resolution=64)}))[1]) for each in (base, merged)]
    assert np.array_equal(first_preview(run), previews[0]) and not np.array_equal(first_preview(run), previews[1])
    with safe_open(run.artifact, "pt") as file:
        assert file.metadata()["finetune.assistant_lora"] == "assistant.safetensors at 0.5"
    told = " ".join(run.report.notes)
    assert "assistant.safetensors is on with the strength 0.5 while training" in told and "distilled" not in told
    assert "1 layer of assistant.safetensors of text encoders" in told


def outputs(base, denoiser):
    draw, config = torch.Generator().manual_seed(1), families.get(base.family).latent_format(base)
    latents = torch.randn(1, config.channels, 8, 8, generator=draw)
    widths = {"flux": dict(hidden=64, pooled=32), "sd1": dict(hidden=32)}[base.family]
    said = Conditioning({name: torch.randn(1, *[4] * (name == "hidden"), width, generator=draw)
                         for name, width in widths.items()})
    return families.get(base.family).predict(denoiser, latents, torch.tensor([500]), said)


@torch.no_grad()
@pytest.mark.parametrize("memory", [dict(swapped_blocks=4), dict(frozen_precision="int8", swapped_blocks=2)])
def test_weights_stay_packed_or_away_and_are_there_once(memory, flux, tmp_path):
    base, with_it, _ = flux
    kind = families.get("flux")
    place = Placement.of(specs.MemorySpec(**memory), torch.device("cpu"), torch.float32, folder=tmp_path)
    packed = kind.load_denoiser(base, torch.float32, place.keeper)
    assistant, count = Assistant(with_it, kind), len(packed.state_dict())
    alone = outputs(base, packed)
    assistant.attach(packed, torch.float32)
    assert len(packed.state_dict()) == count and len(list(packed.buffers())) > 0
    plain = kind.load_denoiser(base, torch.float32)
    for name, layer in plain.named_modules():  # the same rounded weights, and the assistant's change in them
        if hasattr(layer, "weight") and isinstance(layer, torch.nn.Linear):
            other = packed.get_submodule(name)
            layer.weight.copy_(other.weight)
            if hasattr(other, "assistant"):
                layer.weight.add_(other.assistant.up @ other.assistant.down)
    assert torch.allclose(outputs(base, packed), outputs(base, plain), atol=1e-5)
    with assistant.off():
        assert torch.equal(outputs(base, packed), alone)
    assert not torch.allclose(outputs(base, packed), alone, atol=1e-3)


@torch.no_grad()
def test_convolutions_of_a_unet_and_other_makers_names(tiny_bases, tmp_path):
    """SD 1.x as two programs name it, a 3 × 3 convolution with a stride among the layers."""
    base, kind = tiny_bases["sd1"], families.get("sd1")
    denoiser, plain = (kind.load_denoiser(base, torch.float32) for _ in range(2))
    layers = {"unet.down_blocks.0.downsamplers.0.conv": "down_blocks.0.downsamplers.0.conv",
              "lora_unet_down_blocks_0_attentions_0_proj_in": "down_blocks.0.attentions.0.proj_in",
              "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k":
                  "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"}
    weights = {name: plain.get_submodule(module).weight for name, module in layers.items()}
    lora = a_lora(tmp_path / "lora.safetensors", {name: tuple(weight.shape) for name, weight in weights.items()})
    for name, weight in weights.items():
        down, up = (lora[f"{name}.lora_{part}.weight"].flatten(1) for part in ("down", "up"))
        weight.add_(STRENGTH * ALPHA / RANK * (up @ down).view_as(weight))
    Assistant(assisted(base, tmp_path / "lora.safetensors"), kind).attach(denoiser, torch.float32)
    assert torch.allclose(outputs(base, denoiser), outputs(base, plain), atol=1e-5)


@pytest.mark.parametrize("family", ["sd3", "z_image"])
def test_families_find_their_layers_whosever_names_their_files_get(family, tmp_path):
    """kohya's and ComfyUI's; on the meta device, as before anything is loaded."""
    kind = families.get(family)
    base = recognize(str(tiny_flow.make_folder(family, tmp_path / "folder")), "base")
    empty = kind.empty_denoiser(base)
    names = families.layer_names.family_names(family)
    layers = {names.find(kind.denoiser_key(empty, name)): layer for name, layer in empty.named_modules()
              if isinstance(layer, torch.nn.Linear)}
    assert None not in layers and len(layers) > 10
    for maker in ("kohya", "comfyui"):
        a_lora(tmp_path / f"{maker}.safetensors", {each.name(maker): tuple(layer.weight.shape)
                                                   for each, layer in layers.items()})
        assistant = Assistant(assisted(base, tmp_path / f"{maker}.safetensors"), kind)
        assistant.require_fit()
        assistant.attach(kind.empty_denoiser(base), torch.float32, torch.device("meta"))
        assert len(assistant.notes) == 1


KEY = "lora_unet_double_blocks_0_img_attn_proj"


@pytest.mark.parametrize("shapes, changes, words", [
    ({"lora_unet_joint_blocks_0_x_block_attn_qkv": (384, 128)}, {}, "are not in a FLUX.1 model"),
    ({TEXT: (64, 32)}, {}, "cannot assist the training of FLUX.1"),
    ({KEY: (256, 128)}, {}, "is for another model"),
    ({KEY: (128, 128), "lora_unet_double_blocks_17_img_attn_proj": (128, 128)}, {}, "1 of 2 layers"),
    ({KEY: (128, 128)}, {f"{KEY}.lora_up.weight": torch.full((128, RANK), torch.nan)}, "values that are not numbers"),
    ({KEY: (128, 128)}, {f"{KEY}.dora_scale": torch.ones(128, 1)}, "no layer of a plain LoRA"),
    ({}, {f"{KEY}.lokr_w1": torch.ones(2, 2), f"{KEY}.lokr_w2": torch.ones(64, 64)}, "no layer of a plain LoRA"),
    ({}, {"weight": torch.ones(2)}, "holds no LoRA layers"),
])
def test_files_that_do_not_fit_are_refused(shapes, changes, words, flux, make_spec, tmp_path):
    a_lora(tmp_path / "lora.safetensors", shapes, **changes)
    with pytest.raises(UserError, match=words):
        losses_of(spec_for(make_spec, assisted(flux[0], tmp_path / "lora.safetensors")))


def test_a_file_that_is_gone_is_a_sentence(flux, make_spec, tmp_path):
    with pytest.raises(UserError, match="'gone.safetensors' is not there"):
        training_of(spec_for(make_spec, assisted(flux[0], tmp_path / "gone.safetensors")))


def test_a_run_is_another_with_another_assistant_and_the_same_where_the_file_is_moved(flux, make_spec, tmp_path):
    base, with_it, _ = flux
    runs = [spec_for(make_spec, each).identity for each in (
        base, with_it, assisted(base, tmp_path / "assistant.safetensors"), assisted(base, tmp_path / "other.safetensors"),
        assisted(base, tmp_path / "assistant.safetensors", strength=1.0))]
    assert runs[1] == runs[2] and len(set(runs)) == 4
