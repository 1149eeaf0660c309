"""Textual Inversion: the losses of a plain loop, an untouched vocabulary, lengths, the regularizer, and what is refused."""
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.embedding import load_embedding
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.text import clip
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.methods.textual_inversion import TextualInversion
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from safetensors.torch import load_file
from support import tiny
from support.plain_loop import latents_of, noise_of, picked
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

STEPS, BATCH, SEED, RATE = 5, 2, 11, 1e-2
START = "red dog"


def plain_losses(base, dataset, word):
    """diffusers' textual inversion example, reduced to its mathematics: the embedding is resized, the whole table trains,
    and the rows of the old vocabulary are put back after every step."""
    parts = [("tokenizer", "text_encoder", CLIPTextModel)]
    if base.family == "sdxl":
        parts.append(("tokenizer_2", "text_encoder_2", CLIPTextModelWithProjection))
    tokens, encoders = ["<new-0>", "<new-1>", "<new-2>"], []
    for tokenizer_name, name, text_class in parts:
        tokenizer = CLIPTokenizer.from_pretrained(Path(base.path) / tokenizer_name)
        encoder = text_class.from_pretrained(base.path, subfolder=name).requires_grad_(False)
        start = tokenizer(START, add_special_tokens=False).input_ids
        tokenizer.add_tokens(tokens)
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        table = encoder.get_input_embeddings().weight.requires_grad_(True)
        with torch.no_grad():
            for number in range(3):
                table[len(tokenizer) - 3 + number] = table[start[number % len(start)]]
        encoders.append((tokenizer, encoder, table, table.detach().clone()))
    unet = UNet2DConditionModel.from_pretrained(base.path, subfolder="unet").requires_grad_(False)
    scheduler = DDPMScheduler.from_pretrained(base.path, subfolder="scheduler")
    latents = latents_of(base, dataset)
    captions = [image.caption.replace(word, "".join(tokens)) for image in dataset.images]
    optimizer = torch.optim.AdamW([table for _, _, table, _ in encoders], lr=RATE, weight_decay=1e-2, eps=1e-8)
    losses = []
    for step in range(STEPS):
        chosen = picked(SEED, step, len(captions), BATCH)
        outputs = [
            encoder(tokenizer([captions[index] for index in chosen], padding="max_length", max_length=77,
                              return_tensors="pt").input_ids, output_hidden_states=True)
            for tokenizer, encoder, _, _ in encoders
        ]
        hidden, added = outputs[0].last_hidden_state, None
        if base.family == "sdxl":
            hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
            added = {"text_embeds": outputs[1].text_embeds, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * BATCH)}
        clean = latents[chosen]
        noise, timesteps = noise_of(SEED, step, BATCH, latents.shape[1:])
        prediction = unet(scheduler.add_noise(clean, noise, timesteps), timesteps, hidden, added_cond_kwargs=added).sample
        v = scheduler.config.prediction_type == "v_prediction"
        loss = F.mse_loss(prediction, scheduler.get_velocity(clean, noise, timesteps) if v else noise)
        loss.backward()
        for _, _, table, _ in encoders:  # only the new rows count for the norm of the gradient
            table.grad[:-3] = 0
        torch.nn.utils.clip_grad_norm_([table for _, _, table, _ in encoders], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for _, _, table, old in encoders:
                table[:-3] = old[:-3]
        losses.append(loss.item())
    return losses, [table[-3:].detach() for _, _, table, _ in encoders]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_losses_and_vectors_equal_plain_diffusers(family, tiny_bases, squares, make_spec):
    base = tiny_bases[family]
    spec = make_spec(
        base, method=specs.TextualInversionSpec(token="square", vectors=3, initial_text=START),
        optimizer=specs.OptimizerSpec(learning_rate=RATE),
        training=specs.TrainingSpec(steps=STEPS, batch_size=BATCH, resolution=64, seed=SEED),
    )
    ours, run = [], open_run(spec)
    train_run(spec, run, lambda event: ours.append(event.loss) if event.event == "step" else None)
    losses, vectors = plain_losses(base, squares, "square")
    assert ours == pytest.approx(losses, abs=1e-5)
    assert len(set(ours)) == STEPS
    saved = load_file(run.artifact)
    assert list(saved) == (["clip_g", "clip_l"] if family == "sdxl" else ["emb_params"])
    for key, expected in zip(("clip_l", "clip_g") if family == "sdxl" else ("emb_params",), vectors):
        assert torch.allclose(saved[key], expected, atol=1e-5), key


def attached(base, family="sd1", **fields):
    """(method, parts without a denoiser, family) with new words in the family's real, tiny text encoders."""
    family = families.get(family)
    parts = Parts(family, None, family.load_text(base, torch.float32), base)
    method = TextualInversion(specs.TextualInversionSpec(**{"token": "zorp", "vectors": 2, **fields}), 1e-2)
    groups = method.attach(parts, 0)
    return method, parts, groups


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_ordinary_captions_are_encoded_bit_for_bit_as_before(family, tiny_bases):
    base, captions = tiny_bases[family], ["a red dog", "", "a square, by night"]
    plain = families.get(family).load_text(base, torch.float32)
    before = families.get(family).encode_captions(plain, captions)
    _, parts, _ = attached(base, family)
    after = families.get(family).encode_captions(parts.text, captions)
    assert all(torch.equal(before[key], after[key]) for key in before.tensors)
    assert all(not torch.equal(tensor, families.get(family).encode_captions(parts.text, ["a zorp"] * 3)[key])
               for key, tensor in after.tensors.items())


@pytest.mark.parametrize("end", [2, 49407], ids=["configs before transformers 4.30", "configs since then"])
def test_a_word_started_from_words_means_what_they_mean(end, tiny_bases):
    """The pooled text of SDXL too, whichever way the encoder finds the end of the caption."""
    family, base = families.get("sdxl"), tiny_bases["sdxl"]
    _, parts, _ = attached(base, "sdxl", initial_text="red dog")
    for encoder in parts.text.encoders.values():
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = end
    word = family.encode_captions(parts.text, ["a photo of zorp, by night", "Zorp zorp"])
    text = family.encode_captions(parts.text, ["a photo of red dog, by night", "red dog red dog"])
    assert all(torch.equal(word[key], text[key]) for key in text.tensors)
    other = family.encode_captions(parts.text, ["a photo of zorpling, by night", "pre-zorp"])
    assert not any(torch.equal(word[key], other[key]) for key in word.tensors)


def test_words_repeat_until_all_vectors_have_a_start(tiny_bases):
    method, parts, groups = attached(tiny_bases["sd1"], vectors=5, initial_text="red dog")
    rows = parts.text.encoders["te"].get_input_embeddings().vocabulary.weight
    red, dog = rows[736], rows[1929]
    assert torch.equal(method.words["te"].vectors.detach(), torch.stack([red, dog, red, dog, red]))
    assert [group.learning_rate for group in groups] == [1e-2] and groups[0].stop_at == 1.0
    assert attached(tiny_bases["sd1"], stop_at=0.5)[2][0].stop_at == 0.5


def test_random_vectors_have_the_mean_and_spread_of_the_vocabulary(tiny_bases):
    family = families.get("sd1")
    text = family.load_text(tiny_bases["sd1"], torch.float32)
    rows = text.encoders["te"].get_input_embeddings().weight
    with torch.no_grad():
        rows.mul_(torch.linspace(0.5, 2, tiny.WIDTH)).add_(torch.linspace(-3, 3, tiny.WIDTH))
    method = TextualInversion(specs.TextualInversionSpec(token="zorp", vectors=75), 1e-2)
    method.attach(Parts(family, None, text, tiny_bases["sd1"]), 3)
    vectors = method.words["te"].vectors.detach()
    assert torch.allclose(vectors.mean(dim=0), rows.mean(dim=0), atol=5 * rows.std(dim=0).max().item() / 75**0.5)
    assert torch.allclose(vectors.std(dim=0), rows.std(dim=0), rtol=0.5)
    again = TextualInversion(specs.TextualInversionSpec(token="zorp", vectors=75), 1e-2)
    again.attach(Parts(family, None, family.load_text(tiny_bases["sd1"], torch.float32), tiny_bases["sd1"]), 4)
    assert not torch.equal(vectors, again.words["te"].vectors)


@pytest.mark.parametrize("norm", ["free", "limited", "fixed"])
def test_lengths_after_a_step(norm, tiny_bases):
    method, _parts, _ = attached(tiny_bases["sdxl"], "sdxl", vectors=3, norm=norm)
    for words in method.words.values():
        ordinary = words.vocabulary.weight[:49406].norm(dim=1)
        with torch.no_grad():
            words.vectors[0].mul_(50)
            words.vectors[1].mul_(0.01)
        before = words.vectors.detach().clone()
        method.after_step(1)
        lengths = words.vectors.detach().norm(dim=1)
        if norm == "free":
            assert torch.equal(words.vectors, before)
        elif norm == "limited":
            assert lengths[0].item() == pytest.approx(ordinary.max().item(), rel=1e-4)
            assert torch.equal(words.vectors[1:], before[1:])
        else:
            assert torch.allclose(lengths, ordinary.mean().expand(3), rtol=1e-4)
        assert torch.allclose(F.cosine_similarity(words.vectors, before), torch.ones(3))
        held = words.vectors.detach().clone()
        method.after_step(2)
        assert torch.equal(words.vectors, held)  # what no longer trains keeps its bits


def test_the_cosine_term(tiny_bases):
    method, _, _ = attached(tiny_bases["sd1"], cosine_weight=2.0, initial_text="red dog")
    words = method.words["te"]
    assert method.regularizer().item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        words.vectors[0].mul_(-3)
    assert method.regularizer().item() == pytest.approx(2.0 * (2 + 0) / 2, abs=1e-5)
    assert attached(tiny_bases["sd1"])[0].regularizer() is None


def test_the_cosine_term_holds_the_word_near_its_start(tiny_bases, make_spec):
    moved = []
    for weight in (0.0, 10.0):
        spec = make_spec(tiny_bases["sd1"], name=f"weight{weight:g}", method=specs.TextualInversionSpec(
            token="square", initial_text="red", cosine_weight=weight))
        run = open_run(spec)
        train_run(spec, run, silent)
        moved.append(run.report.change_norm)
    assert 0 < moved[1] < 0.7 * moved[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_vectors_are_float32_over_any_base_and_others_stay(precision, tiny_bases, make_spec, monkeypatch):
    attach, kept = TextualInversion.attach, []

    def remember(self, parts, seed):
        kept.append(parts)
        return attach(self, parts, seed)

    monkeypatch.setattr(TextualInversion, "attach", remember)
    spec = make_spec(tiny_bases["sd1"], method=specs.TextualInversionSpec(token="square"),
                     memory=specs.MemorySpec(precision=precision, gradient_checkpointing=True))
    train_run(spec, open_run(spec), silent)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    words = kept[0].text.encoders["te"].get_input_embeddings()
    assert words.vectors.dtype == torch.float32 and words.vocabulary.weight.dtype == dtype
    fresh = families.get("sd1").load_text(tiny_bases["sd1"], dtype).encoders["te"].get_input_embeddings().weight
    assert torch.equal(words.vocabulary.weight, fresh)
    assert not torch.equal(words.vectors, words.start)


def test_previews_show_the_word(tiny_bases, make_spec):
    """Drawn with the vectors as they are: only the prompt with the word changes."""
    from PIL import Image

    spec = make_spec(tiny_bases["sd1"], method=specs.TextualInversionSpec(token="square"),
                     optimizer=specs.OptimizerSpec(learning_rate=0.1),
                     previews=specs.PreviewSpec(prompts=("a square", "a dog"), every=6, sampler_steps=2, guidance=5))
    run = open_run(spec)
    train_run(spec, run, silent)
    first, last = (np.asarray(Image.open(run.folder / "previews" / f"step_{step:06d}.png").convert("RGB"))
                   for step in (0, 6))
    changed, height = (first != last).any(axis=(1, 2)), len(first)  # one row of images for each prompt, below the title
    assert changed[height // 3:height // 2].any() and not changed[3 * height // 5:].any()


# ---- before the start ----------------------------------------------------------------------------------------------

def notes_of(base, make_spec, dataset=None, previews=None, **fields) -> list[str]:
    spec = make_spec(base, method=specs.TextualInversionSpec(**fields), **({"dataset": dataset} if dataset else {}),
                     **({"previews": previews} if previews else {}))
    method = TextualInversion(spec.method, 1e-3)
    return method.check(families.get("sd1"), spec)


def captioned(dataset, *captions, trigger=""):
    images = [image.model_copy(update={"caption": caption})
              for image, caption in zip(itertools.cycle(dataset.images), captions)]
    return dataset.model_copy(update={"images": tuple(images), "trigger": trigger})


def test_the_word_comes_from_the_dataset_when_the_spec_has_none(tiny_bases, make_spec, squares):
    with pytest.raises(UserError, match="token is empty, and the dataset has no trigger"):
        notes_of(tiny_bases["sd1"], make_spec)
    assert notes_of(tiny_bases["sd1"], make_spec, captioned(squares, "zorp, a", trigger="zorp")) == []
    with pytest.raises(UserError, match="No caption contains the word 'zorp'.*one of them is 'a square, number 0'"):
        notes_of(tiny_bases["sd1"], make_spec, token="zorp")


def test_notes_about_captions_and_words(tiny_bases, make_spec, squares):
    base = tiny_bases["sd1"]
    [note] = notes_of(base, make_spec, captioned(squares, "a Zorp", "zorp-like", "zorps"), token="zorp")
    assert note.startswith("2 of 3 captions do not contain 'zorp', for example that of square_1.png")
    [note] = notes_of(base, make_spec, token="square")
    assert "'square' is a common word" in note
    assert notes_of(base, make_spec, captioned(squares, "sks", "an ohwx"), token="ohwx") == [
        "1 of 2 captions does not contain 'ohwx', for example that of square_0.png; such images teach it nothing"]
    [note] = notes_of(base, make_spec, captioned(squares, "zorp"), token="zorp", vectors=2, initial_text="a very red dog")
    assert "initial text has 4 tokens, of which the first 2" in note
    previews = specs.PreviewSpec(prompts=("a cat",), every=1)
    [note] = notes_of(base, make_spec, captioned(squares, "zorp"), previews=previews, token="zorp")
    assert "no preview prompt contains 'zorp'" in note


def test_vectors_need_room_in_the_captions(tiny_bases, make_spec, squares):
    base, long = tiny_bases["sd1"], "zorp" + " dog" * 70
    assert notes_of(base, make_spec, captioned(squares, long), token="zorp", vectors=5) == []
    [note] = notes_of(base, make_spec, captioned(squares, long, "a zorp"), token="zorp", vectors=6)
    assert note.startswith("with 6 vectors, 1 caption is longer than the 75 tokens") and "(76 tokens)" in note
    with pytest.raises(UserError, match="vectors is 6, for which no caption has room"):
        notes_of(base, make_spec, captioned(squares, "dog " * 70 + "zorp"), token="zorp", vectors=6)
    with pytest.raises(UserError, match="vectors is 75, for which no caption has room"):
        notes_of(base, make_spec, captioned(squares, "zorp, a dog"), token="zorp", vectors=75)
    [note] = notes_of(base, make_spec, captioned(squares, "zorp" + " dog" * 90), token="zorp", vectors=75)
    assert "(165 tokens)" in note  # cut in any case, and the word itself is whole


def test_a_name_that_no_prompt_can_call_is_refused(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], name="my word", method=specs.TextualInversionSpec(token="square"))
    with pytest.raises(UserError, match="Write 'my_word'"):
        train_run(spec, open_run(spec), silent)


def test_aliases_are_whole_words(tiny_bases):
    _, parts, _ = attached(tiny_bases["sd1"], token="my-word")
    first = parts.text.encoders["te"].get_input_embeddings().first
    ids = clip.tokenize(parts.text, "te", ["a My-Word, red", "a my-word-two", "my-wordy", "白いmy-word猫"])
    assert ids[0, 1:6].tolist() == [320, first, first + 1, 267, 736]
    assert (ids[1:3] < first).all() and ids[3].tolist().count(first) == 1


def test_the_file_says_what_it_is_and_no_paths(tiny_bases, make_spec, tmp_path):
    spec = make_spec(tiny_bases["sdxl"], method=specs.TextualInversionSpec(token="square", vectors=2, file_precision="fp16"))
    run = open_run(spec)
    train_run(spec, run, silent)
    embedding = load_embedding(run.artifact)
    assert (embedding.trigger, embedding.base, embedding.vectors) == ("square", "tiny sdxl", 2)
    assert embedding.family == "Stable Diffusion XL"
    assert embedding.metadata["ss_steps"] == "6" and str(tmp_path) not in str(embedding.metadata)
    assert embedding.metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/textual-inversion"
    assert {tensor.dtype for tensor in load_file(run.artifact).values()} == {torch.float16}
