"""The family axis holds: a transformer family that is one file and one line trains, resumes, previews, saves, and its files
are recognized, extracted from and stacked."""
from pathlib import Path

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.layer_names import LayerNames, family_of_lora, place
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.lora_renaming import names_for
from finetune.trainers.events import EncodingEvent, PreviewEvent, ValidationEvent
from finetune.trainers.families.recognition import recognize
from finetune.trainers.run_folder import open_run
from finetune.trainers.spec.file_tasks import ExtractionSpec
from finetune.trainers.stacking.rows import StackRow
from finetune.trainers.tools.extraction import extract
from finetune.trainers.training.run import train_run
from PIL import Image
from safetensors.torch import load_file, save_file
from support.running import losses_of, losses_with_a_stop
from support.toy_family import TOY, make_files


@pytest.fixture
def base(tmp_path):
    families.register(TOY)
    torch.manual_seed(7)
    denoiser, *others = make_files(tmp_path / "toy")
    yield recognize(str(denoiser), "toy", others=list(map(str, others)))
    families.unregister("toy")


def toy_spec(make_spec, base, **parts):
    training = specs.TrainingSpec(steps=6, batch_size=2, resolution=64, caption_dropout=0.3)
    return make_spec(base, **{"training": training, **parts})


def test_the_file_is_short():
    file = Path(__file__).resolve().parents[1] / "support" / "toy_family.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 150


def test_parts_in_three_files_are_found(base):
    assert (base.family, base.prediction_type, base.layout, base.multiple) == ("toy", "flow", "separate_files", 8)
    places = {part.name: (Path(part.path).stem, part.prefix) for part in base.components}
    assert places == {"denoiser": ("toy_denoiser", ""), "vae": ("toy_vae", ""), "words": ("toy_text", "words."),
                      "letters": ("toy_text", "letters.")}


def test_captions_have_lengths_of_their_own(base):
    """Padding changes nothing: a caption in a batch is predicted as alone."""
    denoiser, text = TOY.load_denoiser(base, torch.float32), TOY.load_text(base, torch.float32)
    together = TOY.encode_captions(text, ["a dog", "a very long caption of a red cat"])
    assert together.lengths("words") == (4, 10) and together.lengths("letters") == (6, 24)
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([100.0, 900.0])
    both = TOY.predict(denoiser, latents, times, together)
    for number, caption in enumerate(("a dog", "a very long caption of a red cat")):
        one = slice(number, number + 1)
        alone = TOY.predict(denoiser, latents[one], times[one], TOY.encode_captions(text, [caption]))
        torch.testing.assert_close(both[one], alone)


@pytest.mark.parametrize("method", [specs.LoraSpec(rank=2, alpha=2), specs.FullSpec()], ids=["LoRA", "full"])
def test_it_trains_and_resumes_exactly(method, base, make_spec, tmp_path):
    whole, run = losses_of(toy_spec(make_spec, base, method=method))
    parts, resumed = losses_with_a_stop(toy_spec(make_spec, base, method=method), 3, tmp_path / "other")
    assert parts == whole and len(set(whole)) == 6
    one, other = load_file(run.artifact), load_file(resumed.artifact)
    assert one and all(torch.equal(one[name], other[name]) for name in one)


def test_it_previews_and_validates_and_encodes_once(base, make_spec):
    encoded, seen = [], []

    def emit(event):
        encoded.extend([event.what] if isinstance(event, EncodingEvent) else [])
        seen.extend([event] if isinstance(event, PreviewEvent | ValidationEvent) else [])

    parts = dict(previews=specs.PreviewSpec(prompts=("a dog",), every=6, sampler_steps=3), validation=specs.ValidationSpec(
        fraction=0.25, every=3))
    for name in ("one", "two"):
        spec = toy_spec(make_spec, base, name=name, **parts)
        train_run(spec, open_run(spec), emit)
        assert {type(event) for event in seen} == {PreviewEvent, ValidationEvent}
        assert Image.open([event.path for event in seen if isinstance(event, PreviewEvent)][-1]).size[0] >= 64
        assert set(encoded) == ({"images", "captions"} if name == "one" else set())
        encoded.clear()


def test_its_lora_is_recognized_and_stacked_by_its_blocks(base, make_spec):
    _, run = losses_of(toy_spec(make_spec, base))
    file = read_lora(run.artifact)
    assert family_of_lora(file.shapes(), file.metadata) == "toy"
    names = LayerNames.of_checkpoint({name: each.shape for name, each in load_file(base.path).items()})
    assert names_for([file]) is None  # they are read from the model itself
    assert {names.find(key).block for key in file.layers} == {"TOY00", "TOY01", "EXTRA"}
    assert all(names.find(layer.diffusers) == names.find(layer.native) == layer for layer in names.layers)
    assert place("diffusion_model.toy_blocks.1.qkv.weight", "toy").block == "TOY01"
    assert StackRow(lora="x", blocks="ALL0.5").blocks == "ALL0.5"


def test_a_lora_is_extracted_from_two_of_its_checkpoints(base, tmp_path):
    tensors = load_file(base.path)
    generator = torch.Generator().manual_seed(0)
    changed = "toy_blocks.1.qkv.weight"
    tensors[changed] += torch.randn(96, 1, generator=generator) @ torch.randn(1, 32, generator=generator)
    save_file(tensors, tmp_path / "tuned.safetensors")
    spec = ExtractionSpec(name="out", tuned=str(tmp_path / "tuned.safetensors"), base=base.path, rank=4, rule="fixed",
                          file_precision="fp32", folders=specs.FolderSpec(runs=str(tmp_path), caches=str(tmp_path)))
    report = extract(spec, tmp_path / "out.safetensors")
    assert report.family == "toy" and [row.block for row in report.rows] == ["TOY01"]
    found = load_file(tmp_path / "out.safetensors")
    layer = "lora_unet_toy_blocks_1_qkv"
    product = found[f"{layer}.lora_up.weight"] @ found[f"{layer}.lora_down.weight"]
    torch.testing.assert_close(product, tensors[changed] - load_file(base.path)[changed], atol=1e-4, rtol=1e-4)
