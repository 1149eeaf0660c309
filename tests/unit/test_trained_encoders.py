"""Large text encoders, such as T5, stay as they are unless they are asked for: what they say is encoded once and joined with
what the others learn. SDXL's second encoder stands for the large one."""
import pytest
import torch
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.caches.encoding import CaptionCache
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import UserError
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.recognition import recognize
from finetune.trainers.families.sdxl import StableDiffusionXL
from finetune.trainers.families.transformer_family import TransformerFamily
from finetune.trainers.memory.placement import Placement
from finetune.trainers.methods.full import Full
from finetune.trainers.methods.lora import Lora
from finetune.trainers.training.conditioned_model import ConditionedModel
from safetensors.torch import load_file
from support import tiny_flow
from support.running import losses_of, losses_with_a_stop
from support.tiny import make_images

RATE = 1e-3
LORA = dict(rank=2, alpha=2, text_encoder_learning_rate=RATE)


@pytest.fixture
def second_is_large(monkeypatch):
    monkeypatch.setattr(StableDiffusionXL, "large_encoders", ("te2",))


@pytest.fixture(params=tiny_flow.WITH_TEXT)
def flow(request, tmp_path):
    return recognize(str(tiny_flow.make_folder(request.param, tmp_path / "base")), request.param)


def text_layers(run, start="lora_te") -> set[str]:
    return {name.split("_")[1] for name in load_file(run.artifact) if name.startswith(start)}


def test_it_resumes_exactly_with_captions_that_change(second_is_large, tiny_bases, make_spec, tmp_path):
    """The frozen encoder is then kept, and encodes in every step what the trained one encodes."""
    dataset = scan_folder(str(make_images(tmp_path / "data")), "data")
    images = tuple(image.model_copy(update={"caption": "a, b, c, d", "variation": specs.CaptionVariationSpec(shuffle=True)})
                   for image in dataset.images)
    spec = make_spec(tiny_bases["sdxl"], dataset=dataset.model_copy(update={"images": images}),
                     method=specs.LoraSpec(**LORA))
    whole, _ = losses_of(spec)
    parts, _ = losses_with_a_stop(spec, 3, tmp_path / "other")
    assert parts == whole and len(set(whole)) == 6


def test_full_training_leaves_it_as_the_base_has_it(second_is_large, tiny_bases, make_spec):
    base = tiny_bases["sdxl"]
    _, run = losses_of(make_spec(base, method=specs.FullSpec(text_encoder_learning_rate=RATE, file_precision="fp32")))
    saved, text = load_file(run.artifact), families.get("sdxl").load_text(base, torch.float32, ["te1", "te2"])
    first, second = (encoder.get_input_embeddings().weight for encoder in text.encoders.values())
    assert torch.equal(saved["conditioner.embedders.1.model.token_embedding.weight"], second)
    [name] = [each for each in saved if each.startswith("conditioner.embedders.0.") and "token_embedding" in each]
    assert not torch.equal(saved[name], first)


def test_a_word_is_learned_by_clip_alone(second_is_large, tiny_bases, make_spec):
    method = specs.PivotalSpec(embedding=specs.TextualInversionSpec(token="square"), lora=specs.LoraSpec(**LORA))
    _, run = losses_of(make_spec(tiny_bases["sdxl"], method=method, training=specs.TrainingSpec(steps=1, resolution=64)))
    assert list(load_file(run.folder / run.report.files[1].name)) == ["clip_l"] and text_layers(run) == {"te1"}


def test_the_large_encoder_does_not_see_a_word_that_it_has_no_vectors_for(second_is_large, tiny_bases, make_spec):
    """As ComfyUI, which passes over an embedding of another width."""
    spec, family = make_spec(tiny_bases["sdxl"]), families.get("sdxl")
    placement = Placement.of(spec.memory, torch.device("cpu"), torch.float32)
    cache = CaptionCache(spec, family, placement, {"te1"}, {"zorp"})
    cache.fill(["a zorp dog", "a dog"], lambda event: None)
    word, none = cache.batch(["a zorp dog"]), cache.batch(["a dog"])
    assert word.tensors.keys() == {"te2/hidden", "te2/pooled"}
    assert all(torch.equal(word[name], none[name]) for name in word.tensors)
    assert CaptionCache(spec, family, placement, {"te1"}).key("a dog") != cache.key("a dog")


def test_what_encoders_say_is_labeled_and_comes_apart_again():
    long, short = torch.ones(1, 3, 2), torch.ones(1, 2, 2)
    said = {"te1": Conditioning({"hidden": long}), "te3": Conditioning({"hidden": long, "pooled": torch.ones(1, 4)})}
    one = Conditioning.labeled(said)
    other = Conditioning.labeled({name: Conditioning({**each.tensors, "hidden": short}) for name, each in said.items()})
    both = Conditioning.collated([one | Conditioning({"sizes": torch.ones(1, 6)}),
                                  other | Conditioning({"sizes": torch.ones(1, 6)})])
    assert both.said_by("te3").tensors.keys() == {"hidden", "pooled"} and both.said_by("te1").lengths("hidden") == (3, 2)
    assert both.unlabeled().tensors.keys() == {"sizes"} and not both.unlabeled().masks


def test_clip_learns_beside_what_t5_said_before(flow, make_spec, monkeypatch):
    """A LoRA begins as nothing: with next to no rate for text, runs differ only in where captions are encoded. LoRA files
    name CLIP-L te1, CLIP-G te2, which Flux lacks, and T5 te3."""
    loaded, load, second = [], TransformerFamily.load_text, ["te2"] * (flow.family == "sd3")

    def load_text(family, base, dtype, only, *others):
        loaded.append(list(only))
        return load(family, base, dtype, only, *others)

    monkeypatch.setattr(TransformerFamily, "load_text", load_text)
    losses = {}
    for name, fields, trained in (("none", {"text_encoder_learning_rate": 0.0}, []),
                                  ("clip", {"text_encoder_learning_rate": 1e-9}, ["te1", *second])):
        spec = make_spec(flow, name=name, method=specs.LoraSpec(**{**LORA, **fields}),
                         training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64),
                         previews=specs.PreviewSpec(prompts=("a dog",), every=2, sampler_steps=1),
                         validation=specs.ValidationSpec(fraction=0.25, every=2))
        losses[name], run = losses_of(spec)
        assert text_layers(run) == set(trained)
    assert losses["clip"] == pytest.approx(losses["none"], abs=1e-5)
    assert [sorted(names) for names in loaded] == [["te1", *second, "te3"], ["te1", *second], ["te3"]]


def test_t5_learns_where_it_is_asked_to(flow, make_spec):
    method = specs.PivotalSpec(embedding=specs.TextualInversionSpec(token="square", train_t5=True),
                               lora=specs.LoraSpec(**LORA, train_t5=True))
    spec = make_spec(flow, method=method, training=specs.TrainingSpec(steps=1, batch_size=2, resolution=64))
    _, run = losses_of(spec)
    clips, large = (["clip_g", "clip_l"], {"te2"}) if flow.family == "sd3" else (["clip_l"], set())
    assert text_layers(run) == {"te1", "te3"} | large
    assert sorted(load_file(run.folder / run.report.files[1].name)) == [*clips, "t5xxl"]


def test_captions_that_t5_reads_live_are_not_padded_to_the_longest_of_the_batch(flow):
    family = families.get(flow.family)
    text = family.load_text(flow, torch.float32)
    model = ConditionedModel(family, torch.nn.Identity(), text, family.encoder_names(flow))
    captions = ["a dog", "one word after the other " * 80]
    with torch.no_grad():
        both, alone = model.condition(captions, Conditioning()), model.condition(captions[:1], Conditioning())
    assert both.lengths("hidden")[0] == alone.lengths("hidden")[0] < both.lengths("hidden")[1]


def test_hypernetworks_are_refused_with_the_reason(flow):
    with pytest.raises(UserError, match=r"Hypernetwork cannot be trained on this base: .*cross-attention, which .* does not "
                                        r"have.*Train a LoRA instead"):
        methods.make(specs.HypernetworkSpec(), RATE, families.get(flow.family))


def test_there_is_nothing_to_train_but_what_is_left_as_it_is(tiny_bases, make_spec, monkeypatch):
    family, base = families.get("sd1"), tiny_bases["sd1"]
    for method in (Lora(specs.LoraSpec(**LORA, train_t5=True), RATE),
                   Full(specs.FullSpec(text_encoder_learning_rate=RATE, train_t5=True), RATE)):
        [note] = method.check(family, make_spec(base))
        assert note.startswith("train_t5 is not read")
    [note] = Lora(specs.LoraSpec(train_t5=True), RATE).check(family, make_spec(base))
    assert "text_encoder_learning_rate is 0" in note
    monkeypatch.setattr(type(family), "large_encoders", ("te",))
    with pytest.raises(UserError, match="no text encoder but T5, which is left as it is. Switch train_t5 on"):
        Lora(specs.LoraSpec(**LORA), RATE).check(family, make_spec(base))
    assert Lora(specs.LoraSpec(**LORA, train_t5=True), RATE).check(family, make_spec(base)) == []
