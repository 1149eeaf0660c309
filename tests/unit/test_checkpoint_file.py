"""The checkpoint that full fine-tuning ends in: layout, exactness, precision, metadata, shards."""
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.artifacts.tensor_files import entry_of, read_entries, read_header, write_entries
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.recognition import recognize
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import Training, train_run
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from support import tiny
from transformers import CLIPTextModel, CLIPTextModelWithProjection

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parts_of(base, text=False) -> Parts:
    family = families.get(base.family)
    return Parts(family, family.load_denoiser(base, torch.float32),
                 family.load_text(base, torch.float32) if text else None, base)


def saved(parts: Parts, folder: Path, **fields) -> dict:
    spec = specs.FullSpec(text_encoder_learning_rate=1e-4 if parts.text else 0.0, **fields)
    return methods.make(spec, 1e-4, parts.family).save(parts, folder, "tuned", {"modelspec.title": "tuned"})


def expected_weights(base) -> dict:
    """The base by diffusers and transformers, renamed as the tests' own single files are."""
    second = CLIPTextModelWithProjection.from_pretrained(base.path, subfolder="text_encoder_2") \
        if base.family == "sdxl" else None
    return tiny.single_file_weights(
        base.family, UNet2DConditionModel.from_pretrained(base.path, subfolder="unet"),
        AutoencoderKL.from_pretrained(base.path, subfolder="vae"),
        CLIPTextModel.from_pretrained(base.path, subfolder="text_encoder"), second)


def single_file(base, path: Path, dtype=torch.float32, **extra):
    """A single file with tensors that belong to no module, as real ones have them; recognized."""
    weights = load_file(tiny.make_single_file(base.family, base.path, path, dtype))
    save_file({**weights, **extra}, path)
    return recognize(str(path), "model", base.prediction_type, configs=base.path)


@pytest.mark.parametrize("precision, text", [("fp32", False), ("fp16", True), ("bf16", True)])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_untouched_single_file_comes_back_exactly(family, precision, text, tiny_bases, tmp_path):
    dtype = DTYPES[precision]
    markers = {"cond_stage_model.logit_scale": torch.tensor(4.6, dtype=dtype), "betas": torch.linspace(0, 1, 7),
               "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    base = single_file(tiny_bases[family], tmp_path / "base.safetensors", dtype, **markers)
    report = saved(parts_of(base, text), tmp_path, file_precision=precision)
    before, after = load_file(base.path), load_file(tmp_path / "tuned.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    assert report.change_norm == report.relative_change == 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_becomes_a_single_file(family, tiny_bases, tmp_path):
    base = tiny_bases[family]
    report = saved(parts_of(base), tmp_path, file_precision="fp32")
    expected, found = expected_weights(base), load_file(tmp_path / "tuned.safetensors")
    added = {name for name in found.keys() - expected.keys()}
    assert expected.keys() <= found.keys() and all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    # SD 2.x: the layer that diffusers leaves out; its outputs are zero, so that it hands on what it gets.
    assert {name.split(".resblocks.")[1][:2] for name in added} == ({"2."} if family == "sd2" else set())
    assert report.keys == len(found) and report.change_norm == 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_our_own_loader_reads_identical_modules(family, tiny_bases, tmp_path):
    base = tiny_bases[family]
    parts = parts_of(base, text=True)
    with torch.no_grad():
        for parameter in [*parts.denoiser.parameters(), *parts.text.parameters()]:
            parameter.add_(0.01)
    report = saved(parts, tmp_path, file_precision="fp32")
    again = recognize(str(tmp_path / "tuned.safetensors"), "tuned", configs=base.path)
    assert (again.family, again.prediction_type) == (base.family, "epsilon" if family == "sd2" else base.prediction_type)
    read = parts_of(again, text=True)
    for one, other in ((parts.denoiser, read.denoiser), (parts.text, read.text),
                       (parts.family.load_vae(base), parts.family.load_vae(again))):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    count = sum(p.numel() for p in [*parts.denoiser.parameters(), *parts.text.parameters()])
    assert report.change_norm == pytest.approx(0.01 * count**0.5, rel=1e-3)


def test_the_idle_layer_changes_nothing(tiny_bases, tmp_path):
    """Read with one more layer, the file gives at the last but one what the folder gives at the last."""
    from transformers import CLIPTextConfig

    base = tiny_bases["sd2"]
    saved(parts_of(base), tmp_path, file_precision="fp32")
    weights = {name.removeprefix("cond_stage_model.model."): tensor for name, tensor
               in load_file(tmp_path / "tuned.safetensors").items() if name.startswith("cond_stage_model.model.")}
    from finetune.trainers.artifacts.ldm_layout import transformers_clip_tensors

    longer = CLIPTextModel(CLIPTextConfig(**{**tiny.text_config(activation="gelu").to_dict(), "num_hidden_layers": 3}))
    read = {name.removeprefix("text_model."): each for name, each in transformers_clip_tensors(weights, 3).items()}
    wanted = {name.removeprefix("text_model."): name for name in longer.state_dict()}
    longer.load_state_dict({wanted[name]: each for name, each in read.items()})
    folder, ids = CLIPTextModel.from_pretrained(base.path, subfolder="text_encoder"), torch.tensor([[49406, 320, 49407]])
    states = longer(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[-1], states[-2], rtol=0, atol=0)
    torch.testing.assert_close(states[-2], folder(ids, output_hidden_states=True).hidden_states[-1])


def test_training_text_from_an_older_single_file(tiny_bases, tmp_path):
    """Files of before 2023 lack `text_model.`: what is trained takes the place of the base's tensors, not one beside it."""
    base = single_file(tiny_bases["sd1"], tmp_path / "base.safetensors")
    old = {name.replace("text_model.", ""): tensor for name, tensor in load_file(base.path).items()}
    save_file(old, tmp_path / "base.safetensors")
    parts = parts_of(base, text=True)
    with torch.no_grad():
        next(parts.text.parameters()).add_(1)
    report = saved(parts, tmp_path, file_precision="fp32")
    found = load_file(tmp_path / "tuned.safetensors")
    name = "cond_stage_model.transformer.embeddings.token_embedding.weight"
    assert found.keys() == old.keys() and torch.equal(found[name], old[name] + 1) and report.change_norm > 0


def test_an_old_running_mean_is_left_out(tiny_bases, tmp_path):
    base = single_file(tiny_bases["sd1"], tmp_path / "base.safetensors", **{"model_ema.out": torch.ones(2)})
    saved(parts_of(base), tmp_path)
    assert "model_ema.out" not in load_file(tmp_path / "tuned.safetensors")


def test_another_precision_converts_weights_and_nothing_else(tiny_bases, tmp_path):
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    extra = {ids: torch.arange(77)[None], "alphas_cumprod": torch.linspace(0, 1, 5)}
    base = single_file(tiny_bases["sd1"], tmp_path / "base.safetensors", **extra)
    saved(parts_of(base), tmp_path, file_precision="bf16")
    found = load_file(tmp_path / "tuned.safetensors")
    assert found.pop(ids).dtype == torch.int64 and found.pop("alphas_cumprod").dtype == torch.float32
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


@pytest.mark.parametrize("layout", ["folder", "single_file"])
def test_v_prediction_is_marked_for_sdxl(layout, tiny_bases, tmp_path):
    base = tiny_bases["sdxl"]
    if layout == "single_file":
        base = single_file(base, tmp_path / "base.safetensors")
    base = base.model_copy(update={"prediction_type": "v_prediction"})
    method = methods.make(specs.FullSpec(), 1e-4, families.get("sdxl"))
    method.zero_terminal = True
    assert method.save(parts_of(base), tmp_path, "tuned", {}).notes == ()
    found = load_file(tmp_path / "tuned.safetensors")
    assert found["v_pred"].numel() == found["ztsnr"].numel() == 0
    again = recognize(str(tmp_path / "tuned.safetensors"), "tuned", configs=tiny_bases["sdxl"].path)
    assert again.prediction_type == "v_prediction"
    said_otherwise = again.model_copy(update={"prediction_type": "epsilon"})
    saved(parts_of(said_otherwise), tmp_path)
    assert "v_pred" not in load_file(tmp_path / "tuned.safetensors")


def test_where_v_prediction_cannot_be_marked_a_note_says_so(tiny_bases, make_spec, tmp_path):
    report = train_run(spec := make_spec(tiny_bases["sd2"], method=specs.FullSpec()), run := open_run(spec), silent)
    assert any("ModelSamplingDiscrete with v_prediction" in note for note in report.notes)
    again = recognize(str(run.artifact), "run", configs=tiny_bases["sd2"].path)
    assert again.prediction_type == "v_prediction"  # ours read it from the metadata
    assert saved(parts_of(tiny_bases["sd1"]), tmp_path).notes == ()


@pytest.mark.parametrize("spread, prediction_type, note", [
    (0.12, "v_prediction", None), (0.05, "epsilon", None),
    (0.05, "v_prediction", "predicts eps, .*with v_prediction behind"),
    (0.12, "epsilon", "predicts v_prediction, .*with eps behind"),
])
def test_the_hosts_rule_for_sd2(spread, prediction_type, note, tiny_bases):
    """ComfyUI 0.3.75, supported_models.py: standard deviation of this bias above 0.09 means v-prediction."""
    bias = torch.tensor([spread, -spread])
    denoiser = SimpleNamespace(named_parameters=lambda: [("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias", bias)])
    base = tiny_bases["sd2"].model_copy(update={"prediction_type": prediction_type})
    said = families.get("sd2").prediction_note(base, denoiser)
    assert (said is None) if note is None else re.search(note, said)



def test_values_that_do_not_fit_the_precision_are_refused(tiny_bases, tmp_path):
    parts = parts_of(tiny_bases["sd1"])
    with torch.no_grad():
        parts.denoiser.conv_out.bias.fill_(1e6)
    with pytest.raises(UserError, match="out.2.bias holds values that are not numbers in fp16"):
        saved(parts, tmp_path)
    assert not list(tmp_path.iterdir())
    saved(parts, tmp_path, file_precision="bf16")


def test_a_change_smaller_than_the_precision_is_no_change(tiny_bases, tmp_path):
    parts = parts_of(single_file(tiny_bases["sd1"], tmp_path / "base.safetensors"))
    with torch.no_grad():
        parts.denoiser.conv_norm_out.weight.add_(1e-5)  # ones: the next number of fp16 is 1.001
    assert saved(parts, tmp_path, file_precision="fp16").change_norm == 0
    assert saved(parts, tmp_path, file_precision="fp32").change_norm > 0


def test_metadata(tiny_bases, make_spec, tmp_path):
    run = open_run(spec := make_spec(tiny_bases["sdxl"], method=specs.FullSpec()))
    report = train_run(spec, run, silent)
    with safe_open(run.artifact, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert metadata["modelspec.prediction_type"] == "epsilon" and metadata["modelspec.title"] == "run"
    assert "/tmp" not in json.dumps(metadata) and str(tmp_path) not in json.dumps(metadata)
    # The hash is over the tensors in the order of the format's own library, as kohya's is.
    raw = save(load_file(run.artifact))
    assert metadata["sshs_model_hash"] == hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little"):]).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    assert report.change_norm > 0 and report.files[0].kind == "checkpoint"
    assert report.files[0].bytes == report.bytes == run.artifact.stat().st_size


def test_shards(tiny_bases, tmp_path):
    base = tiny_bases["sd1"]
    report = saved(parts_of(base), tmp_path, file_precision="fp32", shard_size=0.003)
    index = json.loads((tmp_path / "tuned.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"tuned-00001-of-{len(files):05}.safetensors" and len(files) > 2
    assert {file.kind for file in report.files} == {"shard"} and len(report.files) == len(files) + 1
    together = {}
    for name in files:
        part = load_file(tmp_path / name)
        assert {index["weight_map"][key] for key in part} == {name} and not together.keys() & part.keys()
        assert sum(each.nbytes for each in part.values()) <= 3e6 or len(part) == 1
        together |= part
    expected = expected_weights(base)
    assert together.keys() == expected.keys() and all(torch.equal(together[key], expected[key]) for key in expected)
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in together.values())
    assert saved(parts_of(base), tmp_path, shard_size=1).files[0].kind == "checkpoint"


def test_the_writer_agrees_with_the_library(tmp_path):
    """Same bytes after the header, for all kinds of tensors; pieces are joined along the first axis."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn((3, 5), generator=generator).half(), "brain": torch.randn(7, generator=generator).bfloat16(),
        "z": torch.randn((2, 3, 1, 1), generator=generator), "empty": torch.zeros(0), "scalar": torch.tensor(2.5),
        "whole": torch.arange(6).reshape(2, 3), "flag": torch.tensor([True, False, True]), "ünï": torch.zeros(1, 2),
    }
    entries = [entry_of(name, tensor.split(1) if name == "z" else (tensor,)) for name, tensor in tensors.items()]
    size = write_entries(tmp_path / "ours.safetensors", entries, {"note": "ä"})
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours, theirs = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("ours", "theirs"))
    data = [raw[8 + int.from_bytes(raw[:8], "little"):] for raw in (ours, theirs)]
    assert data[0] == data[1] and len(ours) == size
    loaded, read = load_file(tmp_path / "ours.safetensors"), read_entries(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and torch.equal(read[name].tensor(), tensor)
        assert loaded[name].dtype == read[name].dtype == tensor.dtype
    assert read_header(tmp_path / "ours.safetensors")[1]["note"] == "ä"


# ---- what is trained -----------------------------------------------------------------------------------------------

def attached(base, make_spec, **fields):
    spec = make_spec(base, method=specs.FullSpec(**fields))
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    training.execute()
    return training


def test_frozen_blocks_stay_and_all_others_learn(tiny_bases, make_spec):
    training = attached(tiny_bases["sd1"], make_spec, frozen_blocks="down, up.1, other")
    assert all(name.startswith(("denoiser.mid_block.", "denoiser.up_blocks.0.")) for name in training.parameters)
    base, tuned = expected_weights(tiny_bases["sd1"]), load_file(training.run.artifact)
    changed = {name for name, tensor in base.items() if not torch.equal(tensor.half(), tuned[name])}
    prefixes = ("model.diffusion_model.middle_block.", "model.diffusion_model.output_blocks.0.",
                "model.diffusion_model.output_blocks.1.")
    assert changed and all(name.startswith(prefixes) for name in changed)


@pytest.mark.parametrize("blocks, words", [
    ("down.7", r"frozen_blocks names down\.7, .*Its blocks are down\.0, down\.1, mid, up\.0, up\.1, other"),
    ("down, mid, up, other", "freezes every block"),
])
def test_frozen_blocks_that_cannot_be(blocks, words, tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sdxl"], method=specs.FullSpec(frozen_blocks=blocks))
    with pytest.raises(UserError, match=words):
        train_run(spec, open_run(spec), silent)


@pytest.mark.parametrize("family, clip_skip, idle", [
    ("sd1", 0, set()), ("sd1", 2, {"te.encoder.layers.1."}), ("sd2", 0, set()),
    ("sdxl", 0, {"te1.encoder.layers.1.", "te1.final_layer_norm."}),
])
def test_layers_that_nobody_reads_are_not_declared(family, clip_skip, idle, tiny_bases, make_spec):
    base = tiny_bases[family]
    parts = parts_of(base, text=True)
    parts.text.clip_skip = clip_skip
    method = methods.make(specs.FullSpec(text_encoder_learning_rate=1e-4), 1e-4, parts.family)
    groups = method.attach(parts, 0)
    declared = {f"{group.name}.{name.removeprefix('text_model.')}" for group in groups for name in group.parameters}
    everything = {f"{encoder}.{name.removeprefix('text_model.')}" for encoder, module in parts.text.encoders.items()
                  for name, _ in module.named_parameters()}
    left = everything - declared
    assert left == {name for name in everything if name.startswith(tuple(idle))} if idle else not left


@pytest.mark.parametrize("precision, size", [("fp16", 2), ("fp32", 4)])
def test_room_for_every_checkpoint_is_asked_for(precision, size, tiny_bases, make_spec, monkeypatch):
    """State and a whole model each: three of them while the third is written and two are kept."""
    asked = []
    monkeypatch.setattr("finetune.trainers.training.run.ensure_space", lambda folder, needed: asked.append(needed))
    run = attached(tiny_bases["sd1"], make_spec, file_precision=precision, frozen_blocks="mid")
    trained = sum(parameter.numel() for parameter in run.parameters.values())
    denoiser = sum(parameter.numel() for parameter in run.parts.denoiser.parameters())
    assert trained < denoiser and asked == [3 * (12 * trained + int(1.5 * denoiser) * size)]
