"""Names of layers of SD3 and FLUX.1 against diffusers' models in their released sizes; any spelling, the same numbers."""
import random

import pytest
import torch
from finetune.trainers import families
from finetune.trainers.artifacts.layer_names import LayerNames, family_names, family_of_lora, place
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.language_model_recognition import LANGUAGE_TITLES, RELEASED
from finetune.trainers.spec import FolderSpec
from finetune.trainers.stacking.inspection import norms_by_block
from finetune.trainers.tools.file_tasks import TOOLS
from safetensors.torch import load_file, save_file
from support import full_flow
from support.spelled_layers import WRITTEN

FAMILIES = ("sd3", "flux", "flux2", "flux3", "chroma")
STATED = {"qwen_image": "qwen_image", "qwen_image_21": "qwen_image_2.1", "krea2": "krea2", "anima": "anima"}
"""Families whose names are those of others too, and what files say of them."""
NAMED = (*FAMILIES, *STATED)


# ---- the table -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("release", full_flow.RELEASES)
def test_every_layer_of_a_released_model_is_found_by_diffusers_names(release):
    family, *_ = full_flow.RELEASES[release]
    shapes = full_flow.native_shapes(release)
    table, model = family_names(family), LayerNames.of_checkpoint(shapes)
    covered = {layer.native: set() for layer in model.layers}
    for name, shape in full_flow.diffusers_layers(release).items():
        found, known = (names.find(f"transformer.{name}") for names in (model, table))
        assert found and known.native == found.native and found.diffusers == f"transformer.{name}", name
        rows, *others = shapes[found.tensor]
        own = torch.arange(rows)[found.split.rows(rows, others[0]) if found.split else slice(None)]
        assert (len(own), *others) == shape, name
        covered[found.native] |= set(own.tolist())
    # Every row of every layer is of some layer of diffusers.
    assert covered == {layer.native: set(range(shapes[layer.tensor][0])) for layer in model.layers}
    # What it reads of a language model is of a size that was released.
    kind = families.get(family)
    for wanted in kind.parts_beside(kind.layer_names.read_width(shapes)):
        assert (wanted.kind, wanted.width) in RELEASED or wanted.kind not in LANGUAGE_TITLES


@pytest.mark.parametrize("family", NAMED)
def test_the_table_has_the_layers_of_all_releases_and_no_others(family):
    real = {layer.native for release, (own, *_) in full_flow.RELEASES.items() if own == family
            for layer in LayerNames.of_checkpoint(full_flow.native_shapes(release)).layers}
    assert real == {layer.native for layer in family_names(family).layers if not layer.is_text}


@pytest.mark.parametrize("family", NAMED)
@pytest.mark.parametrize("dotless", [False, True])
def test_every_spelling_of_every_layer_leads_back(family, dotless):
    names = family_names(family)
    for layer in (view for each in names.layers for view in (each, *each.views.values())):
        for program, spelled in layer.spellings().items():
            found = names.find(spelled.replace(".", "_") if dotless else spelled)
            assert (found.native, found.split) == (layer.native, layer.split), (program, spelled)
            assert place(spelled, family) == place(layer.native, family), (program, spelled)


@pytest.mark.parametrize("family", NAMED)
def test_names_as_programs_write_them(family):
    for spelled, (native, rows) in WRITTEN[family].items():
        found = family_names(family).find(spelled)
        assert found.native.split(".", 1)[1] == native, spelled
        assert (found.split and (found.split.start, found.split.stop, found.split.of)) == rows, spelled


@pytest.mark.parametrize("names, width, metadata, family", [
    (["lora_unet_joint_blocks_0_x_block_attn_qkv"], 8, {}, "sd3"),
    (["lora_unet_double_blocks_0_img_attn_qkv"], 8, {}, "flux"),
    (["lora_unet_double_blocks_0_img_attn_qkv"], 3072, {"ss_base_model_version": "flux2"}, "flux2"),
    (["lora_unet_double_blocks_0_img_attn_qkv"], 4096, {}, "flux2"),
    (["diffusion_model.double_blocks.8.img_attn.qkv"], 4096, {}, "flux"),
    (["diffusion_model.single_blocks.40.linear1"], 8, {}, "flux2"),
    (["base_model.model.single_transformer_blocks.0.attn.to_qkv_mlp_proj"], 8, {}, "flux2"),
    (["transformer.transformer_blocks.0.attn.to_q"], 6144, {}, "flux2"),
    (["diffusion_model.single_blocks.0.q_proj"], 8, {}, "flux3"),
    (["transformer.single_transformer_blocks.0.ff.linear_in"], 8, {}, "flux3"),
    (["transformer.single_blocks.0.linear1.0"], 8, {}, "flux"),
    (["transformer.joint_blocks.0.x_block.attn.qkv.0"], 8, {}, "sd3"),
    (["transformer.single_transformer_blocks.0.proj_mlp", "transformer.transformer_blocks.0.attn.to_q"], 8, {}, "flux"),
    (["transformer.transformer_blocks.0.attn2.to_q"], 1536, {}, "sd3"),
    (["transformer.transformer_blocks.0.attn2.to_q"], 2048, {}, "anima"),
    (["diffusion_model.blocks.0.cross_attn.q_proj", "lora_unet_llm_adapter_blocks_0_mlp_0"], 2048, {}, "anima"),
    (["lora_unet_blocks_0_cross_attn_q_proj"], 5120, {}, ""),
    (["diffusion_model.blocks.0.attn.wq"], 8, {}, "krea2"),
    (["transformer.text_fusion.projector"], 12, {}, "krea2"),
    (["transformer.transformer_blocks.0.attn.to_q"], 3072, {}, "flux"),
    (["transformer.transformer_blocks.0.attn.to_q"], 2432, {}, "sd3"),
    (["transformer.transformer_blocks.0.attn.to_q"], 8, {}, ""),
    (["transformer.transformer_blocks.0.attn.to_q"], 8, {"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
    # Chroma has FLUX.1's layers, but for the modulation, and small layers that make it.
    (["lora_unet_double_blocks_0_img_attn_qkv"], 3072, {"ss_base_model_version": "chroma"}, "chroma"),
    (["transformer.transformer_blocks.0.attn.to_q"], 3072, {"modelspec.architecture": "chroma/lora"}, "chroma"),
    (["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_distilled_guidance_layer_in_proj"], 3072, {}, "chroma"),
    (["lora_unet_double_blocks_0_img_mod_lin"], 3072, {"ss_base_model_version": "chroma"}, "flux"),
    # Qwen-Image's layers are as wide as Flux', and no other model's are called so throughout.
    (["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj"], 3072, {}, "qwen_image"),
    (["transformer_blocks.59.attn.to_q"], 3072, {}, "qwen_image"),
    (["transformer_blocks.59.attn.to_q"], 8, {}, ""),
    (["transformer_blocks.59.attn.to_q"], 8, {"ss_base_model_version": "qwen_image"}, "qwen_image"),
    (["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.of_another_model"], 3072, {}, ""),
    (["transformer_blocks.31.attn.to_q"], 4096, {}, "qwen_image_21"),
    (["transformer_blocks.0.attn.to_q"], 8, {"modelspec.architecture": "qwen-image-2.1/lora"}, "qwen_image_21"),
    (["lora_unet_transformer_blocks_0_img_mlp_gate_up"], 4096, {}, "qwen_image_21"),
])
def test_names_and_sizes_tell_the_family(names, width, metadata, family):
    assert family_of_lora({f"{name}.lora_A.weight": (4, width) for name in names}, metadata) == family


@pytest.mark.parametrize("layer, rows, columns, family", [
    ("double_blocks.0.img_mlp.0", 4, 1, "flux"), ("double_blocks.0.img_mlp.0", 6, 1, "flux2"),
    ("double_blocks.0.txt_mlp.2", 1, 4, "flux"), ("double_blocks.0.txt_mlp.2", 1, 3, "flux2"),
    ("single_blocks.0.linear1", 7, 1, "flux"), ("single_blocks.0.linear1", 9, 1, "flux2"),
    ("single_blocks.0.linear2", 1, 5, "flux"), ("single_blocks.0.linear2", 1, 4, "flux2")])
def test_shapes_tell_families_with_the_same_names_and_widths(layer, rows, columns, family):
    """FLUX.1 and FLUX.2 klein 4B, whatever the metadata says."""
    width = 3072
    shapes = {f"diffusion_model.{layer}.lora_A.weight": (4, columns * width),
              f"diffusion_model.{layer}.lora_B.weight": (rows * width, 4),
              "diffusion_model.double_blocks.0.img_attn.proj.lora_A.weight": (4, width),
              "diffusion_model.double_blocks.0.img_attn.proj.lora_B.weight": (width, 4)}
    assert family_of_lora(shapes, {"ss_base_model_version": "flux1"}) == family


# ---- any spelling, the same numbers --------------------------------------------------------------------------------

WIDE = 8
FLUX = {"ss_base_model_version": "flux1"}
"""Where names and widths alone are those of FLUX 3 too."""
MARKS = {"sd3": "joint_blocks.0.x_block.attn2.qkv", "flux": "single_blocks.0.linear1", "flux2": "single_blocks.40.linear1",
         "flux3": "single_blocks.0.mlp_in", "chroma": "distilled_guidance_layer.in_proj",
         "qwen_image": "transformer_blocks.59.attn.to_q", "qwen_image_21": "transformer_blocks.0.img_mlp.gate_up",
         "krea2": "blocks.0.attn.wq", "anima": "blocks.0.cross_attn.q_proj"}
"""Layers that tell the family by all their names."""


def noise(draw, *shape):
    return torch.randn(shape, generator=draw) * 0.3


def some_layers(family, seed):
    """Native layers of every kind: joined, swapped, alike, and of text encoders."""
    pick = random.Random(f"{family} {seed}")
    layers = [layer for layer in family_names(family).layers if layer.kernel == ()]
    pools = [[layer for layer in layers if len(layer.splits) > 1],
             [layer for layer in layers if not layer.splits and not layer.is_text],
             [layer for layer in layers if ".encoder.layers." in layer.native],
             [layer for layer in layers if ".t5xxl." in layer.native]]
    swapped = [layer for layer in layers if len(layer.splits) == 1]
    chosen = [layer for pool in [*pools, swapped] for layer in pick.sample(pool, min(2, len(pool)))]
    mark = next(layer for layer in layers if layer.native == f"diffusion_model.{MARKS[family]}")
    return list(dict.fromkeys([*chosen, mark]))


def rows_of(layer, split):
    """Row numbers of a native layer with 2 rows a share that a layer of diffusers is, in its order; by hand."""
    if split.swapped != "never" and (split.swapped == "always" or ".37." in split.name):
        return [*range(WIDE, 2 * WIDE), *range(WIDE)]
    height = 2 * WIDE if split.swapped != "never" else 2 * split.of
    return list(range(height * split.start // split.of, height * split.stop // split.of))


def height_of(layer):
    if len(layer.splits) == 1:  # shift and scale; with four more where it is not the last block
        return 2 * WIDE if layer.splits[0].swapped == "always" or ".37." in layer.native else 6 * WIDE
    return 2 * layer.splits[0].of if layer.splits else 6


def a_lora(family, seed):
    """(tensors under native names, the same under diffusers', change by native layer): factors of rank 2 for every layer
    that diffusers has."""
    draw = torch.Generator().manual_seed(seed)
    native, theirs, changes = {}, {}, {}
    for layer in some_layers(family, seed):
        height = height_of(layer)
        change, ups, downs = torch.zeros(height, WIDE), [], []
        for split in layer.splits or (None,):
            rows = list(range(height)) if split is None or height == 6 * WIDE else rows_of(layer, split)
            down, up = noise(draw, 2, WIDE), noise(draw, len(rows), 2)
            change[rows] += 0.5 * up @ down
            view = layer if split is None else next(
                view for view in layer.views.values() if view.diffusers.endswith(f".{split.name}"))
            theirs[view] = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.0)}
            whole = torch.zeros(height, 2)
            whole[rows] = up
            ups.append(whole), downs.append(down)
        native[layer] = {"lora_down.weight": torch.cat(downs), "lora_up.weight": torch.cat(ups, dim=1),
                         "alpha": torch.tensor(float(len(downs)))}
        changes[layer] = change
    return native, theirs, changes


def written(path, lora, spell, metadata=None, ab=False):
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"} if ab else {}
    named = {spell(layer): parts for layer, parts in lora.items()}
    save_file({f"{name}.{ends.get(part, part)}": tensor.clone() for name, parts in named.items()
               for part, tensor in parts.items()}, path, metadata)
    return path


def done(task, folder, **fields):
    folder.mkdir()
    spec = TOOLS[task].spec(name="made", folders=FolderSpec(runs=str(folder / "runs"), caches=str(folder)), device="cpu",
                            **fields)
    TOOLS[task].work(spec, folder, silent, lambda: False)
    return folder / "made.safetensors"


def changes_in(path):
    return {key: layer.change() for key, layer in read_lora(path).layers.items()}


def close(found, expected):
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        torch.testing.assert_close(found[key], change, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_any_spelling_gives_the_same_numbers(family, seed, tmp_path):
    native, theirs, change = a_lora(family, seed)
    pick = random.Random(seed)
    usual = written(tmp_path / "usual.safetensors", native, lambda layer: layer.key)
    own = {layer.key: each for layer, each in change.items()}
    assert changes_in(usual).keys() == own.keys()
    programs = sorted({program for layer in theirs for program in layer.spellings()})
    for program in (pick.choice(programs), "mixed"):
        folder = tmp_path / program
        folder.mkdir()

        def spell(layer):
            names = layer.spellings()
            return (names.get(program) or names[pick.choice(sorted(names))]).removesuffix("_lora")
        other = written(folder / "other.safetensors", theirs, spell, ab=pick.random() < 0.5)
        norms = norms_by_block(load_file(usual), family)
        for block, kinds in norms_by_block(load_file(other), family).items():
            assert norms[block] == pytest.approx(kinds, rel=1e-4)
        converted = done("convert", folder / "kohya", lora=str(other), names="kohya")
        close(changes_in(converted), own)
        close(changes_in(done("convert", folder / "comfyui", lora=str(converted), names="comfyui")),
              {layer.native: each for layer, each in change.items()})
        both = [{"path": str(usual), "model": 0.5, "text": 0.5}, {"path": str(other), "model": -2.0, "text": -2.0}]
        close(changes_in(done("merge", folder / "merge", loras=both, file_precision="fp32")),
              {key: -1.5 * each for key, each in own.items()})
        resized = [changes_in(done("merge", folder / f"resize {path.stem}", loras=[{"path": str(path)}], rule="fixed",
                                   rank=1, file_precision="fp32")) for path in (usual, other)]
        close(*reversed(resized))
        # a base with the other's layers, all zeros
        base = {f"model.{layer.native}.weight" if not layer.is_text else f"{layer.native}.weight": torch.zeros_like(each)
                for layer, each in change.items()}
        mark = families.get(family).layer_names.marker
        base.setdefault(f"model.diffusion_model.{mark}", torch.zeros(6, WIDE) if family == "sd3" else torch.zeros(4))
        save_file(base, folder / "base.safetensors")
        baked = load_file(done("bake", folder / "bake", base=str(folder / "base.safetensors"), loras=[
            {"path": str(other), "model": 0.5, "text": 0.5}]))
        for layer, each in change.items():
            found = baked[f"model.{layer.native}.weight" if not layer.is_text else f"{layer.native}.weight"]
            torch.testing.assert_close(found, 0.5 * each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", NAMED)
def test_to_diffusers_names_and_back_nothing_is_rounded(family, tmp_path):
    """Not a bit of what three layers held is lost in one, nor their rank; the scale stays with alpha."""
    _, theirs, _ = a_lora(family, 0)
    stated = {"ss_base_model_version": STATED[family]} if family in STATED else None
    path = written(tmp_path / "theirs.safetensors", theirs, lambda layer: layer.diffusers, stated, ab=True)
    before = {layer.diffusers: parts for layer, parts in theirs.items()}
    converted = done("convert", tmp_path / "kohya", lora=str(path), names="kohya", file_precision="same")
    back = read_lora(done("convert", tmp_path / "back", lora=str(converted), names="diffusers", file_precision="same"))
    assert back.layers.keys() == before.keys()
    for key, layer in back.layers.items():
        found = layer.tensors()
        assert torch.equal(found["lora_down.weight"], before[key]["lora_down.weight"]), key
        assert torch.equal(found["lora_up.weight"], 0.5 * before[key]["lora_up.weight"]), key  # diffusers has no alpha


def test_three_layers_with_the_same_down_are_one_of_the_same_rank(tmp_path):
    draw = torch.Generator().manual_seed(0)
    down, ups = noise(draw, 2, WIDE).half(), [noise(draw, 4, 2).half() for _ in range(3)]
    names = [f"transformer.single_transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    for number, downs in enumerate(([down] * 3, [down, down + 1, down])):
        save_file({key: tensor.clone() for name, own, up in zip(names, downs, ups) for key, tensor in (
            (f"{name}.lora_A.weight", own), (f"{name}.lora_B.weight", up))}, tmp_path / f"{number}.safetensors", FLUX)
        made = load_file(done("convert", tmp_path / f"made {number}", lora=str(tmp_path / f"{number}.safetensors"),
                              names="kohya"))
        key = "lora_unet_single_blocks_0_linear1"
        rank = (2, 6)[number]
        assert made.keys() == {f"{key}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
        assert made[f"{key}.lora_up.weight"].shape == (28, rank) and made[f"{key}.lora_up.weight"].dtype == torch.float16
        product = made[f"{key}.lora_up.weight"].float() @ made[f"{key}.lora_down.weight"].float()
        expected = torch.cat([*(up.float() @ own.float() for up, own in zip(ups, downs)), torch.zeros(16, WIDE)])
        assert torch.equal(product, expected) and made[f"{key}.alpha"] == rank


KINDS = {
    "loha": lambda draw: {"hada_w1_a": noise(draw, 4, 2), "hada_w1_b": noise(draw, 2, WIDE), "hada_w2_a": noise(draw, 4, 2),
                          "hada_w2_b": noise(draw, 2, WIDE), "alpha": torch.tensor(1.0)},
    "lokr": lambda draw: {"lokr_w1": noise(draw, 2, 2), "lokr_w2": noise(draw, 2, WIDE // 2), "alpha": torch.tensor(1.0)},
    "dora": lambda draw: {"lora_down.weight": noise(draw, 2, WIDE), "lora_up.weight": noise(draw, 4, 2),
                          "alpha": torch.tensor(1.0), "dora_scale": noise(draw, 4, 1)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_rows(kind, tmp_path):
    """They are baked into their rows, keep diffusers' names where a file is converted, and are full differences in sums."""
    draw = torch.Generator().manual_seed(0)
    key, other = "transformer.transformer_blocks.0.attn.to_k", "transformer.single_transformer_blocks.0.proj_out"
    parts = KINDS[kind](draw)
    plain = {f"{other}.lora_A.weight": noise(draw, 2, WIDE), f"{other}.lora_B.weight": noise(draw, 4, 2)}
    path = str(tmp_path / "lora.safetensors")
    save_file({f"{key}.{part}": tensor for part, tensor in parts.items()} | plain, path)
    converted = done("convert", tmp_path / "kohya", lora=path, names="kohya", file_precision="same")
    assert load_file(converted).keys() == {*(f"{key}.{part}" for part in parts), *(
        f"lora_unet_single_blocks_0_linear2.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha"))}
    joined = "double_blocks.0.img_attn.qkv.weight"
    base = {joined: noise(draw, 12, WIDE), "double_blocks.0.img_attn.norm.key_norm.scale": noise(draw, 4),
            "single_blocks.0.linear2.weight": noise(draw, 4, WIDE)}
    save_file(base, tmp_path / "base.safetensors")
    change = read_lora(tmp_path / "lora.safetensors").layers[key].change(base[joined][4:8])
    expected = torch.cat([torch.zeros(4, WIDE), change, torch.zeros(4, WIDE)])
    assert change.norm() > 0.05
    for number, lora in enumerate((path, str(converted))):
        baked = load_file(done("bake", tmp_path / f"bake {number}", base=str(tmp_path / "base.safetensors"),
                               loras=[{"path": lora}]))
        torch.testing.assert_close(baked[joined] - base[joined], expected, atol=1e-6, rtol=1e-4)
    if kind == "dora":
        with pytest.raises(UserError, match="is a DoRA layer"):
            done("merge", tmp_path / "merge", loras=[{"path": path}])
        return
    merged = changes_in(done("merge", tmp_path / "merge", loras=[{"path": path}], file_precision="fp32"))
    torch.testing.assert_close(merged["lora_unet_double_blocks_0_img_attn_qkv"][4:8], change, rtol=1e-4, atol=1e-6)


def test_a_base_without_text_encoders_does_not_cost_a_lora_its_own(tmp_path):
    draw = torch.Generator().manual_seed(0)
    save_file({"double_blocks.0.img_attn.qkv.weight": noise(draw, 12, WIDE), "double_blocks.0.img_attn.norm.key_norm.scale":
               noise(draw, 4)}, tmp_path / "base.safetensors")
    keys = ["lora_te1_text_model_encoder_layers_3_mlp_fc1", "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
            "lora_unet_double_blocks_0_img_attn_qkv"]
    save_file({f"{key}.lora_{part}.weight": noise(draw, *shape) for key in keys
               for part, shape in (("down", (2, WIDE)), ("up", (12, 2)))}, tmp_path / "lora.safetensors")
    made = read_lora(done("convert", tmp_path / "made", lora=str(tmp_path / "lora.safetensors"), names="comfyui",
                          base=str(tmp_path / "base.safetensors")))
    assert {key.split(".")[1] for key in made.layers} == {"clip_l", "t5xxl", "double_blocks"}


def test_rows_that_do_not_fit_together_are_named(tmp_path):
    save_file({f"transformer.single_transformer_blocks.0.attn.to_{letter}.lora_{factor}.weight": torch.zeros(shape)
               for letter, out in (("q", 4), ("k", 6)) for factor, shape in (("A", (2, WIDE)), ("B", (out, 2)))},
              tmp_path / "odd.safetensors", FLUX)
    with pytest.raises(UserError, match=r"to_k \[6, 8\], .*to_q \[4, 8\] make no layer diffusion_model.single_blo"):
        done("convert", tmp_path / "made", lora=str(tmp_path / "odd.safetensors"), names="kohya")


def test_metadata_of_a_converted_file(tmp_path):
    native, _, _ = a_lora("flux", 0)
    path = written(tmp_path / "flux.safetensors", native, lambda layer: layer.key, {"ss_base_model_version": "flux1"})
    made = done("convert", tmp_path / "made", lora=str(path), names="comfyui")
    assert read_header(made)[1]["ss_base_model_version"] == "flux1"
