"""The table of layer names against real models and against what other programs write; any spelling, the same numbers."""
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune.trainers.artifacts.layer_names import LayerNames, family_names, family_of_lora, place, split_key
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.process.parent import SCRIPT
from finetune.trainers.spec import FolderSpec
from finetune.trainers.stacking.inspection import layers_of, norms_by_block
from finetune.trainers.tools.file_tasks import TOOLS
from safetensors.torch import load_file, save_file

FAMILIES = ("sd1", "sd2", "sdxl")


# ---- the table -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_has_every_layer_of_the_released_model(family):
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))
    real = {f"unet.{name}": tuple(module.weight.shape[2:]) for name, module in unet.named_modules()
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    table = {layer.diffusers: layer.kernel for layer in family_names(family).layers if not layer.is_text}
    assert table == real
    depth = {folder: json.loads((CONFIGS / family / folder / "config.json").read_text())["num_hidden_layers"]
             for folder in ("text_encoder", "text_encoder_2") if (CONFIGS / family / folder).exists()}
    for folder, count in depth.items():
        names = [layer for layer in family_names(family).layers if layer.diffusers.startswith(f"{folder}.text_model.")]
        # The last layer of SD 2.x's encoder is in ComfyUI and in single files, not in diffusers.
        assert len(names) == 6 * (count + (family == "sd2"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dotless", [False, True])
def test_every_spelling_of_every_layer_leads_back(family, dotless):
    names = family_names(family)
    for layer in names.layers:
        assert names.find(layer.native) is names.find(layer.key) is layer
        for program, spelled in layer.spellings().items():
            assert names.find(spelled.replace(".", "_") if dotless else spelled) is layer, (program, spelled)
            assert place(spelled, family) == place(layer.native), (program, spelled)


def test_the_first_text_encoder_may_have_its_number_or_not():
    core = "text_model_encoder_layers_3_mlp_fc1"
    for family, own in (("sd1", "te"), ("sd2", "te"), ("sdxl", "te1")):
        found = {family_names(family).find(f"lora_{encoder}_{core}") for encoder in ("te", "te1")}
        assert {layer.key for layer in found} == {f"lora_{own}_{core}"}
    assert family_names("sdxl").find(f"lora_te2_{core}").key == f"lora_te2_{core}"


def test_kohyas_names_are_diffusers_but_for_sdxl():
    found = {family: family_names(family).find("unet.down_blocks.1.resnets.0.conv1").key for family in FAMILIES}
    assert found == {**dict.fromkeys(("sd1", "sd2"), "lora_unet_down_blocks_1_resnets_0_conv1"),
                     "sdxl": "lora_unet_input_blocks_4_0_in_layers_2"}


def test_open_clip_keeps_its_projection_the_other_way_round():
    shapes = {"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
              "model.diffusion_model.input_blocks.3.0.op.weight": (8, 8, 3, 3),
              "model.diffusion_model.label_emb.0.0.weight": (8, 8), "conditioner.embedders.1.model.text_projection": (6, 4)}
    layer = LayerNames.of_checkpoint(shapes).find("lora_te2_text_projection")
    weight = torch.zeros(6, 4)
    layer.rows(weight)[1, 5] = 1
    assert weight[5, 1] == 1 and layer.tensor == "conditioner.embedders.1.model.text_projection"


@pytest.mark.parametrize("name", [
    "lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default.weight", "magnitude"])
def test_magnitudes_of_peft_are_those_of_a_dora(name):
    assert split_key(f"base_model.model.mid_block.attentions.0.proj_in.{name}") == (
        "base_model.model.mid_block.attentions.0.proj_in", "dora_scale")


WRITTEN = {
    "sd1": {
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0": (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_out",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_out",
            "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
            "unet.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_out.0"),
        "diffusion_model.output_blocks.11.0.skip_connection": (
            "lora_unet_up_blocks_3_resnets_2_conv_shortcut", "lycoris_up_blocks_3_resnets_2_conv_shortcut"),
        "diffusion_model.input_blocks.6.0.op": ("unet.down_blocks.1.downsamplers.0.conv",),
        "diffusion_model.output_blocks.2.1.conv": ("lora_unet_up_blocks_0_upsamplers_0_conv",),
        "text_encoders.clip_l.transformer.text_model.encoder.layers.11.self_attn.out_proj": (
            "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
            "lora_te1_text_model_encoder_layers_11_self_attn_out_proj",
            "text_encoder.text_model.encoder.layers.11.self_attn.to_out",
            "text_encoder.encoder.layers.11.self_attn.out_proj", "clip_l.text_model.encoder.layers.11.self_attn.out_proj",
            "base_model.model.text_model.encoder.layers.11.self_attn.out_proj",
            "clip_l.transformer.text_model.encoder.layers.11.self_attn.out_proj",
            "te1.text_model.encoder.layers.11.self_attn.out_proj"),
    },
    "sd2": {
        "text_encoders.clip_h.transformer.text_model.encoder.layers.22.self_attn.q_proj": (
            "lora_te_text_model_encoder_layers_22_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.22.self_attn.to_q",
            "clip_l.text_model.encoder.layers.22.self_attn.q_proj"),  # OneTrainer says clip_l of SD 2.x too
    },
    "sdxl": {
        "diffusion_model.input_blocks.8.1.transformer_blocks.9.ff.net.0.proj": (
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
            "lora_unet_down_blocks_2_attentions_1_transformer_blocks_9_ff_net_0_proj",
            "lora_unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
            "lycoris_down_blocks_2_attentions_1_transformer_blocks_9_ff_net_0_proj"),
        "diffusion_model.output_blocks.2.2.conv": ("unet.up_blocks.0.upsamplers.0.conv",),
        "diffusion_model.label_emb.0.2": ("unet.add_embedding.linear_2", "lora_unet_class_embedding_linear_2"),
        "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc2": (
            "lora_te2_text_model_encoder_layers_31_mlp_fc2", "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
            "clip_g.text_model.encoder.layers.31.mlp.fc2",
            "text_encoder_2.base_model.model.text_model.encoder.layers.31.mlp.fc2"),
        "text_encoders.clip_g.transformer.text_projection": (
            "lora_te2_text_projection", "clip_g.text_projection", "text_encoder_2.text_projection"),
    },
}
"""What trainers write, by hand: kohya, diffusers of four ages, peft, LyCORIS, OneTrainer, ComfyUI."""


@pytest.mark.parametrize("family", FAMILIES)
def test_names_as_programs_write_them(family):
    for native, spelled in WRITTEN[family].items():
        for name in spelled:
            assert getattr(family_names(family).find(name), "native", None) == native, name


@pytest.mark.parametrize("name", [
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn3_to_q", "lora_te2_text_model_encoder_layers_0_mlp_fc1",
    "lora_unet_double_blocks_0_img_attn_qkv", "text_encoder.text_model.encoder.layers.12.mlp.fc1", "unet.", "",
    "encoder_layers_0_",
    "evil_lora_te_text_model_encoder_layers_0_mlp_fc1",
])
def test_names_of_no_layer_are_none(name):
    assert family_names("sd1").find(name) is None


@pytest.mark.parametrize("layers, family", [
    (["lora_unet_down_blocks_2_attentions_0_transformer_blocks_3_attn1_to_q"], "sdxl"),
    (["unet.input_blocks.4.1.transformer_blocks.1.attn1.to_q"], "sdxl"),
    (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"], "sdxl"),
    (["lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "lora_unet_input_blocks_1_1_proj_in"], ""),
    (["lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_unet_down_blocks_1_resnets_0_conv1"], "sdxl"),
    (["lora_te1_text_model_encoder_layers_0_mlp_fc1", "transformer.transformer_blocks.0.attn.to_q"], ""),
    (["lora_te_text_model_encoder_layers_20_mlp_fc1"], "sd2"), (["lora_unet_double_blocks_0_img_attn_qkv"], "flux"),
    (["lora_unet_joint_blocks_0_x_block_attn_qkv"], "sd3"), (["lora_unet_down_blocks_1_resnets_0_conv1"], ""),
])
def test_names_tell_the_family(layers, family):
    assert family_of_lora({f"{layer}.lora_down.weight": (4, 8) for layer in layers}, {}) == family


# ---- any spelling, the same numbers --------------------------------------------------------------------------------

def noise(draw, *shape):
    return torch.randn(shape, generator=draw) * 0.3


def a_layer(draw, kind, out, into, kernel):
    """(parts by ComfyUI's names, their change computed plainly, rank)"""
    area, rank = (kernel[0] * kernel[1] if kernel else 1), 3
    alpha = torch.tensor(1.5)
    shape = (out, into, *kernel)
    if kind == "tucker" and kernel:
        down, up, mid = noise(draw, rank, into, 1, 1), noise(draw, out, rank, 1, 1), noise(draw, rank, rank, *kernel)
        change = torch.stack([torch.stack([sum(up[o, a, 0, 0] * mid[a, b] * down[b, i, 0, 0] for a in range(rank)
                                               for b in range(rank)) for i in range(into)]) for o in range(out)])
        return {"lora_down.weight": down, "lora_up.weight": up, "lora_mid.weight": mid, "alpha": alpha}, 0.5 * change
    if kind == "loha":
        (a, b), (c, d) = ((noise(draw, out, rank), noise(draw, rank, into * area)) for _ in range(2))
        return ({"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": alpha},
                0.5 * ((a @ b) * (c @ d)).reshape(shape))
    if kind == "lokr":
        small, left, right = noise(draw, 2, 4), noise(draw, out // 2, rank), noise(draw, rank, into // 4 * area)
        large = (left @ right).reshape(out // 2, into // 4, *kernel)
        change = torch.cat([torch.cat([small[r, c] * large for c in range(4)], dim=1) for r in range(2)])
        return {"lokr_w1": small, "lokr_w2_a": left, "lokr_w2_b": right, "alpha": alpha}, 0.5 * change
    down, up = noise(draw, rank, into, *kernel), noise(draw, out, rank, *[1] * len(kernel))
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": alpha}
    return parts, 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(shape)


TENSOR_NAMES = {
    "kohya": {"lora_down.weight": ".lora_down.weight", "lora_up.weight": ".lora_up.weight"},
    "peft": {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight"},
    "named adapter": {"lora_down.weight": ".lora_A.default.weight", "lora_up.weight": ".lora_B.default.weight"},
    "older": {"lora_down.weight": ".lora.down.weight", "lora_up.weight": ".lora.up.weight"},
    "oldest": {"lora_down.weight": "_lora.down.weight", "lora_up.weight": "_lora.up.weight"},
    "transformers": {"lora_down.weight": ".lora_linear_layer.down.weight", "lora_up.weight": ".lora_linear_layer.up.weight"},
}


def checkpoint_name(layer):
    """(tensor of a single file, (part, parts), transposed) of a layer, by hand."""
    native = layer.native
    if native.startswith("diffusion_model."):
        return f"model.{native}.weight", (0, 1)
    encoder, path = native.removeprefix("text_encoders.").split(".transformer.")
    if encoder == "clip_l":
        start = "conditioner.embedders.0." if layer.key.startswith("lora_te1") else "cond_stage_model."
        return f"{start}transformer.{path}.weight", (0, 1)
    start = "cond_stage_model.model." if encoder == "clip_h" else "conditioner.embedders.1.model."
    if path == "text_projection":
        return f"{start}{path}", None
    path = path.replace("text_model.encoder.layers.", "transformer.resblocks.").replace("mlp.fc1", "mlp.c_fc").replace(
        "mlp.fc2", "mlp.c_proj").replace("self_attn.out_proj", "attn.out_proj")
    for part, letter in enumerate("qkv"):
        if path.endswith(f"self_attn.{letter}_proj"):
            return start + path.replace(f"self_attn.{letter}_proj", "attn.in_proj_weight"), (part, 3)
    return f"{start}{path}.weight", (0, 1)


def a_lora(family, seed):
    """(layer → parts, layer → change): some layers of the family, of every kind."""
    pick, draw = random.Random(f"{family} {seed}"), torch.Generator().manual_seed(seed)
    layers = family_names(family).layers
    pools = [[layer for layer in layers if layer.kernel == (3, 3)], [layer for layer in layers if layer.kernel == (1, 1)],
             [layer for layer in layers if ".transformer_blocks." in layer.native and layer.kernel == ()],
             [layer for layer in layers if layer.is_text]]
    chosen = [layer for pool in pools for layer in pick.sample(pool, min(3, len(pool)))]
    chosen.append(next(layer for layer in layers if layer.diffusers.endswith(  # what only this family has
        "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q" if family == "sdxl" else
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")))
    made = {layer: a_layer(draw, pick.choice(["lora", "lora", "tucker", "loha", "lokr"]), pick.choice([8, 12]),
                           pick.choice([8, 16]), layer.kernel) for layer in dict.fromkeys(chosen)}
    return {layer: parts for layer, (parts, _) in made.items()}, {layer: change for layer, (_, change) in made.items()}


def written(path, lora, spell, metadata=None):
    """A file in which `spell(layer)` gives (name of the layer, names of its factors)."""
    tensors = {}
    for layer, parts in lora.items():
        name, endings = spell(layer)
        for part, tensor in parts.items():
            tensors[name + endings.get(part, f".{part}")] = tensor.clone()
    save_file(tensors, path, metadata)
    return path


def spelling(family, seed):
    """A way to spell every layer: one program's, or a mixture of all."""
    pick = random.Random(f"spelling {family} {seed}")
    programs = sorted({program for layer in family_names(family).layers for program in layer.spellings()})
    program = pick.choice([*programs, None, None])

    def spell(layer):
        names = layer.spellings()
        name = names.get(program) or names[pick.choice(sorted(names))]
        flat = pick.random() < 0.2 and "_lora" not in name
        endings = TENSOR_NAMES[pick.choice(sorted(TENSOR_NAMES))]
        if name.endswith("_lora"):  # old text encoders
            name, endings = name.removesuffix("_lora"), TENSOR_NAMES["oldest"]
        return name.replace(".", "_") if flat else name, endings
    return spell


def done(task, folder, **fields):
    folder.mkdir()
    folders = FolderSpec(runs=str(folder / "runs"), caches=str(folder))
    spec = TOOLS[task].spec(name="made", folders=folders, device="cpu", **fields)
    TOOLS[task].work(spec, folder, silent, lambda: False)
    return folder / "made.safetensors"


def changes(path):
    return {key: layer.change() for key, layer in read_lora(path).layers.items()}


def close(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        assert found[key].shape == change.shape, key
        torch.testing.assert_close(found[key], change, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_spelling_gives_the_same_numbers(family, seed, tmp_path):
    lora, change = a_lora(family, seed)
    version = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family]
    usual = written(tmp_path / "usual.safetensors", lora, lambda layer: (layer.key, {}), {"ss_base_model_version": version})
    other = written(tmp_path / "other.safetensors", lora, spelling(family, seed), {"ss_base_model_version": version})
    expected = {layer.key: each for layer, each in change.items()}
    # inspects
    norms = norms_by_block(load_file(usual), family)
    for block, kinds in norms_by_block(load_file(other), family).items():
        assert norms[block] == pytest.approx(kinds, rel=1e-4)
    assert len(layers_of(load_file(other))) == len(lora)
    # converts
    close({key: layer.reshape(expected[key].shape) for key, layer in changes(
        done("convert", tmp_path / "convert", lora=str(other), names="kohya")).items()}, expected)
    # merges: the same layers meet
    both = [{"path": str(usual), "model": 0.5, "text": 0.5}, {"path": str(other), "model": -2.0, "text": -2.0}]
    close(changes(done("merge", tmp_path / "merge", loras=both, file_precision="fp32")),
          {key: -1.5 * each for key, each in expected.items()})
    # resizes
    resized = [changes(done("merge", tmp_path / f"resize {path.stem}", loras=[{"path": str(path)}], rule="fixed", rank=2,
                            file_precision="fp32")) for path in (usual, other)]
    close(*reversed(resized))
    assert all(torch.linalg.matrix_rank(each.flatten(1), rtol=1e-4) <= 2 for each in resized[1].values())
    # bakes
    base, places = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
                    "model.diffusion_model.input_blocks.3.0.op.weight": torch.zeros(8, 8, 3, 3)}, {}
    if family == "sdxl":
        base["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(8, 8)
    elif family == "sd2":
        base["cond_stage_model.model.ln_final.weight"] = torch.zeros(8)
    for layer, each in change.items():
        name, rows = places[layer] = checkpoint_name(layer)
        shape = (each.shape[1], each.shape[0]) if rows is None else (each.shape[0] * rows[1], *each.shape[1:])
        base[name] = base[name] if name in base and base[name].shape == shape else torch.zeros(shape)
    save_file(base, tmp_path / "base.safetensors")
    baked = load_file(done("bake", tmp_path / "bake", base=str(tmp_path / "base.safetensors"), loras=[
        {"path": str(other), "model": 0.5, "text": 0.5}]))
    for layer, (name, rows) in places.items():
        found = baked[name].T if rows is None else baked[name].chunk(rows[1])[rows[0]]
        torch.testing.assert_close(found, 0.5 * change[layer], rtol=1e-4, atol=1e-5)


def test_a_layer_that_one_file_spells_twice_is_added(tmp_path):
    lora, change = a_lora("sd1", 0)
    layer = next(layer for layer, parts in lora.items() if parts.keys() == {"lora_down.weight", "lora_up.weight", "alpha"})
    tensors = {f"{name}.{part}": tensor.clone() for name in (layer.key, layer.native)
               for part, tensor in lora[layer].items()}
    save_file(tensors, tmp_path / "twice.safetensors")
    path = str(tmp_path / "twice.safetensors")
    for made in (done("convert", tmp_path / "convert", lora=path, names="kohya", file_precision="fp32"),
                 done("convert", tmp_path / "diffusers", lora=path, names="diffusers", file_precision="fp32"),
                 done("merge", tmp_path / "merge", loras=[{"path": path}], file_precision="fp32")):
        (found,) = changes(made).values()
        torch.testing.assert_close(found, 2 * change[layer].reshape(found.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names, sentence", [
    (["foo.bar", "foo.baz"], "no LoRA for a family that is known here"),
    (["lora_unet_down_blocks_7_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_proj_in",
      "lora_unet_down_blocks_8_attentions_0_proj_in"], "2 of 3 layers of"),
])
@pytest.mark.parametrize("task", ["merge", "convert"])
def test_what_mostly_fits_nothing_is_refused_and_named(task, names, sentence, tmp_path):
    path = written(tmp_path / "odd.safetensors", {name: a_layer(torch.Generator(), "lora", 8, 8, ())[0] for name in names},
                   lambda name: (name, {}))
    fields = {"loras": [{"path": str(path)}]} if task == "merge" else {"lora": str(path), "names": "kohya"}
    with pytest.raises(UserError, match=sentence):
        done(task, tmp_path / "made", **fields)


def test_transformers_keep_their_names_and_equal_layers_meet(tmp_path):
    """Families without a table: as before, but the same layer in another program's spelling is the same layer."""
    parts, change = a_layer(torch.Generator().manual_seed(1), "lora", 8, 8, ())
    paths = []
    for number, name in enumerate((
            "transformer.transformer_blocks.0.attn.to_q", "lora_transformer_transformer_blocks_0_attn_to_q")):
        paths.append(str(written(tmp_path / f"{number}.safetensors", {name: parts}, lambda name: (name, {}))))
    found = changes(done("merge", tmp_path / "made", loras=[{"path": path} for path in paths], file_precision="fp32"))
    close(found, {"transformer.transformer_blocks.0.attn.to_q": 2 * change})


def test_files_for_different_families_are_not_added(tmp_path):
    parts = a_layer(torch.Generator(), "lora", 8, 8, ())[0]
    paths = [str(written(tmp_path / f"{name}.safetensors", {name: parts}, lambda name: (name, {}))) for name in (
        "lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_down_blocks_0_attentions_0_proj_in")]
    with pytest.raises(UserError, match="is a LoRA for FLUX"):
        done("merge", tmp_path / "made", loras=[{"path": path} for path in paths])


def test_a_bake_that_leaves_most_out_stops(tmp_path):
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
               "model.diffusion_model.input_blocks.3.0.op.weight": torch.zeros(8, 8, 3, 3),
               "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(8, 8)},
              tmp_path / "base.safetensors")
    parts = a_layer(torch.Generator(), "lora", 8, 8, ())[0]
    names = ["lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_unet_mid_block_attentions_0_proj_in"]
    path = written(tmp_path / "lora.safetensors", dict.fromkeys(names, parts), lambda name: (name, {}))
    with pytest.raises(UserError, match="1 of 1 layers of 'lora.safetensors'.*are not in 'base.safetensors'"):
        done("bake", tmp_path / "made", base=str(tmp_path / "base.safetensors"), loras=[{"path": str(path)}])
    assert not list(Path(tmp_path / "made").glob("*.safetensors"))


def test_the_command_line_prints_the_table():
    printed = subprocess.run([sys.executable, str(SCRIPT), "layer-names", "sd1"], capture_output=True, encoding="utf-8",
                             env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert printed.returncode == 0, printed.stderr
    header, *rows = (line.split("\t") for line in printed.stdout.splitlines())
    assert len(rows) == len(family_names("sd1").layers) and {len(row) for row in rows} == {len(header)}
    row = next(row for row in rows if "unet.down_blocks.0.resnets.0.conv1" in row)
    assert row[:3] == ["IN01", "3×3", "lora_unet_down_blocks_0_resnets_0_conv1"]
