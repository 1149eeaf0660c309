"""Settings that only some flow models read: guidance, the length of captions, usual previews; and notes of a base."""
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.caches.encoding import CaptionCache
from finetune.trainers.errors import UserError
from finetune.trainers.events import StepEvent
from finetune.trainers.families import flux2
from finetune.trainers.families.protocol import UsualSampling
from finetune.trainers.families.recognition import recognize
from finetune.trainers.families.samplers import FlowSampler
from finetune.trainers.families.variants import Released, Variant
from finetune.trainers.memory.placement import Placement
from finetune.trainers.objectives.noise import FamilyShift, unshifted
from finetune.trainers.objectives.objective import chosen_shift
from finetune.trainers.run_folder import open_run
from finetune.trainers.sampling.class_images import open_folder
from finetune.trainers.spec.class_images import ClassImagesSpec
from finetune.trainers.training.preparation import length_notes
from finetune.trainers.training.run import train_run
from safetensors import safe_open
from safetensors.torch import save_file
from support import tiny_flow
from support.toy_family import Toy, make_files


class Guided(Toy):
    """The toy family with distilled guidance and captions of any length; it writes down what it is told."""

    def __init__(self):
        self.told, self.lengths = [], set()

    def sampler(self, base, zero_terminal_snr=False):
        return FlowSampler(self.timestep_shift(base), "distilled")

    def usual_sampling(self, base):
        return UsualSampling(guidance=3.5, steps=3)

    def base_notes(self, base):
        return ["the toy is distilled from another"]

    def reads_text_length(self, base):
        return True

    def encode_with(self, text, encoder, captions):
        self.lengths.add(text.text_length)
        return super().encode_with(text, encoder, captions)

    def predict(self, denoiser, latents, timesteps, conditioning):
        self.told.append((torch.is_grad_enabled(), conditioning["guidance"].tolist()))
        return super().predict(denoiser, latents, timesteps, conditioning)


@pytest.fixture
def guided(tmp_path):
    family = Guided()
    families.register(family)
    torch.manual_seed(7)
    denoiser, *others = make_files(tmp_path / "toy")
    yield family, recognize(str(denoiser), "toy", others=list(map(str, others)))
    families.unregister("toy")


def flow_spec(make_spec, base, **parts):
    training = specs.TrainingSpec(**{"steps": 2, "batch_size": 2, "resolution": 64, **parts.pop("training", {})})
    return make_spec(base, training=training, **parts)


def train(spec):
    losses = []
    train_run(spec, open_run(spec), lambda event: losses.append(event.loss) if isinstance(event, StepEvent) else None)
    return losses, open_run(spec).report.notes


@pytest.mark.parametrize("training, previews, told, drawn, steps", [
    ({}, {}, 1.0, 3.5, 3), ({"guidance": 4.0}, {"guidance": 7.0, "sampler_steps": 2}, 4.0, 7.0, 2)])
def test_guidance_is_told_to_training_and_validation_and_previews_have_their_own(
        training, previews, told, drawn, steps, guided, make_spec):
    family, base = guided
    train(flow_spec(make_spec, base, training=training, validation=specs.ValidationSpec(fraction=0.25, every=2),
                    previews=specs.PreviewSpec(prompts=("a dog",), every=2, **previews)))
    assert [strengths for trains, strengths in family.told if trains] == [[told] * 2] * 2
    watched = [tuple(strengths) for trains, strengths in family.told if not trains]
    assert watched.count((drawn,)) == 2 * steps  # before the first step and after the last
    assert watched.count((told,) * 4) == 2 and len(watched) == 2 * steps + 2


def test_notes_of_a_base_and_no_other_reach_the_report(guided, make_spec):
    spec = flow_spec(make_spec, guided[1], training={"guidance": 2.0, "text_length": 256, "steps": 1})
    _, notes = train(spec)
    with safe_open(open_run(spec).artifact, "pt") as file:
        told = file.metadata()
    assert (told["ss_guidance_scale"], told["ss_t5xxl_max_token_length"]) == ("2.0", "256")
    assert told["ss_weighting_scheme"] == "none" and "ss_discrete_flow_shift" not in told
    assert "the toy is distilled from another" in notes
    assert not any("is not read" in note for note in notes)


def test_schnell_is_told_no_guidance_and_says_what_it_is(tmp_path, make_spec):
    """The same file as dev's but for the layers that read guidance."""
    folder = tiny_flow.make_folder("flux", tmp_path / "dev")
    weights = tiny_flow.single_file_weights("flux", folder)
    save_file({name: tensor for name, tensor in weights.items() if ".guidance_in." not in name}, tmp_path / "x.safetensors")
    base, dev = (recognize(str(path), "model", configs=str(folder)) for path in (tmp_path / "x.safetensors", folder))
    family = families.get("flux")
    assert (family.sampler(base).guidance, family.usual_sampling(base).steps) == ("none", 4)
    assert (family.sampler(dev).guidance, family.usual_sampling(dev).guidance) == ("distilled", 3.5)
    assert [family.noise_shift(each).shift(128, 128) for each in (base, dev)] == pytest.approx([1, math.exp(1.15)])
    _, notes = train(flow_spec(make_spec, base, training={"guidance": 2.0, "clip_skip": 2, "steps": 1}))
    assert any("distilled to make images in 4 steps" in note for note in notes) and family.base_notes(dev) == []
    assert [family.base_title(each) for each in (base, dev)] == ["FLUX.1 schnell", "FLUX.1 dev"]
    assert sum(note.startswith(("training_guidance is not read", "clip_skip is not read")) for note in notes) == 2


class OfOneShape(Released):
    """Released models that no header tells apart, the distilled one named so; and one that its header does tell."""

    title = "Toy"
    variants = (Variant("Toy 2", fits=lambda shapes: "two" in shapes),
                Variant("Toy Turbo", "turbo|lightning-[48]", fits=lambda shapes: "two" not in shapes, guidance="none",
                        sampling=UsualSampling(steps=8), distilled=True, instead="Toy Base", assistant="somebody has one"),
                Variant("Toy Base", fits=lambda shapes: "two" not in shapes))

    def native_shapes(self, base):
        return {"two": (1,)} if base.family == "two" else {}


@pytest.mark.parametrize("name, said, title", [
    ("toy_turbo.bf16.safetensors", "", "Toy Turbo (by its name)"), ("Toy-LIGHTNING 4.sft", "", "Toy Turbo (by its name)"),
    ("toys/mine.safetensors", "", "Toy Base (by its name)"), ("toy_turbo.safetensors", "base", "Toy Base"),
    ("mine.safetensors", "distilled", "Toy Turbo")])
def test_what_a_header_does_not_tell_is_guessed_from_the_name_unless_somebody_says_it(name, said, title):
    family, base = OfOneShape(), specs.BaseModelSpec(
        family="one", path="x", name=name, layout="single_file", prediction_type="flow", fingerprint="x", variant=said)
    assert family.base_title(base) == title and family.base_title(base.model_copy(update={"family": "two"})) == "Toy 2"
    turbo = "Turbo" in title
    assert (family.guidance(base), family.usual_sampling(base).steps) == (("none", 8) if turbo else ("classifier-free", 20))
    assert family.base_notes(base) == ([
        "Toy Turbo was distilled to make images in 8 steps, and training undoes that bit by bit: images become soft or "
        "noisy. Train on Toy Base, put an assistant LoRA on it (the node Assistant LoRA; somebody has one), which is on "
        "while training, off in previews and not in the result, or keep the run short"] if turbo else [])


def test_models_without_these_inputs_say_so(tiny_bases, make_spec):
    _, notes = train(flow_spec(make_spec, tiny_bases["sd1"], training={"guidance": 2.0, "text_length": 256, "steps": 1}))
    assert sum("is not read" in note for note in notes) == 2
    assert any(note.startswith("training_guidance is not read") for note in notes)
    assert any(note.startswith("text_length is not read") for note in notes)


def test_the_length_of_captions_reaches_the_encoders_and_their_cache(guided, make_spec):
    family, base = guided
    keys = []
    for length in (0, 256):
        spec = flow_spec(make_spec, base, training={"text_length": length}, name=f"run {length}")
        train(spec)
        assert family.lengths == {length}
        family.lengths.clear()
        keys.append(CaptionCache(spec, family, Placement.of(spec.memory, torch.device("cpu"), torch.float32)).key("a dog"))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("length, words", [
    (0, "are longer than the 60 tokens that the model was made for, and read whole, as by ComfyUI"),
    (77, "are longer than the 76 tokens that the text encoder takes, and cut"), (154, None)])
def test_long_captions_are_read_whole_unless_a_length_cuts_them(length, words, guided, make_spec, squares, monkeypatch):
    family, base = guided
    monkeypatch.setattr(Guided, "token_count", lambda family, tokenizers, caption: (len(caption.split()), 60))
    images = tuple(image.model_copy(update={"caption": "word " * 100}) for image in squares.images)
    spec = flow_spec(make_spec, base, dataset=squares.model_copy(update={"images": images}),
                     training={"text_length": length})
    assert [words in note for note in length_notes(family, {}, spec)] == ([True] if words else [])


def test_lengths_of_captions_are_a_closed_list():
    assert specs.TrainingSpec(text_length="auto").text_length == specs.TrainingSpec().text_length == 0
    assert specs.TrainingSpec(text_length="154").text_length == specs.TrainingSpec(text_length=154).text_length == 154
    with pytest.raises(UserError, match="text_length is '100'; choose auto or one of 77, 154, 256, 512"):
        specs.checked(specs.TrainingSpec, text_length="100")


def test_what_is_usual_is_the_same_run_as_before_there_was_a_choice(guided, tiny_bases, make_spec):
    """0 means 20 steps and guidance 7 for the older families, and something else for others."""
    prompts = {"prompts": ("a dog",), "every": 2}
    written = specs.PreviewSpec(**prompts, sampler_steps=20, guidance=7.0)
    others = specs.PreviewSpec(**prompts, sampler_steps=21, guidance=7.0)
    for base, same in ((tiny_bases["sd1"], True), (guided[1], False)):
        identity = flow_spec(make_spec, base, previews=specs.PreviewSpec(**prompts)).identity
        assert (identity == flow_spec(make_spec, base, previews=written).identity) == same
        assert identity != flow_spec(make_spec, base, previews=others).identity


def test_class_images_of_0_are_those_of_what_is_usual(guided, tiny_bases, tmp_path):
    folders = specs.FolderSpec(runs=str(tmp_path), caches=str(tmp_path))

    def folder(base, **controls):
        return open_folder(ClassImagesSpec(base=base, prompt="a dog", resolution=64, folders=folders, **controls)).folder

    assert folder(tiny_bases["sd1"]) == folder(tiny_bases["sd1"], sampler_steps=20, guidance=7.0)
    assert folder(guided[1]) == folder(guided[1], sampler_steps=3, guidance=3.5) != folder(guided[1], guidance=7.0)


QWEN = math.exp(0.5 + 0.4 * 3840 / 7936), math.exp(0.5 + 0.4 * 768 / 7936)
"""0.5 at 256 tokens, 0.9 at 8192."""


@pytest.mark.parametrize("name, at_1024, at_512, dynamic", [
    ("flux", math.exp(1.15), math.exp(0.5 + 0.65 * 768 / 3840), math.exp(1.15)), ("sd3", 3, 3, math.exp(1.15)),
    ("qwen_image", *QWEN, QWEN[0]), ("qwen_image_21", *QWEN, QWEN[0])])
def test_the_families_shift_as_their_samplers_do(name, at_1024, at_512, dynamic, tiny_bases):
    """1024 pixels are 64 tokens a side: 128 latents in patches of two, or 64 larger ones."""
    family, base = families.get(name), tiny_bases[name]
    shift, latents = family.noise_shift(base), 1024 // family.latent_format(base).downscale
    found = [chosen_shift(specs.ObjectiveSpec(), shift, side, side) for side in (latents, latents // 2)]
    assert found == pytest.approx([at_1024, at_512]) and latents // shift.patch == 64
    settings = specs.ObjectiveSpec(flow_shift_mode="dynamic")
    assert chosen_shift(settings, shift, latents, latents) == pytest.approx(dynamic)


def test_the_shift_of_a_family_knows_the_size_of_its_latents(guided):
    """64 pixels are 16 latents of 4 pixels; images are multiples of 8, because patches take two latents."""
    family, base = guided
    shift = family.noise_shift(base)
    assert replace(shift, shift=unshifted) == FamilyShift(side=16, patch=2) and shift.shift(16, 16) == 1


@pytest.mark.parametrize("family", ["flux2", "flux3"])
def test_flux_2_and_3_train_with_flux_1s_shift_and_sample_with_their_own(family, tiny_bases):
    """Their latents are tokens: 1024 pixels are 64 a side."""
    kind, base = families.get(family), tiny_bases[family]
    shift = kind.noise_shift(base)
    assert shift.patch == 1 and chosen_shift(specs.ObjectiveSpec(), shift, 64, 64) == pytest.approx(math.exp(1.15))
    assert flux2.empirical_mu(4096, 50) == pytest.approx(2.02, abs=5e-3)  # ComfyUI's, for all sizes and steps
    for tokens in (16, 4096, 4300, 4301, 16384):
        assert all(flux2.empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps))
                   for steps in (4, 20, 50, 200))
    sampler = kind.sampler(base)
    assert sampler.guidance == "classifier-free" and (family == "flux2" or sampler.shift(64, 64) == 6.93)


@pytest.mark.parametrize("name, width, dev, title", [
    ("flux-2-klein-4b-fp8.safetensors", 3072, False, "FLUX.2 klein 4B (by its name)"),
    ("FLUX.2-klein-9B", 4096, False, "FLUX.2 klein 9B (by its name)"),
    ("flux-2-klein-9b-kv.safetensors", 4096, False, "FLUX.2 klein 9B (by its name)"),
    ("flux-2-klein-base-4b.safetensors", 3072, False, "FLUX.2 klein base 4B (by its name)"),
    ("models/mine.safetensors", 4096, False, "FLUX.2 klein base 9B (by its name)"),
    ("flux2_dev_fp8mixed.safetensors", 6144, True, "FLUX.2 dev")])
def test_flux_2_is_distilled_by_its_name_alone(name, width, dev, title, monkeypatch):
    shapes = {"img_in.weight": (width, 128), **({"guidance_in.in_layer.weight": (width, 256)} if dev else {})}
    monkeypatch.setattr(flux2.Flux2, "native_shapes", lambda kind, base: shapes)
    kind, base = families.get("flux2"), specs.BaseModelSpec(
        family="flux2", path="x", name=name, layout="separate_files", prediction_type="flow", fingerprint="x")
    assert kind.base_title(base) == title
    distilled = not dev and "base" not in title
    assert kind.guidance(base) == ("distilled" if dev else "none" if distilled else "classifier-free")
    instead = title.replace("klein", "klein base").removesuffix(" (by its name)")
    assert [f"Train on {instead}, whose" in note for note in kind.base_notes(base)] == [True] * distilled


@pytest.mark.parametrize("name, title, steps, mu, note", [
    ("krea2_turbo_int8_convrot.safetensors", "Turbo", 8, (1.15, 1.15), "Train on Krea 2 Raw, whose LoRAs are made"),
    ("Krea-2-Raw", "Raw", 28, (0.5, 1.15), "is made to be trained"),
    ("raw.safetensors", "Raw", 28, (0.5, 1.15), "on Krea 2 Turbo")])
def test_krea_2_is_trained_raw_with_the_shift_of_its_scheduler(name, title, steps, mu, note, tiny_bases):
    """At 256 and at 6400 tokens."""
    kind, base = families.get("krea2"), tiny_bases["krea2"].model_copy(update={"name": name})
    shift = kind.noise_shift(base).shift
    assert (kind.base_title(base), kind.usual_sampling(base).steps) == (f"Krea 2 {title} (by its name)", steps)
    assert [shift(32, 32), shift(160, 160)] == pytest.approx([math.exp(each) for each in mu])
    assert [note in each for each in kind.base_notes(base)] == [True]


def test_a_distilled_flux_3_is_refused_whatever_it_lies_in(tiny_bases, tmp_path):
    folder = Path(shutil.copytree(tiny_bases["flux3"].path, tmp_path / "folder"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "flow_map": True}))
    marks = "content_mode_blocks.image.0.q_proj.weight", "ref_time_in.in_layer.weight"
    save_file({mark: torch.ones(2, 2) for mark in marks}, tmp_path / "file.safetensors")
    for path in (folder, tmp_path / "file.safetensors"):
        with pytest.raises(UserError, match="'x' is a distilled FLUX 3 Image Klein, .* that is not distilled"):
            recognize(str(path), "x")
