"""Scales that peft keeps beside its tensors, and the shapes of LoHa and LoKr on convolutions."""
import json

import pytest
import torch
from finetune.trainers.artifacts import changes, peft_config
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.peft_config import PeftConfig, read_peft_config
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.spec import FolderSpec
from finetune.trainers.tools.file_tasks import TOOLS
from safetensors.torch import load_file, safe_open, save_file

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def done(task, folder, **fields):
    folder.mkdir(exist_ok=True)
    folders = FolderSpec(runs=str(folder / "runs"), caches=str(folder))
    spec = TOOLS[task].spec(name="made", folders=folders, device="cpu", **fields)
    report = TOOLS[task].work(spec, folder, silent, lambda: False)
    return folder / "made.safetensors", report


def change(path, key=None):
    layers = read_lora(path).layers
    return (layers[key] if key else next(iter(layers.values()))).change()


def factors(kind):
    """(tensors of one layer as peft names them, their product without a scale)"""
    down, up, w2 = noise(4, 32), noise(32, 4), noise(8, 8)
    if kind == "LORA":
        return {"lora_A.weight": down, "lora_B.weight": up}, up @ down
    if kind == "LOHA":
        return ({"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up + 1, "hada_w2_b": down + 1},
                (up @ down) * ((up + 1) @ (down + 1)))
    if kind == "LOKR, whole":
        return {"lokr_w1": noise(4, 4), "lokr_w2": w2}, torch.kron(noise(4, 4), w2)
    return ({"lokr_w1": noise(4, 4), "lokr_w2_a": noise(8, 4), "lokr_w2_b": noise(4, 8)},
            torch.kron(noise(4, 4), noise(8, 4) @ noise(4, 8)))


def peft_folder(folder, kind, config, name="adapter_model.safetensors", prefix="base_model.model."):
    folder.mkdir(exist_ok=True)
    tensors, product = factors(kind)
    save_file({f"{prefix}{QUERY}.{part}": tensor for part, tensor in tensors.items()}, folder / name)
    if config is not None:
        (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / name, product


@pytest.mark.parametrize("kind, config, scale", [
    ("LORA", {"r": 4, "lora_alpha": 2}, 0.5),
    ("LORA", {"r": 4, "lora_alpha": 2, "use_rslora": True}, 1.0),
    ("LORA", {"r": 16, "lora_alpha": 2, "rank_pattern": {"attn1.to_q": 4}}, 0.5),
    ("LORA", {"r": 4, "lora_alpha": 2, "alpha_pattern": {"attn2.to_q": 99, "attn1.to_q": 6}}, 1.5),
    ("LORA", {"r": 4, "lora_alpha": 2, "alpha_pattern": {r"down_blocks\..*\.to_[qk]": 8}}, 2.0),
    ("LORA", {"r": 4, "lora_alpha": 2, "alpha_pattern": {"to_q": 8, QUERY: 1}}, 2.0),
    ("LOHA", {"r": 4, "alpha": 2}, 0.5), ("LOKR", {"r": 4, "alpha": 2}, 0.5),
    ("LOKR", {"r": 4, "alpha": 2, "alpha_pattern": {"to_q": 1}}, 0.25),
    ("LOKR, whole", {"r": 8, "alpha": 2}, 0.25), ("LOKR, whole", {"r": 9, "alpha": 2, "rank_pattern": {"to_q": 4}}, 0.5),
    ("LORA", None, 1.0),
])
def test_peft_means_the_same_in_every_tool(kind, config, scale, tmp_path):
    path, product = peft_folder(tmp_path / "lora", kind, config)
    wanted = scale * product
    torch.testing.assert_close(change(path), wanted, rtol=1e-4, atol=1e-5)
    made, _ = done("merge", tmp_path / "merge", loras=[{"path": str(path)}], file_precision="fp32")
    torch.testing.assert_close(change(made), wanted, rtol=1e-3, atol=1e-4)
    made, report = done("convert", tmp_path / "convert", lora=str(path), names="kohya")
    torch.testing.assert_close(change(made), wanted, rtol=1e-4, atol=1e-5)
    assert not report.notes and not list(tmp_path.glob("convert/*.json"))
    base = {f"model.diffusion_model.{name}": torch.zeros(shape) for name, shape in (
        ("input_blocks.0.0.weight", (4, 4, 3, 3)), ("input_blocks.3.0.op.weight", (8, 8, 3, 3)),
        ("input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight", (32, 32)))}
    save_file(base, tmp_path / "base.safetensors")
    made, _ = done("bake", tmp_path / "bake", base=str(tmp_path / "base.safetensors"), loras=[{"path": str(path)}])
    torch.testing.assert_close(load_file(made)[list(base)[2]], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields, prefix, scale", [
    ({"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 99, "text_encoder.r": 4}, "unet.", 0.5),
    ({"unet.r": 4, "unet.lora_alpha": 2, "text_encoder.lora_alpha": 99}, "", 0.5),
    ({"unet.r": 4, "unet.lora_alpha": 2}, "unet.base_model.model.", 0.5),
    ({"r": 4, "lora_alpha": 2}, "unet.", 0.5),
    ({"text_encoder.r": 4, "text_encoder.lora_alpha": 2}, "unet.", 1.0),
])
def test_the_configuration_in_the_metadata_is_by_component(fields, prefix, scale, tmp_path):
    tensors, product = factors("LORA")
    save_file({f"{prefix}{QUERY}.{part}": tensor for part, tensor in tensors.items()}, tmp_path / "a.safetensors",
              {"lora_adapter_metadata": json.dumps(fields)})
    torch.testing.assert_close(change(tmp_path / "a.safetensors"), scale * product)


def test_whose_file_the_configuration_beside_is(tmp_path):
    """peft's own, by name or by its names of layers; never that of any LoRA which lies in the folder too."""
    config = {"r": 4, "lora_alpha": 2}
    path, product = peft_folder(tmp_path, "LORA", config, "renamed.safetensors")
    torch.testing.assert_close(change(path), 0.5 * product)
    path, product = peft_folder(tmp_path, "LORA", config, "another.safetensors", prefix="unet.")
    torch.testing.assert_close(change(path), product)


def test_an_alpha_tensor_counts_before_the_configuration(tmp_path):
    path, product = peft_folder(tmp_path, "LORA", {"r": 4, "lora_alpha": 2})
    tensors = load_file(path) | {f"base_model.model.{QUERY}.alpha": torch.tensor(1.0)}
    save_file(tensors, path)
    torch.testing.assert_close(change(path), 0.25 * product)


@pytest.mark.parametrize("config", [
    "", "{", "[]", "null", '"text"', "3", "[" * 100_000, '{"lora_alpha": "8", "r": 4}', '{"lora_alpha": NaN, "r": 4}',
    '{"lora_alpha": 1e999, "r": 4}', '{"lora_alpha": -Infinity}', '{"lora_alpha": 1e30, "r": 4}', '{"lora_alpha": true}',
    '{"lora_alpha": [1], "r": null}', '{"alpha_pattern": [1], "r": 4}', '{"alpha_pattern": {"attn1.to_q": "x"}, "r": 4}',
    '{"alpha_pattern": {"(a+)+$": 1, "(": 2, "*": 3}, "r": "4"}', '{"lora_alpha": 1' + "0" * 5000 + "}",
])
def test_configurations_that_say_nothing_sensible_are_said_and_left_out(config, tmp_path):
    path, product = peft_folder(tmp_path, "LORA", config)
    file = read_lora(path)
    torch.testing.assert_close(next(iter(file.layers.values())).change(), product)
    assert len(file.notes) == 1 and "adapter_config.json beside it" in file.notes[0] and "scale 1" in file.notes[0]
    assert done("merge", tmp_path / "made", loras=[{"path": str(path)}])[1].notes == tuple(file.notes)


@pytest.mark.parametrize("config", [{"r": 0, "lora_alpha": 2}, {"r": -4, "lora_alpha": 2}, {"r": 1e400, "lora_alpha": 2}])
def test_a_rank_of_the_tensors_counts_before_one_of_the_configuration(config, tmp_path):
    path, product = peft_folder(tmp_path, "LORA", config)
    torch.testing.assert_close(change(path), 0.5 * product)
    assert "says nothing usable for r" in read_lora(path).notes[0]


def test_patterns_cannot_take_for_ever(tmp_path):
    patterns = {r"(.*a)*(.*b)*c": 1, ".*.*.*.*.*.*x": 2, "(a|a)*$": 3, "([a-z_.]+)+!": 4}
    config = PeftConfig({"lora_alpha": 2, "r": 4, "alpha_pattern": patterns})
    assert config.scale("base_model.model." + "a.b_" * 2000, 4) == 0.5
    many = PeftConfig({"lora_alpha": 2, "r": 4, "alpha_pattern": {f"to_{number}": 1 for number in range(200_000)}})
    assert many.scale(QUERY, 4) == 0.5
    (tmp_path / "adapter_config.json").write_bytes(b"\xff" * 100)
    assert "cannot be read" in read_peft_config(tmp_path / "adapter_model.safetensors", {}, []).notes[0]
    assert read_peft_config(tmp_path / "any.safetensors", {"lora_adapter_metadata": 3}, []).notes


@pytest.mark.parametrize("lengths", ["inputs", "outputs", "peft's vector"])
def test_dora_is_baked_as_the_paper_says(lengths, tmp_path):
    name = f"model.diffusion_model.input_blocks.1.1.{QUERY.partition('attentions.0.')[2]}.weight"
    base = {name: noise(32, 16), "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
            "model.diffusion_model.input_blocks.3.0.op.weight": torch.zeros(8, 8, 3, 3)}
    save_file(base, tmp_path / "base.safetensors")
    down, up, axis = noise(2, 16), noise(32, 2), 0 if lengths == "inputs" else 1
    scale = noise(1, 16).abs() + 1 if lengths == "inputs" else noise(32, 1).abs() + 1
    part = "lora_magnitude_vector" if lengths == "peft's vector" else "dora_scale"
    save_file({f"base_model.model.{QUERY}.lora_A.weight": down, f"base_model.model.{QUERY}.lora_B.weight": up,
               f"base_model.model.{QUERY}.{part}": scale.flatten() if lengths == "peft's vector" else scale},
              tmp_path / "dora.safetensors")
    made, _ = done("bake", tmp_path / "made", base=str(tmp_path / "base.safetensors"), loras=[
        {"path": str(tmp_path / "dora.safetensors"), "model": 0.5}])
    merged = base[name] + up @ down
    whole = merged / merged.square().sum(dim=axis, keepdim=True).sqrt() * scale
    torch.testing.assert_close(load_file(made)[name], base[name] + 0.5 * (whole - base[name]), rtol=1e-4, atol=1e-5)
    converted, _ = done("convert", tmp_path / "made", lora=str(tmp_path / "dora.safetensors"), names="kohya")
    assert torch.equal(load_file(converted)[f"lora_unet_{QUERY.replace('.', '_')}.dora_scale"], scale)


# ---- convolutions --------------------------------------------------------------------------------------------------

def on_a_convolution(kind, key=CONVOLUTION, out=64, into=32):
    """(tensors, change [out, in, 3, 3])"""
    a, b, c, d = noise(out, 4), noise(4, into * 9), noise(out, 4, seed=1), noise(4, into * 9, seed=1)
    if kind == "loha":
        tensors, flat = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}, (a @ b) * (c @ d)
    elif kind == "lokr":
        small, left, right = noise(8, 4), noise(out // 8, 4), noise(4, into // 4 * 9)
        tensors, flat = {"lokr_w1": small, "lokr_w2_a": left, "lokr_w2_b": right}, torch.kron(small, left @ right)
    elif kind == "flat lora":
        tensors, flat = {"lora_down.weight": b, "lora_up.weight": a}, a @ b
    else:
        tensors, flat = {"lora_down.weight": b.reshape(4, into, 3, 3), "lora_up.weight": a[:, :, None, None]}, a @ b
    return ({f"{key}.{part}": tensor for part, tensor in tensors.items()} | {f"{key}.alpha": torch.tensor(2.0)},
            0.5 * flat.reshape(out, into, 3, 3))


def file_of(folder, kind, **where):
    tensors, meant = on_a_convolution(kind, **where)
    save_file(tensors, folder / f"{kind}.safetensors")
    return str(folder / f"{kind}.safetensors"), meant


@pytest.mark.parametrize("kind", ["loha", "lokr", "flat lora", "locon"])
def test_a_resized_convolution_has_its_kernel(kind, tmp_path):
    """Known by the layer's name: in whichever size the model is, it is 3×3."""
    path, meant = file_of(tmp_path, kind)
    made, report = done("merge", tmp_path / "made", loras=[{"path": path}], rule="fixed", rank=64, file_precision="fp32")
    tensors = load_file(made)
    assert tensors[f"{CONVOLUTION}.lora_down.weight"].shape[1:] == (32, 3, 3)
    assert tensors[f"{CONVOLUTION}.lora_up.weight"].shape[::2] == (64, 1)
    torch.testing.assert_close(change(made), meant, rtol=1e-3, atol=1e-4)
    assert not report.notes


@pytest.mark.parametrize("key", [CONVOLUTION, "lora_transformer_blocks_0_conv1"])
@pytest.mark.parametrize("kind", ["loha", "lokr", "flat lora"])
def test_kinds_on_a_convolution_are_added(kind, key, tmp_path):
    """The kernel is known by name, or from the partner."""
    (first, one), (second, other) = file_of(tmp_path, kind, key=key), file_of(tmp_path, "locon", key=key)
    loras = [{"path": first}, {"path": second, "model": 0.5}]
    for order in (loras, loras[::-1]):
        made, report = done("merge", tmp_path / "made", loras=order, file_precision="fp32")
        torch.testing.assert_close(change(made), one + 0.5 * other, rtol=1e-3, atol=1e-3)
        assert not report.notes


def test_an_unknown_kernel_is_said(tmp_path):
    path, meant = file_of(tmp_path, "loha", key="lora_transformer_blocks_0_conv1")
    made, report = done("merge", tmp_path / "made", loras=[{"path": path}], file_precision="fp32")
    torch.testing.assert_close(change(made), meant.flatten(1), rtol=1e-3, atol=1e-3)
    assert "may be convolutions whose kernel no file tells" in report.notes[0]


def test_pointwise_convolutions_and_linear_layers(tmp_path):
    """proj_in is a 1×1 convolution in SD 1.x and a linear layer in SDXL; plain LoRAs say it themselves."""
    for version, dimensions in (("sd_v1", 4), ("sdxl_base_v1-0", 2)):
        key = "unet.down_blocks.1.attentions.0.proj_in"
        tensors = {f"{key}.hada_w{number}_{side}": noise(*shape, seed=number) for number in (1, 2)
                   for side, shape in (("a", (8, 2)), ("b", (2, 8)))}
        save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": version})
        made, _ = done("merge", tmp_path / "made", loras=[{"path": str(tmp_path / "a.safetensors")}], file_precision="fp32")
        assert change(made).ndim == dimensions


def test_other_shapes_are_still_other_models(tmp_path):
    (first, _), second = file_of(tmp_path, "loha"), tmp_path / "wide.safetensors"
    save_file(on_a_convolution("locon", into=40)[0], second)
    with pytest.raises(UserError, match="different base models"):
        done("merge", tmp_path / "made", loras=[{"path": first}, {"path": str(second)}])


@pytest.mark.parametrize("tensors", [
    {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 5)},
    {"lora_down.weight": torch.ones(4, 8)}, {"lora_down.weight": torch.tensor(1.0), "lora_up.weight": torch.tensor(1.0)},
    {"lora_down.weight": torch.ones(0, 8), "lora_up.weight": torch.ones(8, 0)},
    {"hada_w1_a": torch.ones(8, 2), "hada_w1_b": torch.ones(2, 8), "hada_w2_a": torch.ones(8, 2)},
    {"hada_w1_a": torch.ones(8, 2), "hada_w1_b": torch.ones(2, 8), "hada_w2_a": torch.ones(8, 2),
     "hada_w2_b": torch.ones(2, 9)},
    {"lokr_w1": torch.ones(2), "lokr_w2": torch.ones(4, 4)}, {"lokr_w2": torch.ones(4, 4)},
    {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 4), "alpha": torch.ones(3)},
])
def test_layers_that_are_incomplete_are_left_out(tensors, tmp_path):
    whole = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3),
             "lora_unet_conv_in.lora_up.weight": torch.ones(8, 2, 1, 1)}
    save_file({**whole, **{f"lora_unet_conv_out.{part}": tensor.clone() for part, tensor in tensors.items()}},
              tmp_path / "a.safetensors")
    made, report = done("merge", tmp_path / "made", loras=[{"path": str(tmp_path / "a.safetensors")}])
    assert len(load_file(made)) == 3 and "incomplete, and were left out" in report.notes[0]


def test_converted_files_say_what_they_hold(tmp_path):
    path, _ = peft_folder(tmp_path / "lora", "LORA", {"r": 4, "lora_alpha": 4})
    made, _ = done("convert", tmp_path / "made", lora=str(path), names="kohya")
    with safe_open(made, "pt") as file:
        assert file.metadata()["ss_network_module"] == "networks.lora" and file.metadata()["ss_network_dim"] == "4"
        assert float(file.get_tensor(f"lora_unet_{QUERY.replace('.', '_')}.alpha")) == 4
    back, _ = done("convert", tmp_path / "back", lora=str(made), names="diffusers")
    with safe_open(back, "pt") as file:
        assert "ss_network_module" not in file.metadata() and sorted(file.keys()) == [
            f"unet.{QUERY}.lora_{side}.weight" for side in "AB"]


def test_a_configuration_longer_than_any_is_not_read(tmp_path, monkeypatch):
    path, key = tmp_path / "adapter_model.safetensors", "base_model.model.mid_block.attentions.0.proj_in"
    (tmp_path / peft_config.FILE).write_text('{"r": 4, "lora_alpha": 2}')
    assert peft_config.read_peft_config(path, {}, [key]).scale(key, 4) == 0.5
    monkeypatch.setattr(peft_config, "LARGEST_FILE", 20)
    config = peft_config.read_peft_config(path, {}, [key])
    assert config.scale(key, 4) is None and "cannot be read" in config.notes[0]


def test_a_pattern_names_a_module_or_what_follows_a_dot():
    config = PeftConfig({"r": 4, "lora_alpha": 2, "alpha_pattern": {"q": 8, "attn1.to_q": 16}})
    assert [config.scale(f"base_model.model.{name}", 4) for name in ("attn1.to_q", "xattn1.to_q", "a.q", "to_q")] == [
        4.0, 0.5, 2.0, 0.5]


def test_a_scale_beside_is_nothing_to_a_layer_with_an_alpha_of_its_own():
    tensors = {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 4), "alpha": torch.tensor(1.0)}
    assert changes.with_scale(tensors, 5.0)["alpha"] == 1
    del tensors["alpha"]
    assert changes.with_scale(tensors, 5.0)["alpha"] == 20


def test_alpha_has_no_meaning_for_a_full_lokr():
    """LyCORIS and ComfyUI divide alpha by a rank; where no factor is a product there is none."""
    tensors = {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.ones(3, 3), "alpha": torch.tensor(8.0)}
    assert changes.change_of_parts(tensors).equal(torch.ones(6, 6))
    pair = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(3, 4), "lokr_w2_b": torch.ones(4, 3),
            "alpha": torch.tensor(8.0)}
    assert changes.change_of_parts(pair).equal(torch.full((6, 6), 8.0))


def test_a_tucker_layer_changes_a_weight_as_its_three_convolutions_do():
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(shape, generator=generator) for shape in ((4, 6, 1, 1), (4, 4, 3, 3), (5, 4, 1, 1)))
    image = torch.randn((1, 6, 8, 8), generator=generator)
    one_by_one = torch.conv2d(torch.conv2d(torch.conv2d(image, down), mid, padding=1), up)
    change = changes.change_of_parts({"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up})
    torch.testing.assert_close(torch.conv2d(image, change, padding=1), one_by_one, rtol=1e-4, atol=1e-4)


def test_what_a_dora_changes_is_not_told_without_its_base(tmp_path):
    key = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2),
               f"{key}.dora_scale": torch.ones(1, 8)}, tmp_path / "dora.safetensors")
    with pytest.raises(UserError, match=f"{key} is a DoRA layer.*Bake it"):
        read_lora(tmp_path / "dora.safetensors").layers[key].change()
