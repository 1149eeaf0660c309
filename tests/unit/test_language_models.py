"""Language models as text encoders: which tensors of a file are read, and what is said of files that do not fit."""
import json
from dataclasses import replace

import pytest
import torch
from finetune.trainers.errors import UserError
from finetune.trainers.families.protocol import TextEncoders
from finetune.trainers.families.text import taps
from finetune.trainers.families.text.language_model import MISTRAL, QWEN3, QWEN3_VL, QWEN25_VL, LanguageModel
from finetune.trainers.families.text.qwen_words import qwen_tokenizer
from finetune.trainers.families.text.tekken import tekken_tokenizer
from finetune.trainers.memory.placement import Placement
from finetune.trainers.spec import BaseModelSpec, ComponentSpec, MemorySpec
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

WORDS, LAYERS = 151936, 4
SIZES = dict(vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
             num_key_value_heads=1)
EYES = dict(hidden_size=16, intermediate_size=16, num_heads=2, depth=1, out_hidden_size=16)
LAST = LanguageModel(QWEN3, taps.Tap(states=(-1,), normed=True))
SEES = {
    "Qwen3-VL": (QWEN3_VL, lambda: Qwen3VLForConditionalGeneration(Qwen3VLConfig(
        text_config={**SIZES, "head_dim": 8, "rope_theta": 1e4}, vision_config={**EYES, "deepstack_visual_indexes": [0]}))),
    "Qwen2.5-VL": (replace(QWEN25_VL, head=8), lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config={**SIZES, "rope_theta": 2e4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config=EYES))),
}


@pytest.fixture(scope="module")
def words():
    return qwen_tokenizer()


@pytest.fixture(scope="module")
def qwen():
    torch.manual_seed(0)
    return Qwen3Model(Qwen3Config(**SIZES, head_dim=8, rope_theta=1e6)).requires_grad_(False).eval()


def base_of(path, prefix="") -> BaseModelSpec:
    return BaseModelSpec(family="x", path=str(path), name="qwen", layout="separate_files", prediction_type="flow",
                         fingerprint="x", components=(ComponentSpec(name="text_encoder", path=str(path), prefix=prefix),))


def stored(tensors, path, prefix="") -> BaseModelSpec:
    save_file({prefix + name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return base_of(path, prefix)


def said_by(kind, base, words, captions=("a cat",)):
    text = TextEncoders({"te": words}, {"te": kind.load(base, "text_encoder", torch.float32)})
    return kind.encode(text, "te", captions)


@pytest.mark.parametrize("start, prefix", [
    ("model.", ""), ("", ""), ("model.language_model.", ""), ("model.", "text_encoders.qwen3_4b.transformer.")])
def test_it_is_found_under_every_name(start, prefix, qwen, words, tmp_path):
    base = stored({start + name: tensor for name, tensor in qwen.state_dict().items()}, tmp_path / "x.safetensors", prefix)
    ids = torch.tensor([words("a cat").input_ids])
    torch.testing.assert_close(said_by(LAST, base, words)["hidden"], qwen(ids).last_hidden_state)


@pytest.mark.parametrize("name", SEES)
def test_of_models_that_see_only_what_reads_is_loaded(name, words, tmp_path):
    """From the folder that the library writes, with its own angles of places."""
    architecture, make = SEES[name]
    torch.manual_seed(0)
    model = make().requires_grad_(False).eval()
    model.save_pretrained(tmp_path / "text_encoder")
    ids = torch.tensor([words("one cat, two cats").input_ids])
    expected = model(ids, output_hidden_states=True).hidden_states[2]
    kind = LanguageModel(architecture, taps.Tap(states=(2,)))
    found = said_by(kind, base_of(tmp_path / "text_encoder"), words, ["one cat, two cats"])["hidden"]
    torch.testing.assert_close(found, expected)
    loaded = kind.load(base_of(tmp_path / "text_encoder"), "text_encoder", torch.float32)
    assert len(loaded.layers) == 2 and kind.weights(base_of(tmp_path / "text_encoder"), "text_encoder") == sum(
        each.numel() for each in loaded.parameters())


def test_layers_behind_the_last_state_may_be_missing(qwen, words, tmp_path):
    whole = {f"model.{name}": tensor for name, tensor in qwen.state_dict().items()}
    pruned = {name: tensor for name, tensor in whole.items() if not name.startswith(("model.layers.3.", "model.norm."))}
    kind = LanguageModel(QWEN3, taps.Tap(states=(1, 3)))
    both = [said_by(kind, stored(each, tmp_path / f"{number}.safetensors"), words)["hidden"]
            for number, each in enumerate((whole, pruned))]
    assert torch.equal(*both) and both[0].shape[2] == 32
    states = qwen(torch.tensor([words("a cat").input_ids]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(both[0], torch.cat([states[1], states[3]], dim=-1))


def test_states_count_from_the_end_of_the_file(qwen, words, tmp_path):
    base = stored(qwen.state_dict(), tmp_path / "x.safetensors")
    states = qwen(torch.tensor([words("a cat").input_ids]), output_hidden_states=True).hidden_states
    for tap, expected in ((taps.Tap(states=(-2,)), states[3]), (taps.Tap(states=(-3, -2)), torch.cat(states[2:4], dim=-1)),
                          (taps.Tap(states=(1, 2), stacked=True), torch.stack(states[1:3], dim=2))):
        torch.testing.assert_close(said_by(LanguageModel(QWEN3, tap), base, words)["hidden"], expected)


def test_weights_with_a_scale_become_numbers(qwen, words, tmp_path):
    """As in qwen_2.5_vl_7b_fp8_scaled.safetensors."""
    small, plain = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}, {}
    for name, tensor in qwen.state_dict().items():
        small[f"model.{name}"] = plain[f"model.{name}"] = tensor
        if name.endswith("proj.weight"):
            scale = tensor.abs().max() / 448
            small |= {f"model.{name}": (tensor / scale).to(torch.float8_e4m3fn),
                      f"model.{name.removesuffix('weight')}scale_weight": scale}
            plain[f"model.{name}"] = small[f"model.{name}"].float() * scale
    bases = [stored(each, tmp_path / f"{number}.safetensors") for number, each in enumerate((small, plain))]
    assert torch.equal(*(said_by(LAST, base, words)["hidden"] for base in bases))


def test_captions_together_are_as_each_alone(qwen, words, tmp_path):
    captions = ["a cat", "", "one word after the other"]  # 2, 0 and 5 tokens, and 8 around them
    base = stored(qwen.state_dict(), tmp_path / "x.safetensors")
    kind = LanguageModel(QWEN3, replace(taps.Z_IMAGE, states=(2,)))
    together = said_by(kind, base, words, captions)
    assert together.lengths("hidden") == (10, 8, 13)
    for number, caption in enumerate(captions):
        alone = said_by(kind, base, words, [caption])["hidden"][0]
        assert torch.equal(together["hidden"][number][together.masks["hidden"][number]], alone)


@pytest.mark.parametrize("change, words_of_it", [
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.3" not in name},
     "has 3 layers, and what layer 4 says is read. Choose the whole model"),
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if "embed" not in name},
     "holds no whole language model as its text encoder"),
    (lambda tensors: {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name},
     "is not whole: layers.1.mlp.up_proj.weight is missing"),
    (lambda tensors: tensors | {"layers.2.self_attn.k_proj.weight": torch.zeros(4, 16)}, "with the shape"),
    (lambda tensors: tensors | {"layers.0.self_attn.q_norm.weight": torch.zeros(0)}, "cannot be loaded|with the shape"),
    (lambda tensors: tensors | {"norm.weight": torch.full((16,), float("nan"))}, "not numbers"),
])
def test_what_does_not_fit_is_said(change, words_of_it, qwen, tmp_path):
    base = stored(change(qwen.state_dict()), tmp_path / "x.safetensors")
    kind = LanguageModel(QWEN3, taps.Tap(states=(4,), normed=True))
    with pytest.raises(UserError, match=words_of_it):
        kind.load(base, "text_encoder", torch.float32)


def test_tokens_of_the_template_take_room(words):
    kind = LanguageModel(QWEN25_VL, taps.QWEN_IMAGE)
    assert kind.token_count(words, "a cat") == (2, 1024 - 5) and kind.token_count(words, "") == (0, 1024 - 5)
    assert LanguageModel(QWEN3, taps.ANIMA).token_count(words, "one word " * 300) == (601, 512)


def test_a_mistral_without_its_words_is_refused(qwen, tmp_path):
    base = stored({"model." + name: tensor for name, tensor in qwen.state_dict().items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="lacks the words of its language model .*mistral_3_small_flux2_bf16"):
        LanguageModel(MISTRAL, taps.FLUX2_DEV).load_tokenizer(base, "text_encoder")
    for content in (b"{", b"[]", json.dumps({"config": {"default_num_special_tokens": 1, "default_vocab_size": 9},
                                             "vocab": [{"rank": 0, "token_bytes": "!"}], "special_tokens": [{}]}).encode()):
        base = stored({"tekken_model": torch.tensor(list(content), dtype=torch.uint8)}, tmp_path / "y.safetensors")
        with pytest.raises(UserError, match="The tokenizer of 'qwen' cannot be loaded"):
            tekken_tokenizer(base, "text_encoder")


@pytest.mark.parametrize("tap, dropped", [(taps.QWEN_IMAGE, 34), (taps.KREA2, 34), (taps.QWEN_IMAGE_21, 14)])
def test_as_many_tokens_are_dropped_as_sources_say(tap, dropped, words):
    assert len(words(tap.dropped).input_ids) == dropped and tap.before.startswith(tap.dropped)


def test_layers_in_eight_bits_say_nearly_the_same(qwen, words, tmp_path):
    base = stored(qwen.state_dict(), tmp_path / "x.safetensors")
    placement = Placement.of(MemorySpec(text_precision="int8"), torch.device("cpu"), torch.float32)
    model = LAST.load(base, "text_encoder", torch.float32, placement.text_keeper)
    small = sum(each.dtype == torch.int8 for each in model.parameters())
    said = LAST.encode(TextEncoders({"te": words}, {"te": model}), "te", ["a cat on a mat"])["hidden"]
    expected = said_by(LAST, base, words, ["a cat on a mat"])["hidden"]
    assert small == 5 * LAYERS and 0 < float((said - expected).norm() / expected.norm()) < 0.02
