"""Stacks without a host: rows, block weights, names of blocks, prompts, cards."""
import copy
import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune.trainers.artifacts.layer_names import split_key
from finetune.trainers.artifacts.layer_names.blocks import BLOCKS, place
from finetune.trainers.artifacts.layer_names.unet import original_unet_name
from finetune.trainers.errors import UserError
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.stacking import LoraEntry, StackRow, entries_from, parse_rows, serialize_rows
from finetune.trainers.stacking.block_weights import LISTS, PRESETS, parse_block_weights
from finetune.trainers.stacking.cards import card, data_bytes, family_of, hashes_of, plain
from finetune.trainers.stacking.inspection import change_norm, draw_norms, norms_by_block
from finetune.trainers.stacking.prompts import TEXT_FIRST, parse_keyword_map, read_prompt, resolve, rows_of
from safetensors.torch import save_file

# ---- rows ----------------------------------------------------------------------------------------------------------

def test_rows_survive_the_widget():
    rows = (StackRow(lora="a/b.safetensors", hash="ab" * 32, bytes=7, model=0.8, text=-0.5, blocks="OUTD, IN04=0.3",
                     attention=0.5, feed_forward=0.0, convolution=2.0), StackRow(on=False, lora="<i>ü.safetensors"))
    assert parse_rows(serialize_rows(rows)) == rows
    assert parse_rows(json.dumps(json.loads(serialize_rows(rows))["rows"])) == rows
    assert parse_rows("  ") == ()
    assert parse_rows('[{"lora": "a", "model": 0.4}]')[0].text == 0.4


@pytest.mark.parametrize("text, sentence", [
    ("{", "rows is not JSON text"),
    ('{"rows": 3}', "rows must be a list"),
    ('[{"lora": "a"}, 3]', "rows must be a list"),
    ('[{"lora": "a"}, {"lora": "b", "model": "much"}]', "Row 2 of rows: model is 'much'"),
    ('[{"lora": "a", "model": 1e9}]', "Row 1 of rows: model is 1000000000.0"),
    ('[{"lora": "a", "hash": "xyz"}]', "64 hexadecimal digits"),
    ('[{"lora": "a", "strength": 1}]', "Row 1 of rows: strength"),
    ('{"version": 9, "rows": []}', "version 9"),
    ("[" * 100_000, "rows is not JSON text"),
])
def test_wrong_rows_are_sentences(text, sentence):
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        parse_rows(text)


def test_an_entry_is_a_tuple_of_three_that_carries_its_row():
    row = StackRow(lora="a", model=0.8, text=0.6, blocks="OUTD")
    entry = LoraEntry("a", 0.8, 0.6, row)
    name, model, text = entry
    assert entry == ("a", 0.8, 0.6) == (name, model, text) and len(entry) == 3 and hash(entry) == hash(("a", 0.8, 0.6))
    for other in (copy.copy(entry), copy.deepcopy(entry), entries_from([entry])[0], list([entry])[0]):  # noqa: RUF015
        assert other.row == row and isinstance(other, LoraEntry)
    assert entries_from([("a", 1, 0.5, "words"), ("None", 1, 1), ("", 1, 1)]) == [("a", 1.0, 0.5)]
    with pytest.raises(UserError, match="something other than"):
        entries_from(["ab"])


def test_strengths_multiply():
    row = StackRow(lora="a", blocks="IN04=0.5, BASE=0.25", attention=0.1)
    strength = LoraEntry("a", 2.0, 4.0, row).strengths("sd1")
    block = "diffusion_model.input_blocks.4.1.transformer_blocks.0"
    assert strength(f"{block}.attn1.to_q.weight") == pytest.approx(2 * 0.5 * 0.1)
    assert strength(f"{block}.ff.net.2.weight") == pytest.approx(2 * 0.5)
    for text in ("clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", "gemma2_2b.transformer.layers.0.mlp.up_proj"):
        assert strength(f"{text}.weight") == pytest.approx(4 * 0.25)


# ---- blocks --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_all_names_of_a_weight_lead_to_the_same_place(family):
    """The full-size model's layers: by diffusers' names, kohya's, and the original ones that ComfyUI uses."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))
    attention = ["CrossAttn" in block for block in unet.config.up_block_types]
    seen = set()
    for name, module in unet.named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            original = original_unet_name(name, unet.config.layers_per_block, attention)
            native = place(f"diffusion_model.{original}.weight", family)
            underscored = [f"lora_unet_{spelled.replace('.', '_')}" for spelled in (name, original)]
            for spelled in (*underscored, f"unet.{name}"):
                assert place(spelled, family) == native, spelled
            assert native.block in BLOCKS[family]
            seen.add(native)
    assert {where.block for where in seen} == set(BLOCKS[family]) - {"BASE"}
    assert {where.kind for where in seen} == {"attention", "feed_forward", "convolution", "other"}


@pytest.mark.parametrize("name, family, block, kind", [
    ("diffusion_model.joint_blocks.7.x_block.attn.qkv.weight", "sd3", "JOINT07", "attention"),
    ("transformer.transformer_blocks.7.attn.to_q", "sd3", "JOINT07", "attention"),
    ("lora_unet_joint_blocks_23_context_block_mlp_fc1", "sd3", "JOINT23", "feed_forward"),
    ("diffusion_model.double_blocks.18.img_mlp.0.weight", "flux", "DOUBLE18", "feed_forward"),
    ("transformer.transformer_blocks.3.ff_context.net.2", "flux", "DOUBLE03", "feed_forward"),
    ("transformer.single_transformer_blocks.37.attn.to_k", "flux", "SINGLE37", "attention"),
    ("transformer.single_transformer_blocks.37.proj_mlp", "flux", "SINGLE37", "attention"),
    ("lora_unet_single_blocks_37_linear1", "flux", "SINGLE37", "attention"),
    ("diffusion_model.layers.29.feed_forward.w1", "z_image", "LAYER29", "feed_forward"),
    ("lora_unet_layers_3_attention_to_q", "z_image", "LAYER03", "attention"),
    ("transformer.context_refiner.1.attention.to_out.0", "z_image", "CONTEXT01", "attention"),
    ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", "sdxl", "BASE", "attention"),
    ("text_encoder_2.text_model.encoder.layers.3.mlp.fc2", "sdxl", "BASE", "feed_forward"),
    ("text_encoders.clip_g.transformer.text_model.encoder.layers.3.mlp.fc2", "sdxl", "BASE", "feed_forward"),
    ("diffusion_model.time_embed.0.weight", "sd1", "EXTRA", "other"),
])
def test_places(name, family, block, kind):
    assert place(name, family) == (block, kind)


# ---- block weights -------------------------------------------------------------------------------------------------

def test_lists_name_the_blocks_of_their_length():
    numbers = [number / 100 for number in range(17)]
    weights = parse_block_weights(",".join(map(str, numbers)))
    assert [weights[block] for block in LISTS[17]] == numbers
    assert (LISTS[17][6], LISTS[17][7], LISTS[17][8]) == ("IN08", "MID", "OUT03")
    assert weights["IN00"] == weights["OUT02"] == 0 and weights["EXTRA"] == pytest.approx(sum(numbers[1:]) / 16)
    assert LISTS[12] == ("BASE", "IN04", "IN05", "IN07", "IN08", "MID", *[f"OUT0{n}" for n in range(6)])
    assert [len(blocks) for blocks in LISTS.values()] == list(LISTS)
    for family, length in (("sd1", 26), ("sdxl", 20), ("sd3", 39), ("flux", 58), ("z_image", 35)):
        weights = parse_block_weights(",".join(["0.5"] * length), family)
        assert {weights[block] for block in BLOCKS[family]} == {0.5}


@pytest.mark.parametrize("text, expected", [
    ("", {"IN04": 1, "BASE": 1}),
    ("0.3", {"IN04": 0.3, "BASE": 0.3}),
    ("in1-3=0.5", {"IN00": 1, "IN01": 0.5, "IN03": 0.5, "IN04": 1}),
    ("IN01-IN03=0.5, mid=0", {"IN02": 0.5, "MID": 0, "OUT00": 1}),
    ("%default=0.2, OUT=0.7,\n base = 0.9", {"IN04": 0.2, "OUT11": 0.7, "BASE": 0.9}),
    ("%default=0.2,in1-3=0.5", {"IN02": 0.5, "IN04": 0.2}),
    ("OUTD, IN04=0.3", {"IN04": 0.3, "IN05": 0, "OUT03": 1, "OUT06": 1, "OUT07": 0, "BASE": 1}),
    ("outs", {"OUT06": 0, "OUT07": 1, "MID": 0}),
    ("MIDD", {"IN04": 0, "IN05": 1, "MID": 1, "OUT06": 1, "OUT07": 0}),
    ("DENOISER", {"BASE": 0, "EXTRA": 1, "IN00": 1}),
    ("IN04=-1.5", {"IN04": -1.5}),
])
def test_block_weight_texts(text, expected):
    weights = parse_block_weights(text, "sd1")
    assert {block: weights[block] for block in expected} == expected


def test_presets_say_what_their_lists_in_lora_block_weight_say():
    """The 17 and 12 numbers as that extension and its users' tables have them."""
    for family, length, lists in (
        ("sd1", 17, {"INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0", "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
                     "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0", "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
                     "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
                     "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"}),
        ("sdxl", 12, {"INS": "1,1,1,0,0,0,0,0,0,0,0,0", "IND": "1,0,0,1,1,0,0,0,0,0,0,0",
                      "OUTD": "1,0,0,0,0,0,1,1,1,0,0,0", "OUTS": "1,0,0,0,0,0,0,0,0,1,1,1"}),
    ):
        for name, numbers in lists.items():
            preset = parse_block_weights(name, family)
            assert [preset[block] for block in LISTS[length]] == [float(number) for number in numbers.split(",")], name


def test_halves_add_up():
    for family in ("sd1", "sdxl"):
        one, other, both = (parse_block_weights(name, family) for name in ("INS", "IND", "INALL"))
        assert all(max(one[block], other[block]) == both[block] for block in BLOCKS[family])
        assert set(PRESETS) >= {"ALL", "NONE", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL", "ALL0.5"}


@pytest.mark.parametrize("text, sentence", [
    ("1,2,3", "list of 3 numbers"), ("WILD", "no preset 'WILD'"), ("IN04=x", "'x' where a number"),
    ("IN04=nan", "where a number"), ("IN04=1e9", "where a number"), ("in3-1=1", "ends before it begins"),
    ("FOO3=1", "name a block 'foo3'"), ("IN04=1, 3", "neither a number nor"), ("1,1,R,1,1,1,1,1,1,1,1,1", "no preset '1'"),
])
def test_wrong_block_weights_are_sentences(text, sentence):
    with pytest.raises(UserError, match=sentence):
        parse_block_weights(text, "sd1")


def test_unet_presets_on_other_models_are_refused():
    with pytest.raises(UserError, match="made for UNets"):
        parse_block_weights("OUTD", "flux")
    assert parse_block_weights("DOUBLE0-9=0.5, s=0", "flux")["DOUBLE09"] == 0.5
    assert parse_block_weights("l0-9=0.5", "z_image")["LAYER09"] == 0.5
    assert parse_block_weights("ALL0.5", "")["anything"] == 0.5


# ---- prompts -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prompt, clean, mention", [
    ("a cat, <lora:ink:0.8>, on paper", "a cat, on paper", ("ink", 0.8, 0.8, "")),
    ("<lora:ink>", "", ("ink", 1.0, 1.0, "")),
    ("<lora:ink:0.8:0.6> a cat", "a cat", ("ink", 0.8, 0.6, "")),
    ("a cat <LORA:ink:te=0.5:unet=-1>", "a cat", ("ink", -1.0, 0.5, "")),
    ("a cat, <lora:ink:te=0.5>", "a cat", ("ink", 0.5, 0.5, "")),
    ("a <lora:ink:1:lbw=OUTD> cat", "a cat", ("ink", 1.0, 1.0, "OUTD")),
    ("a <lora:ink:1:0.5:OUTD> cat", "a cat", ("ink", 1.0, 0.5, "OUTD")),
    ("<lora:sub/ink drawing v1.2:1:lbw=1,0,0,0,0,0,0,0,0,0,0,0>", "",
     ("sub/ink drawing v1.2", 1, 1, "1,0,0,0,0,0,0,0,0,0,0,0")),
])
def test_prompts(prompt, clean, mention):
    text, (found,) = read_prompt(prompt)
    assert (text, (found.name, found.model, found.text, found.blocks)) == (clean, mention)


@pytest.mark.parametrize("tag, file", [
    ("<lora:name :0.8>", "name .safetensors"), ("<lora: name:0.8>", " name.safetensors"),
    ("<lora:name:0.8 >", "name.safetensors"), ("<lora:\nname\n:0.8>", "name.safetensors"),
    ("< lora:name : 0.8 : te = 0.8 >", "name.safetensors"), ("<lora :  NAME :0.8>", "sub/name .safetensors"),
    ("<lora:two  words:0.8>", "two words.safetensors"), ("<lora:sub / name.safetensors :.8>", "sub/name .safetensors"),
    ("<lora:'name':0.8>", "name.safetensors"), ("<lora:caf\u00e9:0.8>", "cafe\u0301.safetensors"),
])
def test_blanks_in_tags(tag, file):
    others = ["other.safetensors", "na me.safetensors"]
    clean, mentions = read_prompt(f"a {tag} b")
    assert clean == "a b" and rows_of(mentions, [*others, file]) == (
        [StackRow(lora=file, model=0.8, text=0.8)], [])


def test_blanks_around_a_name_may_belong_to_it():
    choices = ["name.safetensors", "name .safetensors", "Name.safetensors"]
    assert [resolve(name, choices) for name in ("name", "name ", " name", "Name", "NAME")] == [
        choices[0], choices[1], choices[0], choices[2], choices[0]]


def test_prompts_in_the_other_order_and_with_faults():
    _, (mention,) = read_prompt("<lora:ink:0.8:0.6:step=3-5>", TEXT_FIRST)
    assert (mention.model, mention.text) == (0.6, 0.8) and "step=" in mention.notes[0]
    with pytest.raises(UserError, match="'ink' the strength 'x1'"):
        read_prompt("<lora:ink:x1>")
    assert read_prompt("no <b>tag</b>, <lora ink>") == ("no <b>tag</b>, <lora ink>", [])
    assert read_prompt("a <lora:x:1><lora:y:2>, b\n<lora:z>\nc")[0] == "a, b\n\nc"


def test_names_in_prompts_are_found():
    choices = ["styles/Ink.safetensors", "ink2.safetensors", "people/ink2.safetensors", "v1.5 look.safetensors"]
    assert resolve("ink", choices) == resolve("INK.safetensors", choices) == resolve("styles\\ink", choices) == choices[0]
    assert resolve("ink2", choices) == choices[1] and resolve("people/ink2", choices) == choices[2]
    assert resolve("v1.5 look", choices) == choices[3] and resolve("in", choices) is None
    rows, unknown = rows_of(read_prompt("<lora:ink2:0.5><lora:imk:1>")[1], choices)
    assert [(row.lora, row.model) for row in rows] == [(choices[1], 0.5)]
    assert unknown[0].startswith("There is no LoRA 'imk'") and "ink" in unknown[0]


def test_keywords():
    (keyword,) = parse_keyword_map('{"ink": {"words": ["ohwx", " sks "], "model": 0.5}}')
    assert (keyword.words, keyword.model, keyword.text) == (("ohwx", "sks"), 0.5, None)
    assert parse_keyword_map('{"ink": "a, b"}')[0].words == ("a", "b") and parse_keyword_map(" ") == []
    for wrong in ("[1]", '{"a": 3}', '{"a": {"words": ["x"], "model": "much"}}', "{"):
        with pytest.raises(UserError, match="keyword_map"):
            parse_keyword_map(wrong)


# ---- files ---------------------------------------------------------------------------------------------------------

HOSTILE = {
    "ss_output_name": "<img src=x onerror=alert(1)>\x00\x1b[31m\u202e", "modelspec.trigger_phrase": "ohwx, <b>sks</b>\x07",
    "ss_tag_frequency": '{"d": {"<script>": 3, "cat": 9, "dog": "many"}, "e": 4}', "ss_datasets": "[[[",
    "long": "x" * 1_000_000,
    "modelspec.thumbnail": "data:image/png;base64," + "A" * 1_000_000, "ss_base_model_version": "sd_1.5",
}


def lora_file(path, metadata=None, context=768):
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{layer}.lora_down.weight": torch.ones(4, context), f"{layer}.lora_up.weight": torch.ones(640, 4),
               f"{layer}.alpha": torch.tensor(2.0)}, path, metadata=metadata)
    return path


def test_a_card_of_hostile_metadata_is_short_plain_text(tmp_path):
    facts = card(lora_file(tmp_path / "a.safetensors", HOSTILE), "<script>.safetensors")
    text = json.dumps(facts, ensure_ascii=False)
    assert len(text) < 20_000 and not [sign for sign in text if ord(sign) < 32 or sign == "\u202e"]
    assert facts["title"] == "<img src=x onerror=alert(1)> [31m" and facts["triggers"] == ["ohwx", "<b>sks</b>"]
    assert facts["tags"] == ["cat", "<script>"] and facts["metadata"]["long"].endswith("x…")
    assert (facts["family"], facts["method"], facts["rank"], facts["layers"]) == ("sd1", "LoRA", 4, 1)
    assert plain("a\nb\tc") == "a b c" and plain("x" * 50, 10) == "x" * 10 + "…"


@pytest.mark.parametrize("metadata", [{}, {"ss_base_model_version": "sd_v1"}, {"ss_v2": "True"}])
def test_shapes_tell_the_family_whatever_metadata_says(metadata, tmp_path):
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
    assert family_of({key: {"shape": [4, 2048]}}, metadata) == "sdxl"


def test_hashes_are_of_the_data_and_of_the_file(tmp_path):
    one = lora_file(tmp_path / "one.safetensors")
    other = lora_file(tmp_path / "other.safetensors", {"note": "edited"})
    assert hashes_of(one)[0] == hashes_of(other)[0] and hashes_of(one)[1] != hashes_of(other)[1]
    assert data_bytes(one) == data_bytes(other) == 4 * (4 * 768 + 640 * 4 + 1)


@pytest.mark.parametrize("key, layer, part", [
    ("a.lora_down.weight", "a", "lora_down.weight"), ("a.b.lora_B.default.weight", "a.b", "lora_up.weight"),
    ("a.lora_A", "a", "lora_down.weight"), ("a.processor.to_q_lora.up.weight", "a.processor.to_q", "lora_up.weight"),
    ("a.lora_linear_layer.down.weight", "a", "lora_down.weight"), ("a.lora_magnitude_vector", "a", "dora_scale"),
    ("a.lora_magnitude_vector.default.weight", "a", "dora_scale"), ("a.hada_w1_a", "a", "hada_w1_a"),
    ("a.lora_B.bias", None, None), ("a.weight", None, None),
])
def test_parts_of_keys(key, layer, part):
    assert (split_key(key) or (None, None)) == (layer, part)


def test_norms_are_those_of_the_products(tmp_path):
    generator = torch.Generator().manual_seed(0)
    up, down, small, large = (torch.randn(shape, generator=generator) for shape in ((8, 2), (2, 6), (2, 3), (4, 2)))
    alpha = {"alpha": torch.tensor(1.0)}
    assert change_norm({"lora_up.weight": up, "lora_down.weight": down, **alpha}) == pytest.approx(
        float((up @ down / 2).norm()), rel=1e-5)
    assert change_norm({"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down}) == pytest.approx(
        float(((up @ down) ** 2).norm()), rel=1e-5)
    assert change_norm({"lokr_w1": small, "lokr_w2": large, **alpha}) == pytest.approx(
        float(torch.kron(small, large).norm()), rel=1e-5)
    assert change_norm({"oft_blocks": up}) is None
    tensors = {f"lora_unet_mid_block_{layer}.{part}": tensor for layer in ("attentions_0_x_attn1_to_q", "resnets_0_conv1")
               for part, tensor in (("lora_up.weight", up), ("lora_down.weight", down))}
    norms = norms_by_block(tensors, "sd1")
    each = pytest.approx(float((up @ down).norm()), rel=1e-5)
    assert norms == {"MID": {"attention": each, "convolution": each}}
    image = draw_norms(norms, "<b>\u202e" * 200, ["a line"] * 3)
    assert image.width == 960 and len(image.getcolors(10**6)) > 10
    draw_norms({}, "nothing", [])


def test_rows_without_effect():
    """Off, without a file, or with strengths of 0 on both sides."""
    rows = [StackRow(lora="a", on=False), StackRow(), StackRow(lora="None"), StackRow(lora="a", model=0, text=0),
            StackRow(lora="a"), StackRow(lora="a", model=0, text=0.5), StackRow(lora="a", model=-1, text=0)]
    assert [row.empty for row in rows] == [True] * 4 + [False] * 3
