"""Checkpoints in scaled fp8: the same numbers for everybody who reads them, and no stale scales in what is written."""
import json

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.weights import Weights
from finetune.trainers.errors import UserError
from finetune.trainers.families.recognition import recognize
from finetune.trainers.tools.baking import baked, whole_model
from safetensors.torch import load_file, save_file
from support import tiny
from support.running import losses_of, training_of

E4M3, LARGEST = torch.float8_e4m3fn, 448.0
PREFIXES = ("model.diffusion_model.", "cond_stage_model.", "conditioner.")


def one_scale(weight):
    return weight.abs().max() / LARGEST


def row_scales(weight):
    return weight.abs().amax(dim=1, keepdim=True) / LARGEST


def scaled(tensors: dict, scale_of, suffix: str, flat=False) -> tuple[dict, dict]:
    """(a file in scaled fp8, the same numbers without scales in float32)."""
    small, plain = {}, {}
    for name, tensor in tensors.items():
        plain[name] = small[name] = tensor
        if name.startswith(PREFIXES) and name.endswith(".weight") and tensor.ndim == 2:
            scale = scale_of(tensor.float())
            small[name] = (tensor.float() / scale).to(E4M3)
            small[name.removesuffix("weight") + suffix] = scale.flatten() if flat else scale
            plain[name] = small[name].float() * scale
    return small, plain


@pytest.fixture(scope="module")
def single_files(tiny_bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return {family: load_file(tiny.make_single_file(family, tiny_bases[family].path, folder / f"{family}.safetensors"))
            for family in ("sd1", "sdxl")}


def mark(small: dict, kind: str) -> dict:
    """The markers that packagers put beside the scales."""
    if kind == "old":
        inputs = {name.replace("scale_weight", "scale_input"): torch.tensor(0.5) for name in small if "scale_weight" in name}
        return {**small, **inputs, "scaled_fp8": torch.zeros(2, dtype=E4M3),
                "model.diffusion_model.scaled_fp8": torch.zeros(0, dtype=E4M3)}
    note = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    notes = {name.replace("weight_scale", "comfy_quant"): note.clone() for name in small if name.endswith("weight_scale")}
    return {**small, **notes}


KINDS = {"one scale, old names": (one_scale, "scale_weight", "old"), "rows, old names": (row_scales, "scale_weight", "old"),
         "one scale, new names": (one_scale, "weight_scale", "new"),
         "rows without an axis": (row_scales, "weight_scale", "flat")}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("scale_of, suffix, markers", KINDS.values(), ids=KINDS)
def test_every_part_has_the_numbers_of_the_file_without_scales(scale_of, suffix, markers, family, single_files, tiny_bases,
                                                                tmp_path):
    small, plain = scaled(single_files[family], scale_of, suffix, markers == "flat")
    for name, tensors in (("small", mark(small, markers)), ("plain", plain)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    weights = Weights.of_file(tmp_path / "small.safetensors")
    assert set(weights) == set(plain)
    assert all(weights.weight(name).equal(tensor.float()) for name, tensor in plain.items())
    bases = [recognize(str(tmp_path / f"{name}.safetensors"), name, configs=tiny_bases[family].path)
             for name in ("small", "plain")]
    assert [base.storage for base in bases] == ["scaled fp8", ""]
    kind = families.get(family)
    for load in (lambda base: kind.load_denoiser(base, torch.float32), lambda base: kind.load_text(base, torch.float32)):
        ours, theirs = (load(base).state_dict() for base in bases)
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def test_losses_and_checkpoint_equal_those_of_the_file_without_scales(single_files, tiny_bases, make_spec, tmp_path):
    """DreamBooth writes every tensor of the plain file, and nothing of the scales."""
    small, plain = scaled(single_files["sd1"], one_scale, "scale_weight")
    found = {}
    for name, tensors in (("small", mark(small, "old")), ("plain", plain)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        base = recognize(str(tmp_path / f"{name}.safetensors"), name, configs=tiny_bases["sd1"].path)
        spec = make_spec(base, name=name, method=specs.FullSpec(file_precision="fp32"),
                         training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64))
        losses, run = losses_of(spec)
        found[name] = losses, load_file(run.artifact)
    assert found["small"][0] == found["plain"][0]
    ours, theirs = found["small"][1], found["plain"][1]
    assert ours.keys() == theirs.keys() == plain.keys()
    assert all(ours[name].dtype == torch.float32 and ours[name].equal(theirs[name]) for name in ours)


def test_bake_writes_no_scales(single_files, tmp_path):
    small, plain = scaled(single_files["sd1"], one_scale, "scale_weight")
    save_file(mark(small, "old"), tmp_path / "small.safetensors")
    with pytest.raises(UserError, match="too coarse"):
        whole_model(tmp_path / "small.safetensors", "same", None)
    base, _ = whole_model(tmp_path / "small.safetensors", "fp32", None)
    written = {name: baked(base, entry, (), "fp32").tensor() for name, entry in base.entries.items()}
    assert written.keys() == plain.keys() and all(written[name].equal(plain[name]) for name in plain)


WEIGHT = torch.ones(4, 64).to(E4M3)
FILES = {
    "blocks": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(1, 2)},
    "blocks of columns": {"a.weight": WEIGHT, "a.scale_weight": torch.ones(4, 2)},
    "as many blocks as rows": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(2, 2)},
    "columns": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(1, 64)},
    "scales in eight bits": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(4).to(E4M3)},
    "whole scales": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(4, dtype=torch.int32)},
    "packed": {"a.weight": torch.ones(4, 32, dtype=torch.uint8), "a.weight_scale": torch.ones(1)},
    "DeepSeek": {"a.weight": WEIGHT, "a.weight_scale_inv": torch.ones(1, 1)},
    "NVFP4": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(1), "a.weight_scale_2": torch.ones(1)},
    "bitsandbytes": {"a.weight": torch.ones(128, 1, dtype=torch.uint8), "a.weight.absmax": torch.ones(4)},
    "mxfp8": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(1), "a.comfy_quant": {"format": "mxfp8"}},
    "rotated": {"a.weight": WEIGHT, "a.weight_scale": torch.ones(1),
                "a.comfy_quant": {"format": "int8_tensorwise", "params": {"convrot": True}}},
}


@pytest.mark.parametrize("tensors", FILES.values(), ids=FILES)
def test_layouts_that_are_not_understood_are_refused(tensors, tmp_path):
    save_file({name: torch.tensor(list(json.dumps(tensor).encode()), dtype=torch.uint8) if isinstance(tensor, dict)
               else tensor for name, tensor in tensors.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="'odd.safetensors' keeps .* a layout that is not read.*Choose the bf16, fp16"):
        Weights.of_file(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("layers, refused", [
    ({"a": {"format": "float8_e4m3fn"}}, False), ({"a": {"format": "nvfp4"}}, True), ([], False), ({"a": None}, False)])
def test_the_layout_can_stand_in_the_metadata(layers, refused, tmp_path):
    save_file({"a.weight": WEIGHT, "a.weight_scale": torch.tensor(2.0)}, tmp_path / "odd.safetensors",
              {"_quantization_metadata": json.dumps({"layers": layers})})
    if refused:
        with pytest.raises(UserError, match="nvfp4"):
            Weights.of_file(tmp_path / "odd.safetensors")
    else:
        assert Weights.of_file(tmp_path / "odd.safetensors").weight("a.weight").unique().tolist() == [2.0]


def test_a_scale_that_is_no_number_is_named(tmp_path):
    save_file({"a.weight": WEIGHT, "a.scale_weight": torch.tensor(float("nan"))}, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="a.weight holds values that are not numbers in 'odd.safetensors'"):
        Weights.of_file(tmp_path / "odd.safetensors").weight("a.weight")


def test_zero_terminal_snr_is_switched_on_by_the_base(tiny_bases, make_spec):
    base = tiny_bases["sd2"].model_copy(update={"zero_terminal_snr": True})
    training = training_of(make_spec(base))
    assert training.spec.objective.zero_terminal_snr
    losses, run = losses_of(make_spec(base))
    assert "switched on" in " ".join(run.report.notes)
    asked, _ = losses_of(make_spec(tiny_bases["sd2"], name="asked", objective=specs.ObjectiveSpec(zero_terminal_snr=True)))
    plain, _ = losses_of(make_spec(tiny_bases["sd2"], name="plain"))
    assert losses == asked != plain
