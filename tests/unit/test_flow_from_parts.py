"""A flow model in separate files as people have them: an int8 denoiser with rotated weights, large text encoders in scaled
fp8, CLIP-L in fp16, the VAE in bf16. It is the model that the same numbers in full precision are."""
import json
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.families.component_recognition import storage_of
from finetune.trainers.families.parts_finding import Candidate, find_parts
from finetune.trainers.families.recognition import recognize
from safetensors.torch import load_file, save_file
from support import tiny_flow
from support.flow_models import FLOW_MODELS
from support.running import losses_of

FOUR = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).float()
ROTATION = torch.kron(FOUR, FOUR) / 4
NOTE = torch.tensor(list(json.dumps({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}).encode()),
                    dtype=torch.uint8)


def int8_rotated(tensors: dict) -> tuple[dict, dict]:
    """(as ComfyUI's int8_convrot files have it, the same numbers in float32)."""
    small, plain = {}, dict(tensors)
    for name, tensor in tensors.items():
        small[name] = tensor
        if tensor.ndim == 2 and tensor.shape[1] % 16 == 0 and name.endswith("weight"):
            turned = (tensor.view(len(tensor), -1, 16) @ ROTATION).flatten(1)
            scale = turned.abs().amax(1, keepdim=True) / 127
            small |= {name: (turned / scale).round().to(torch.int8), f"{name}_scale": scale,
                      name.removesuffix("weight") + "comfy_quant": NOTE.clone()}
            plain[name] = ((small[name] * scale).view(len(tensor), -1, 16) @ ROTATION).flatten(1)
    return small, plain


def scaled_fp8(tensors: dict) -> tuple[dict, dict]:
    """The same for files of the older naming."""
    small, plain = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, dict(tensors)
    for name, tensor in tensors.items():
        small[name] = tensor
        if tensor.ndim == 2 and ".layer" in name:
            scale = tensor.abs().max() / 448
            small |= {name: (tensor / scale).to(torch.float8_e4m3fn), name.removesuffix("weight") + "scale_weight": scale}
            plain[name] = small[name].float() * scale
    return small, plain


def noted_fp8(tensors: dict) -> tuple[dict, dict]:
    """The same with ComfyUI's notes."""
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    small, plain = {}, dict(tensors)
    for name, tensor in tensors.items():
        small[name] = tensor
        if tensor.ndim == 2:
            layer, scale = name.removesuffix("weight"), tensor.abs().max() / 448
            small |= {name: (tensor / scale).to(torch.float8_e4m3fn), f"{layer}weight_scale": scale,
                      f"{layer}comfy_quant": note.clone()}
            plain[name] = small[name].float() * scale
    return small, plain


def in_full(dtype):
    def stored(tensors: dict) -> tuple[dict, dict]:
        small = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return small, {name: tensor.float() for name, tensor in small.items()}
    return stored


@pytest.mark.parametrize("family", tiny_flow.FAMILIES)
def test_it_is_the_model_of_the_same_numbers_in_full(family, tmp_path):
    """SD3 goes without CLIP-G here, which small models cannot be told to have."""
    folder = tiny_flow.make_folder(family, tmp_path / "folder")
    weights, kind = tiny_flow.single_file_weights(family, folder), families.get(family)
    denoiser, vae = FLOW_MODELS[family].files
    layouts = {denoiser: ("model.diffusion_model.", int8_rotated), vae: (kind.vae_prefix, in_full(torch.bfloat16))}
    words = {"vae": f"{vae}.safetensors (bf16), found"}
    for part in kind.read_by(0).values():
        weights |= {part.prefix + mark: tensor for mark, tensor in FLOW_MODELS[family].text_marks.items()}
        name = next((name for name in part.files if "fp8" in name), part.files[0]) if part.kind.is_large else part.files[0]
        if part.kind.kind != "clip_g":
            layouts[Path(name).stem] = part.prefix, scaled_fp8 if part.kind.is_large else in_full(torch.float16)
            words[part.component] = f"{name} ({'scaled fp8' if part.kind.is_large else 'fp16'}), found"
    bases = []
    for place in ("small", "plain"):
        (tmp_path / place).mkdir()
        files = []
        for name, (prefix, stored) in layouts.items():
            own = {each.removeprefix(prefix): tensor for each, tensor in weights.items() if each.startswith(prefix)}
            files.append(tmp_path / place / f"{name}.safetensors")
            save_file({each: tensor.contiguous() for each, tensor in stored(own)[place == "plain"].items()}, files[-1])
        first, *offered = (Candidate.of(file.name, file) for file in files)
        parts = find_parts(first, [], offered, 3)
        if place == "small":
            assert {part.want.component: part.words.partition(": ")[2] for part in parts if part.file} == words
        bases.append(recognize(str(first.path), first.name, configs=str(folder),
                               others=[str(part.file.path) for part in parts if part.file]))
    assert [base.storage for base in bases] == ["int8", ""] and {base.family for base in bases} == {family}
    for load in (kind.load_vae, lambda base: kind.load_denoiser(base, torch.float32),
                 lambda base: kind.load_text(base, torch.float32)):
        ours, expected = (load(base).state_dict() for base in bases)
        assert ours.keys() == expected.keys() and len(ours) > 10
        assert max(float((ours[name] - expected[name]).abs().max()) for name in ours) < 1e-6


@pytest.mark.parametrize("stored, kept, within", [(noted_fp8, "scaled fp8", 0), (int8_rotated, "int8", 1e-6)])
def test_training_on_a_quantized_denoiser_is_training_on_its_numbers(stored, kept, within, tiny_bases, make_spec, tmp_path):
    """Of which the loss of the second step tells. Rotated numbers differ by the order in which they are summed up."""
    folder, found = tiny_bases["qwen_image"], {}
    files = stored({name: tensor.clone() for name, tensor in load_file(
        next(Path(folder.path, "transformer").glob("*.safetensors"))).items()})
    for name, tensors in zip(("small", "plain"), files, strict=True):
        path = tmp_path / f"{name}.safetensors"
        save_file({each: tensor.contiguous() for each, tensor in tensors.items()}, path)
        own = specs.ComponentSpec(name="transformer", path=str(path))
        assert storage_of(read_header(path)[0]) == (kept if name == "small" else "fp32")
        others = (each for each in folder.components if each.name != own.name)
        base = folder.model_copy(update={"path": str(path), "layout": "separate_files", "configs": folder.path,
                                         "components": (own, *others)})
        losses, run = losses_of(make_spec(base, name=name, method=specs.LoraSpec(rank=2, alpha=2, file_precision="fp32"),
                                          training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64)))
        found[name] = losses, load_file(run.artifact)
    (losses, ours), (expected, theirs) = found["small"], found["plain"]
    assert losses == pytest.approx(expected, abs=within, rel=0) and ours.keys() == theirs.keys()
    assert within or all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert all(".lora_" in name and name.startswith("diffusion_model.transformer_blocks.") for name in ours)
