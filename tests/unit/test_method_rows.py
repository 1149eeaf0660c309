"""Every supported (family, method) row: what changes, and that stopping and resuming leave no trace."""

import pytest
import torch
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.events import silent
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import Training
from safetensors.torch import load_file
from support import tiny_flow
from support.method_rows import METHODS, RESUMED, ROWS, method_of
from support.running import losses_of, losses_with_a_stop
from support.tiny_models import MAKERS


def test_rows_cover_the_registries(tiny_bases):
    assert set(families.NAMES) == set(MAKERS)
    assert {method_of(name, tiny_bases["sd1"]).kind for name in METHODS} == set(methods.KINDS)
    refused = {(family, name) for family in families.NAMES for name in METHODS} - set(ROWS)
    alone = {"attention", "all layers, dropout", "LoCon with LoRA+ by blocks", "LoKr", "full"}
    assert refused == {(family, name) for family in tiny_flow.FAMILIES for name in METHODS if name.startswith("hypernetwork")
                       or (family not in tiny_flow.WITH_TEXT and name not in alone)}


@pytest.mark.parametrize("family, method", ROWS)
def test_only_declared_parameters_change(family, method, tiny_bases, make_spec):
    spec = make_spec(tiny_bases[family], method=method_of(method, tiny_bases[family]), training=specs.TrainingSpec(
        steps=3, batch_size=2, resolution=64, accumulation=2), memory=specs.MemorySpec(gradient_checkpointing=True))
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    before, declared = {}, set()
    attach = training.method.attach

    def values(parts: Parts) -> dict:
        modules = [parts.denoiser] + ([parts.text] if parts.text else [])
        return {(number, name): value for number, module in enumerate(modules)
                for name, value in [*module.named_parameters(), *module.named_buffers()]}

    def remember(parts: Parts, seed: int):
        groups = attach(parts, seed)
        chosen = {id(parameter) for group in groups for parameter in group.parameters.values()}
        declared.update(name for name, value in values(parts).items() if id(value) in chosen)
        before.update({name: value.detach().clone() for name, value in values(parts).items()})
        return groups

    training.method.attach = remember
    training.execute()
    changed = {name for name, value in values(training.parts).items() if not torch.equal(before[name], value)}
    assert changed and changed == declared  # all that is declared learns, and nothing else


@pytest.mark.parametrize("family, method", RESUMED)
def test_resume_equals_never_stopping(family, method, tiny_bases, make_spec, tmp_path):
    parts = dict(method=method_of(method, tiny_bases[family]), schedule=specs.ScheduleSpec(name="cosine", warmup_steps=2))
    whole, run = losses_of(make_spec(tiny_bases[family], **parts))
    resumed_losses, resumed = losses_with_a_stop(make_spec(tiny_bases[family], **parts), 3, tmp_path / "other runs")
    assert resumed_losses == whole
    for file in run.report.files:
        one, other = tensors_of(run.folder / file.name), tensors_of(resumed.folder / file.name)
        assert one and one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def tensors_of(path) -> dict:
    """All tensors of a finished file, whatever its format, by name."""
    if path.suffix == ".safetensors":
        return load_file(path)
    found = {}

    def collect(name, value):
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, (dict, list, tuple)):
            for key, each in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}/{key}", each)

    collect("", torch.load(path, weights_only=True))
    return found
