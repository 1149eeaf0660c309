"""A kind of adapter is one file and its lines in the registries: nothing else has to know of it."""
import json

import pytest
import torch
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.artifacts import adapters as formats
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.tensor_header import read_header
from finetune.trainers.events import silent
from finetune.trainers.methods import adapters as trained
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.spec.adapters import ADAPTERS
from finetune.trainers.stacking.cards import card
from finetune.trainers.stacking.inspection import norms_by_block
from finetune.trainers.tools.file_tasks import TOOLS
from pydantic import ValidationError
from safetensors.torch import load_file
from support import tiny, toy_adapter
from support.running import losses_of


@pytest.fixture
def outer():
    toy_adapter.register()
    yield specs.LoraSpec(adapter="outer", rank=1, alpha=1, targets="all with convolutions", file_precision="fp32")
    toy_adapter.forget()


def test_both_halves_of_every_kind_are_there():
    assert list(trained.KINDS) == list(ADAPTERS) and set(ADAPTERS) < set(formats.FORMATS)
    assert {kind: formats.FORMATS[kind].title for kind in ADAPTERS} == {kind: each.title for kind, each in ADAPTERS.items()}
    with pytest.raises(ValidationError, match="adapter is 'outer'; choose one of lora, dora, loha, lokr"):
        specs.LoraSpec(adapter="outer")


def test_a_toy_kind_trains_is_saved_and_is_known_to_readers(outer, tiny_bases, make_spec):
    losses, run = losses_of(make_spec(tiny_bases["sd1"], method=outer))
    report, file, facts = run.report, read_lora(run.artifact), card(run.artifact, "toy")
    assert len(losses) == 6 and report.change_norm > 0 and report.keys == 3 * report.layers == 3 * len(file.layers)
    assert {name.split(".", 1)[1] for name in load_file(run.artifact)} == {"outer_left", "outer_right", "alpha"}
    metadata = read_header(run.artifact)[1]
    assert metadata["ss_network_module"] == "lycoris.kohya" and json.loads(metadata["ss_network_args"])["algo"] == "outer"
    assert (facts["method"], facts["layers"], facts["family"]) == ("Outer", report.layers, "sd1") and not file.unknown
    norms = norms_by_block(load_file(run.artifact), "sd1")
    total = sum(value**2 for kinds in norms.values() for value in kinds.values()) ** 0.5
    assert total == pytest.approx(report.change_norm, rel=1e-4)


def test_a_toy_kind_is_loaded_back_merged_and_converted(outer, tmp_path):
    family, denoiser = families.get("sd1"), tiny.make_unet("sd1")
    parts, method = Parts(family, denoiser, None, None), methods.make(outer, 1e-4, families.get("sd1"))
    method.attach(parts, 0)
    draw, wanted = torch.Generator().manual_seed(0), {}
    for name, layer in trained.adapter_layers(denoiser):
        for factors in (layer.lora_A, layer.lora_B):
            torch.nn.init.normal_(factors["default"].weight, generator=draw)
        wanted[family.denoiser_key(denoiser, name)] = layer.get_delta_weight("default").detach()
    method.save(parts, tmp_path, "toy", {"ss_base_model_version": "sd_v1"})
    path = str(tmp_path / "toy.safetensors")

    def changes(task: str, **fields) -> dict[str, torch.Tensor]:
        spec = TOOLS[task].spec(name=task, device="cpu", folders=specs.FolderSpec(runs="", caches=""), **fields)
        TOOLS[task].work(spec, tmp_path, silent, lambda: False)
        return {key: layer.change() for key, layer in read_lora(tmp_path / f"{task}.safetensors").layers.items()}

    saved = {key: layer.change() for key, layer in read_lora(tmp_path / "toy.safetensors").layers.items()}
    merged = changes("merge", loras=[{"path": path, "model": 0.5}, {"path": path, "model": 0.25}], file_precision="fp32")
    converted = changes("convert", lora=path, names="same", file_precision="fp16")
    assert wanted.keys() == saved.keys() == merged.keys() == converted.keys() and len(wanted) > 20
    for key, change in wanted.items():
        torch.testing.assert_close(saved[key], change)
        torch.testing.assert_close(merged[key].reshape(change.shape), 0.75 * change, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(converted[key], change, rtol=2e-3, atol=2e-3)
