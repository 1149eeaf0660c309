"""Weights in ComfyUI's quantized layouts are the numbers that ComfyUI reads (tests/data/make_quantized_layers.py)."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune.trainers.artifacts import fp8, tensor_files
from finetune.trainers.artifacts.quantized import layout as quantized_layout
from finetune.trainers.artifacts.quantized import without_scales
from finetune.trainers.artifacts.tensor_files import entry_of, read_entries, require_finite
from finetune.trainers.artifacts.weights import Weights
from finetune.trainers.errors import UserError
from safetensors.torch import save_file

STORED = read_entries(Path(__file__).parents[1] / "data" / "quantized_layers.safetensors")
VARIANTS = list(dict.fromkeys(name.partition("/")[0] for name in STORED))
ROWS = {144: [0, 33, 64, 127, 128, 143]}
NOTE = "layer.comfy_quant"


def layer_of(variant: str) -> dict:
    """A layer's tensors by their names in a checkpoint."""
    return {name.removeprefix(f"{variant}/"): entry.tensor() for name, entry in STORED.items()
            if name.startswith(f"{variant}/layer.")}


def read(tensors: dict, metadata=()) -> dict:
    return without_scales({name: entry_of(name, [tensor]) for name, tensor in tensors.items()}, dict(metadata), "a file")


def noted(**note):
    return torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("at_once", [1 << 20, 100])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbers_are_those_that_comfyui_reads(variant, at_once, monkeypatch):
    monkeypatch.setattr(quantized_layout, "AT_ONCE", at_once)
    entries = read(layer_of(variant))
    assert list(entries) == ["layer.weight"]
    weight, expected = entries["layer.weight"].tensor(), STORED[f"{variant}/effective"].tensor()
    assert weight.dtype == torch.float32 and weight.shape == entries["layer.weight"].shape
    found = weight[ROWS.get(len(weight), [0, 1, 15])]
    if "rotated" in variant:  # sums in another order
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
    else:
        assert found.equal(expected)


def test_the_note_may_stand_in_the_header():
    tensors = layer_of("nvfp4")
    note = json.loads(bytes(tensors.pop(NOTE).tolist()))
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"layer": note}})}
    assert read(tensors, header)["layer.weight"].tensor().equal(read(layer_of("nvfp4"))["layer.weight"].tensor())


@pytest.mark.parametrize("variant", ["mxfp8", "nvfp4"])
def test_block_scales_may_be_kept_as_bytes(variant):
    tensors = layer_of(variant)
    tensors["layer.weight_scale"] = tensors["layer.weight_scale"].view(torch.uint8)
    assert read(tensors)["layer.weight"].tensor().equal(read(layer_of(variant))["layer.weight"].tensor())


def test_other_rotations_may_be_said_one_level_deeper():
    tensors = layer_of("int8 rotated, small groups")
    tensors[NOTE] = noted(format="int8_tensorwise", params={"convrot": True, "convrot_groupsize": 16})
    expected = read(layer_of("int8 rotated, small groups"))["layer.weight"].tensor()
    assert read(tensors)["layer.weight"].tensor().equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_read_into_any_type(dtype):
    entry = read(layer_of("nvfp4"))["layer.weight"]
    assert entry.tensor(dtype).equal(entry.tensor().to(dtype)) and entry.tensor(dtype).dtype == dtype
    whole = entry_of("ids", [torch.arange(4)])
    assert whole.tensor(dtype).dtype == torch.int64


def test_only_some_rows_are_in_memory_at_once(monkeypatch):
    """The file's bytes of one weight, the result, and a few rows of float32."""
    monkeypatch.setattr(quantized_layout, "AT_ONCE", 160)
    pieces = [tuple(piece.shape) for piece in read(layer_of("nvfp4"))["layer.weight"].pieces()]
    assert pieces == [(2, 80)] * 72


def test_nothing_is_read_before_it_is_asked_for():
    def read_too_early():
        raise AssertionError
    entries = {name.removeprefix("mxfp8/"): entry if NOTE in name else replace(entry, pieces=read_too_early)
               for name, entry in STORED.items() if name.startswith("mxfp8/layer.")}
    assert without_scales(entries, {}, "a file")["layer.weight"].shape == (32, 160)


def test_the_scale_of_a_block_is_that_of_its_numbers():
    entry = read(layer_of("mxfp8"))["layer.weight"]
    scale = entry.scale()
    assert scale.shape == entry.shape and (entry.tensor() / scale).equal(layer_of("mxfp8")["layer.weight"].float())


def changed(variant: str, **changes) -> dict:
    tensors = layer_of(variant)
    for name, value in changes.items():
        tensors[f"layer.{name}"] = value
        if value is None:
            del tensors[f"layer.{name}"]
    return tensors


def rotated(group):
    return noted(format="int8_tensorwise", convrot=True, convrot_groupsize=group)


ROTATED = "int8 rotated, small groups"
ODD = {
    "no such layout": changed("fp8", comfy_quant=noted(format="convrot_w4a4")),
    "no layout": changed("fp8", comfy_quant=noted(full_precision_matrix_mult=True)),
    "a list as layout": changed("fp8", comfy_quant=noted(format=["nvfp4"])),
    "a note that is none": changed("fp8", comfy_quant=torch.zeros(9, dtype=torch.uint8)),
    "a note of numbers": changed("fp8", comfy_quant=torch.zeros(9)),
    "a long note": changed("fp8", comfy_quant=torch.zeros(20_000, dtype=torch.uint8)),
    "mxfp8 without scales": changed("mxfp8", weight_scale=None),
    "mxfp8 with too few scales": changed("mxfp8", weight_scale=torch.zeros(32, 5, dtype=torch.uint8)),
    "mxfp8 with scales of numbers": changed("mxfp8", weight_scale=torch.ones(128, 8)),
    "mxfp8 of another width": changed("mxfp8", weight=torch.ones(32, 150).to(torch.float8_e4m3fn)),
    "mxfp8 of another type": changed("mxfp8", weight=torch.ones(32, 160, dtype=torch.int8)),
    "nvfp4 without its second scale": changed("nvfp4", weight_scale_2=None),
    "nvfp4 without its first scale": changed("nvfp4", weight_scale=None),
    "nvfp4 with two second scales": changed("nvfp4", weight_scale_2=torch.ones(2)),
    "nvfp4 of another width": changed("nvfp4", weight=torch.ones(144, 39, dtype=torch.uint8)),
    "nvfp4 of a convolution": changed("nvfp4", weight=torch.ones(144, 8, 5, dtype=torch.uint8)),
    "nvfp4 for scaled inputs": changed("nvfp4", pre_quant_scale=torch.ones(80)),
    "nvfp4 without a note": changed("nvfp4", comfy_quant=None),
    "no rows": changed("int8 rows", weight=torch.zeros(0, 16, dtype=torch.int8), weight_scale=torch.zeros(0, 1)),
    "no columns": changed("mxfp8", weight=torch.zeros(32, 0).to(torch.float8_e4m3fn), weight_scale=torch.zeros(0).byte()),
    "int8 without a scale": changed("int8", weight_scale=None),
    "groups of no size": changed(ROTATED, comfy_quant=rotated(0)),
    "groups that do not fit": changed(ROTATED, comfy_quant=rotated(64)),
    "groups of a huge size": changed(ROTATED, weight=torch.zeros(1, 16384, dtype=torch.int8), comfy_quant=rotated(16384)),
    "groups of a word": changed(ROTATED, comfy_quant=rotated("16")),
    "rotated fp8": changed("fp8", comfy_quant=noted(format="float8_e4m3fn", convrot=True, convrot_groupsize=16)),
}


@pytest.mark.parametrize("tensors", ODD.values(), ids=ODD)
def test_what_does_not_belong_together_is_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match="'odd.safetensors' keeps its weights in a layout that is not read .*Choose the bf"):
        Weights.of_file(tmp_path / "odd.safetensors")


FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FP8)
def test_all_values_of_eight_bits_are_those_of_torch(dtype):
    values = torch.arange(256, dtype=torch.uint8).view(dtype)
    sound = values[values.float().isfinite()]
    assert len(sound) > 240 and fp8.is_finite(sound) and not fp8.is_finite(values)
    for each in (values, sound):
        found = fp8.to_float32(each)
        assert found.view(torch.int32).equal(each.float().view(torch.int32)), "with signs of zeros, and what is no number"


@pytest.mark.parametrize("dtype", FP8)
@pytest.mark.parametrize("shape", [(7, 30), (5,), (0, 4), (2, 3, 3, 2), ()])
def test_plain_eight_bits_are_converted_some_rows_at_a_time(dtype, shape, monkeypatch):
    monkeypatch.setattr(tensor_files, "AT_ONCE", 64)
    stored = torch.randn(shape).to(dtype)
    entry = entry_of("a.weight", [stored]) if shape != (7, 30) else entry_of("a.weight", [stored[:3], stored[3:]])
    for wanted in (torch.bfloat16, torch.float32, dtype):
        found = entry.tensor(wanted)
        assert found.dtype == wanted and found.float().equal(stored.float())
    assert entry.tensor().dtype == dtype


@pytest.mark.parametrize("dtype", FP8)
def test_what_is_no_number_is_found_in_eight_bits(dtype):
    values = torch.ones(4, 4).to(dtype)
    assert require_finite(values, "a", "a file") is values
    values[2, 1] = float("nan")
    with pytest.raises(UserError, match="a holds values that are not numbers in 'a file'"):
        require_finite(values, "a", "a file")
