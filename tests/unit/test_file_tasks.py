"""The tools around LoRA files: conversions that lose nothing or say what they lose, baking, shards, the command line."""
import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from finetune.trainers import families
from finetune.trainers.artifacts.adapters.lora import LoraWeight
from finetune.trainers.artifacts.layer_names import layers_of_checkpoint as layers
from finetune.trainers.artifacts.lora import write_lora
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.tensor_files import read_entries, read_header
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.events import silent
from finetune.trainers.families.unet_state_dict import weights_of
from finetune.trainers.run_folder import open_run
from finetune.trainers.spec import FolderSpec
from finetune.trainers.tools import onnx_export
from finetune.trainers.tools.file_tasks import TOOLS
from finetune.trainers.tools.merging import change_of
from safetensors.torch import load_file, save_file
from support import tiny
from support.tiny_models import MadeWhenAsked, make_single_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tiny_bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return MadeWhenAsked(lambda family: make_single_file(family, tiny_bases[family].path, folder / f"{family}.safetensors"))


def asked(task: str, folder: Path, **fields):
    folders = FolderSpec(runs=str(folder / "runs"), caches=str(folder))
    return TOOLS[task].spec(name="made", folders=folders, device="cpu", **fields)


def done(task: str, folder: Path, stop=lambda: False, **fields) -> dict:
    return TOOLS[task].work(asked(task, folder, **fields), folder, silent, stop)


def lora_for(checkpoint: Path, path: Path, dtype=torch.float32, alpha: float = 2.0, metadata=None) -> Path:
    """A LoRA of rank 4 on every layer of a checkpoint, by kohya's names."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    weights = weights_of(checkpoint)
    for layer in layers(weights.shapes()):
        shape = weights.shape(layer.tensor)
        down = 0.1 * torch.randn((4, *shape[1:]), generator=generator)
        up = 0.1 * torch.randn((shape[0] // layer.parts, 4, *[1] * (len(shape) - 2)), generator=generator)
        tensors |= LoraWeight(layer.key, down, up, alpha).tensors(dtype)
    write_lora(path, tensors, metadata or {"modelspec.title": "a title", "ss_tag_frequency": "secret"})
    return path


def changes(path: Path) -> dict[str, torch.Tensor]:
    return {key: layer.change() for key, layer in read_lora(path).layers.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_names_round_trip_exactly(family, dtype, files, tmp_path):
    """kohya → diffusers → ComfyUI → kohya. Folding in an alpha ÷ rank of a half loses nothing, but for fp16's smallest
    numbers."""
    source = lora_for(files[family], tmp_path / "source.safetensors", dtype, 4.0 if dtype == torch.float16 else 2.0)
    step = source
    for names in ("diffusers", "comfyui", "kohya"):
        report = done("convert", tmp_path, lora=str(step), base=str(files[family]), names=names)
        assert report.error == 0.0
        step = (tmp_path / "made.safetensors").rename(tmp_path / f"{names}.safetensors")
    before, after = changes(source), changes(step)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert {entry.dtype for name, entry in read_entries(step).items() if name.endswith(".weight")} == {dtype}
    assert any(key.endswith("lora_A.weight") for key in load_file(tmp_path / "diffusers.safetensors"))
    native = load_file(tmp_path / "comfyui.safetensors")
    assert all(key.startswith(("diffusion_model.", "text_encoders.")) for key in native)


def test_native_and_back_is_bit_for_bit(files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "source.safetensors", torch.float16, alpha=3.0)
    done("convert", tmp_path, lora=str(source), base=str(files["sd1"]), names="comfyui")
    there = (tmp_path / "made.safetensors").rename(tmp_path / "there.safetensors")
    done("convert", tmp_path, lora=str(there), base=str(files["sd1"]), names="kohya")
    before, after = load_file(source), load_file(tmp_path / "made.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(before[name].dtype == after[name].dtype for name in before)


@pytest.mark.parametrize("precision, dtype, most", [("fp8", torch.float8_e4m3fn, 0.06), ("int8", torch.int8, 0.02)])
def test_eight_bits_are_scaled_by_alpha_and_come_back(precision, dtype, most, files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "source.safetensors")
    report = done("convert", tmp_path, lora=str(source), file_precision=precision)
    small = (tmp_path / "made.safetensors").rename(tmp_path / "small.safetensors")
    stored = load_file(small)
    assert {tensor.dtype for name, tensor in stored.items() if name.endswith(".weight")} == {dtype}
    before, after = changes(source), changes(small)
    error = sum((before[key] - after[key]).square().sum() for key in before) / sum(x.square().sum() for x in before.values())
    assert report.error == pytest.approx(float(error.sqrt()), rel=1e-3) and 0 < report.error < most
    back = done("convert", tmp_path, lora=str(small), file_precision="fp32")
    assert back.error < 1e-6
    again = changes(tmp_path / "made.safetensors")
    assert all(torch.allclose(again[key], after[key], rtol=1e-4, atol=1e-7) for key in after)


def test_names_of_another_model_are_refused(files, tmp_path):
    source = lora_for(files["sdxl"], tmp_path / "source.safetensors")
    with pytest.raises(UserError, match="are not in .* is a LoRA for Stable Diffusion XL"):
        done("convert", tmp_path, lora=str(source), base=str(files["sd1"]), names="diffusers")
    source = lora_for(files["sd1"], tmp_path / "eight.safetensors")
    with pytest.raises(UserError, match="Choose kohya's names"):
        done("convert", tmp_path, lora=str(source), base=str(files["sd1"]), names="diffusers", file_precision="int8")
    assert not (tmp_path / "made.safetensors").exists()


def test_merging_files_of_different_makers(files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "one.safetensors")
    done("convert", tmp_path, lora=str(source), base=str(files["sd1"]), names="diffusers")
    other = (tmp_path / "made.safetensors").rename(tmp_path / "two.safetensors")
    report = done("merge", tmp_path, loras=[{"path": str(source)}, {"path": str(other), "model": -0.5, "text": -0.5}],
                  rule="fixed", rank=4, file_precision="fp32")
    before, after = changes(source), changes(tmp_path / "made.safetensors")
    assert before.keys() == after.keys() and report.kept == pytest.approx(1.0, abs=1e-5)
    assert all(torch.allclose(after[key], 0.5 * before[key], atol=1e-5) for key in before)


def test_metadata_changes_and_weights_do_not(files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "source.safetensors", torch.float16)
    report = done("metadata", tmp_path, lora=str(source), forget_training=True,
                  changes=[("modelspec.trigger_phrase", "ohwx"), ("modelspec.title", "")])
    made, before = read_header(tmp_path / "made.safetensors")[1], read_header(source)[1]
    assert made == report.metadata and made["modelspec.trigger_phrase"] == "ohwx"
    assert "modelspec.title" not in made and "ss_tag_frequency" not in made
    assert made["sshs_model_hash"] == before["sshs_model_hash"]
    one, other = load_file(source), load_file(tmp_path / "made.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_baked_weights_are_base_and_loras(family, files, tmp_path):
    one = lora_for(files[family], tmp_path / "one.safetensors")
    report = done("bake", tmp_path, base=str(files[family]), loras=[
        {"path": str(one), "model": 0.5, "text": 0.25}, {"path": str(one), "model": 0.25, "text": 0.0}])
    base, baked, wanted = load_file(files[family]), load_file(tmp_path / "made.safetensors"), changes(one)
    assert report.keys == len(base) == len(baked) and not report.notes
    touched = set()
    for layer in layers({name: tuple(tensor.shape) for name, tensor in base.items()}):
        before, after = (layer.rows(each[layer.tensor]) for each in (base, baked))
        strength = 0.25 if layer.is_text else 0.75
        torch.testing.assert_close(after, before + strength * wanted[layer.key], rtol=1e-5, atol=1e-5)
        touched.add(layer.tensor)
    assert all(torch.equal(base[name], baked[name]) for name in base.keys() - touched)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_onnx_file_computes_what_base_and_loras_compute(family, precision, tiny_bases, files, tmp_path):
    """The whole way of another program: the file alone, at a size, batch and prompt length that it was not made with."""
    one = lora_for(files[family], tmp_path / "one.safetensors")
    base = tiny_bases[family]
    report = done("onnx", tmp_path, base=base.path, loras=[{"path": str(one), "model": 0.5}], file_precision=precision)
    assert report.error < (1e-5 if precision == "fp32" else 2e-2) and report.layers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.onnx", "one.safetensors"]
    engine = families.get(family)
    denoiser, wanted = engine.load_denoiser(base, torch.float32), changes(one)
    for name, module in denoiser.named_modules():
        key = engine.denoiser_key(denoiser, name) if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) else ""
        if key in wanted:
            module.weight.data += 0.5 * wanted[key].reshape(module.weight.shape)
    session = onnxruntime.InferenceSession(str(tmp_path / "made.onnx"))
    kinds = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(int64)": torch.int64}
    sizes = {"batch": 3, "height": 16, "width": 24, "tokens": 154}
    generator = torch.Generator().manual_seed(0)
    inputs = {each.name: torch.randn([sizes.get(size, size) for size in each.shape], generator=generator).to(
                  kinds[each.type]) for each in session.get_inputs()} | {"timestep": torch.tensor([1, 500, 999])}
    output = torch.from_numpy(session.run(["out_sample"], {name: each.numpy() for name, each in inputs.items()})[0])
    floats = {name: each.float() for name, each in inputs.items()}
    added = {name: floats[name] for name in ("text_embeds", "time_ids") if name in floats}
    with torch.no_grad():
        truth = denoiser(floats["sample"], inputs["timestep"], floats["encoder_hidden_states"],
                         added_cond_kwargs=added or None).sample
        plain = engine.load_denoiser(base, torch.float32)(
            floats["sample"], inputs["timestep"], floats["encoder_hidden_states"], added_cond_kwargs=added or None).sample
    error = (output.float() - truth).abs().max() / truth.abs().max()
    assert error < (1e-5 if precision == "fp32" else 2e-2)
    assert (output.float() - plain).abs().max() / truth.abs().max() > 0.1


def test_large_onnx_models_keep_their_weights_in_a_second_file(tiny_bases, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "ONE_FILE", 1000)
    report = done("onnx", tmp_path, base=tiny_bases["sd1"].path)
    assert [file.name for file in report.files] == ["made.onnx", "made.onnx.data"]
    assert (tmp_path / "made.onnx").stat().st_size < (tmp_path / "made.onnx.data").stat().st_size
    monkeypatch.setattr(onnx_export, "difference", lambda *arguments: float("nan"))
    with pytest.raises(UserError, match="would not give what the base gives"):
        done("onnx", tmp_path, base=tiny_bases["sd1"].path)
    assert list(tmp_path.iterdir()) == [], "a file that computes something else is not kept"


def test_a_diffusers_folder_is_baked_as_one_file(tiny_bases, files, tmp_path):
    one = lora_for(files["sd1"], tmp_path / "one.safetensors")
    done("bake", tmp_path, base=tiny_bases["sd1"].path, loras=[{"path": str(one)}], file_precision="fp32")
    folder = load_file(tmp_path / "made.safetensors")
    (tmp_path / "made.safetensors").unlink()
    done("bake", tmp_path, base=str(files["sd1"]), loras=[{"path": str(one)}], file_precision="fp32")
    file = load_file(tmp_path / "made.safetensors")
    for name in folder.keys() & file.keys():
        torch.testing.assert_close(folder[name], file[name], rtol=1e-5, atol=1e-6)
    assert len(folder) >= len([name for name in file if "position_ids" not in name])


def test_dora_is_baked_by_its_formula(files, tmp_path):
    """What it changes follows from the base alone, also behind another LoRA."""
    torch.manual_seed(3)
    key, name = "lora_unet_mid_block_attentions_0_proj_in", "model.diffusion_model.middle_block.1.proj_in.weight"
    base = load_file(files["sd1"])[name]
    lengths, down = torch.rand(1, base.shape[1], 1, 1) + 0.5, torch.randn(2, base.shape[1], 1, 1)
    up = torch.randn(64, 2, 1, 1)
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.dora_scale": lengths},
              tmp_path / "dora.safetensors")
    plain = {f"{key}.lora_down.weight": down.flip(0), f"{key}.lora_up.weight": 0.1 * up}
    save_file({name: each.contiguous() for name, each in plain.items()}, tmp_path / "plain.safetensors")
    done("bake", tmp_path, base=str(files["sd1"]), loras=[
        {"path": str(tmp_path / "plain.safetensors")}, {"path": str(tmp_path / "dora.safetensors"), "model": 0.5}])
    merged = base + torch.einsum("or,ri->oi", up[:, :, 0, 0], down[:, :, 0, 0])[:, :, None, None]
    whole = merged / merged.square().sum(dim=(0, 2, 3), keepdim=True).sqrt() * lengths
    baked = load_file(tmp_path / "made.safetensors")[name]
    before = 0.1 * torch.einsum("or,ri->oi", up[:, :, 0, 0], down.flip(0)[:, :, 0, 0])[:, :, None, None]
    torch.testing.assert_close(baked, base + before + 0.5 * (whole - base), rtol=1e-4, atol=1e-5)


def test_shards_join_to_the_same_tensors(files, tmp_path):
    report = done("shard", tmp_path, checkpoint=str(files["sd1"]), shard_size=0.003)
    assert len(report.files) > 3
    joined = tmp_path / "joined"
    joined.mkdir()
    done("shard", joined, checkpoint=str(tmp_path / "made.safetensors.index.json"), shard_size=0)
    one, other = load_file(files["sd1"]), load_file(joined / "made.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / report.files[0].name).unlink()
    with pytest.raises(UserError, match="is not beside"):
        done("shard", joined, checkpoint=str(tmp_path / "made.safetensors.index.json"), shard_size=0)


@pytest.mark.parametrize("task", ["merge", "convert", "bake", "shard"])
def test_cancel_leaves_nothing(task, files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "source.safetensors")
    fields = {"merge": {"loras": [{"path": str(source)}]}, "convert": {"lora": str(source), "file_precision": "fp8"},
              "bake": {"base": str(files["sd1"]), "loras": [{"path": str(source)}]},
              "shard": {"checkpoint": str(files["sd1"]), "shard_size": 0.002}}[task]
    asked_times = []
    with pytest.raises(Cancelled):
        done(task, tmp_path, lambda: len(asked_times) == 3 or asked_times.append(1), **fields)
    assert [path.name for path in tmp_path.iterdir()] == ["source.safetensors"]


def test_the_command_line_does_the_same_and_finds_what_is_there(files, tmp_path):
    source = lora_for(files["sd1"], tmp_path / "source.safetensors")
    spec = asked("convert", tmp_path, lora=str(source), file_precision="fp16")
    (tmp_path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json", exclude={"task"})), encoding="utf-8")
    command = [sys.executable, "-m", "trainers", "convert", str(tmp_path / "spec.json")]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(first.stdout.splitlines()[-1])["event"] == "finished"
    run = open_run(spec)
    assert run.report.precision == "fp16" and run.artifact.exists()
    assert "made is finished" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lora_for(files["sd1"], source, alpha=1.0)  # another file under the same name is another run
    assert open_run(spec).name == "made-2"


def test_a_layer_that_grew_too_strong_for_half_precision_is_refused(files, tmp_path):
    key = next(layers(weights_of(files["sd1"]).shapes())).key
    weight = LoraWeight(key, torch.full((1, 4), 1e5), torch.full((4, 1), 1.0), 1.0)
    write_lora(tmp_path / "huge.safetensors", weight.tensors(torch.float32), {})
    with pytest.raises(UserError, match="too large for fp16"):
        done("convert", tmp_path, lora=str(tmp_path / "huge.safetensors"), file_precision="fp16")
    assert change_of(read_lora(tmp_path / "huge.safetensors").layers[key].low_rank()).max() == 1e5
