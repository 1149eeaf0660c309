"""A flow model that is saved as it was loaded comes back bit for bit, in whatever form its parts were stored."""
from pathlib import Path

import pytest
import torch
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.families.recognition import recognize
from finetune.trainers.methods.protocol import Parts
from safetensors.torch import load_file, save_file
from support import tiny_flow

DENOISER, T5 = "model.diffusion_model.", "text_encoders.t5xxl.transformer."
FP8 = torch.float8_e4m3fn


def saved(base, folder: Path, text: bool, precision: str = "bf16") -> dict:
    """The tensors of the file that full training without a step ends in."""
    family = families.get(base.family)
    encoders = family.load_text(base, torch.float32) if text else None
    parts = Parts(family, family.load_denoiser(base, torch.float32), encoders, base)
    spec = specs.FullSpec(text_encoder_learning_rate=1e-4 * text, file_precision=precision, train_t5=text)
    report = methods.make(spec, 1e-4, family).save(parts, folder, "tuned", {})
    assert report.change_norm == 0
    return load_file(folder / "tuned.safetensors")


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        tensor.dtype == found[name].dtype and torch.equal(bits(tensor), bits(found[name]))
        for name, tensor in expected.items())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@pytest.fixture(params=tiny_flow.FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tiny_bases):
    return Path(tiny_bases[family].path)


def written(weights: dict, path: Path, folder: Path):
    save_file(weights, path)
    return recognize(str(path), "base", configs=str(folder))


@pytest.mark.parametrize("family, text", [
    *((family, False) for family in tiny_flow.FAMILIES), *((family, True) for family in tiny_flow.WITH_TEXT)])
def test_an_all_in_one_file_in_bf16(family, folder, text, tmp_path):
    """Under its own names too: ComfyUI calls the scale of Flux's norms a weight since February 2026."""
    weights = {name: tensor.bfloat16() for name, tensor in tiny_flow.single_file_weights(family, folder).items()}
    if text:
        weights = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in weights.items()}
    base = written({**weights, "text_encoders.clip_l.logit_scale": torch.tensor(4.6)}, tmp_path / "base.safetensors", folder)
    assert same(saved(base, tmp_path, text), load_file(base.path))


def test_what_is_not_trained_stays_in_fp8_with_its_scales(family, folder, tmp_path):
    """The denoiser becomes the numbers that it stood for; its scales go, and those of T5 stay."""
    weights = {name: tensor.bfloat16() for name, tensor in tiny_flow.single_file_weights(family, folder).items()}
    scales = {}
    for name, tensor in weights.items():
        layer = name.removesuffix("weight")
        if name.startswith((DENOISER, T5)) and name.endswith(".weight") and tensor.ndim == 2:
            scales[f"{layer}scale_weight"] = torch.tensor(0.5)
            weights[name] = (2 * tensor).to(FP8)
    weights |= scales | {f"{prefix}scaled_fp8": torch.zeros(2, dtype=FP8) for prefix in (DENOISER, T5)}
    base = written(weights, tmp_path / "base.safetensors", folder)
    assert base.storage
    expected = {}
    for name, tensor in weights.items():
        if name.startswith(DENOISER) and tensor.dtype == FP8 and name.endswith("weight"):
            expected[name] = (tensor.float() / 2).bfloat16()  # exact: bf16 has more digits than fp8
        elif not (name.startswith(DENOISER) and name.endswith(("scale_weight", "scaled_fp8"))):
            expected[name] = tensor
    assert same(saved(base, tmp_path, text=False), expected)


def test_a_denoiser_in_a_file_of_its_own(family, folder, tmp_path):
    """Without a prefix there, with one in the file that is written: ComfyUI reads both."""
    one = written({name: tensor.bfloat16() for name, tensor in tiny_flow.single_file_weights(family, folder).items()},
                  tmp_path / "one.safetensors", folder)
    denoiser = {name.removeprefix(DENOISER): tensor for name, tensor in load_file(one.path).items()
                if name.startswith(DENOISER)}
    expected = {DENOISER + name: tensor for name, tensor in denoiser.items()}
    # as ComfyUI saves it since February 2026
    denoiser = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in denoiser.items()}
    save_file(denoiser, tmp_path / "denoiser.safetensors")
    own = specs.ComponentSpec(name="transformer", path=str(tmp_path / "denoiser.safetensors"))
    base = one.model_copy(update={"layout": "separate_files", "path": own.path, "components": tuple(
        own if each.name == own.name else each for each in one.components)})
    assert same(saved(base, tmp_path, text=False), expected)


def test_a_folder_trained_with_its_text_becomes_one_file_that_is_a_base_by_its_name(family, tiny_bases, tmp_path):
    """Small as it is: the file tells its sizes. Every weight is read as it was trained, or as it was."""
    base, kind, learns = tiny_bases[family], families.get(family), family in tiny_flow.WITH_TEXT
    parts = Parts(kind, kind.load_denoiser(base, torch.float32), kind.load_text(base, torch.float32), base)
    trained = {*parts.denoiser.parameters(), *(parts.text.parameters() if learns else ())}
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.01)
    spec = specs.FullSpec(text_encoder_learning_rate=1e-4 * learns, file_precision="fp32", train_t5=learns)
    report = methods.make(spec, 1e-4, kind).save(parts, tmp_path, "tuned", {})
    again = recognize(str(tmp_path / "tuned.safetensors"), "tuned")
    assert (again.family, again.layout, bool(again.configs)) == (family, "single_file", True)
    assert kind.native_shapes(again) == kind.native_shapes(base)
    for one, other in ((parts.denoiser, kind.load_denoiser(again, torch.float32)),
                       (parts.text, kind.load_text(again, torch.float32)), (kind.load_vae(base), kind.load_vae(again))):
        one, other = one.state_dict(), other.state_dict()
        assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    count = sum(each.numel() for each in trained)
    assert report.change_norm == pytest.approx(0.01 * count**0.5, rel=1e-3)
