"""`accelerate launch` with two processes trains as one process does: the batch size counts all of them."""
import json
import os
import subprocess
import sys

import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.hypernetwork import read_hypernetwork
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.events import ValidationEvent
from finetune.trainers.process.parent import SCRIPT, TrainingProcess
from finetune.trainers.run_folder import open_run
from safetensors.torch import load_file
from support import tiny

# With --cpu, accelerate starts a single process whatever --num_processes says; --multi_gpu starts as many as asked for, and
# the spec's device makes them train on the CPU. Port 0 is a free one.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
          "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python"]


@pytest.fixture
def two(preloaded):
    """A launcher of two processes, which have the libraries in memory already."""
    return [sys.executable, *LAUNCH, *preloaded]


def train(spec, path, launcher):
    """Train from the command line; the finished run."""
    path.write_text(spec.model_dump_json())
    result = subprocess.run([*launcher, str(SCRIPT), "train", str(path)], capture_output=True, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    return open_run(spec)


def parts_with_everything(tmp_path) -> dict:
    """Accumulation, class images, a text encoder that trains, a running mean, checkpoints on the way."""
    return dict(
        dataset=scan_folder(str(tiny.make_images(tmp_path / "eight", 8)), "eight"),
        prior=specs.PriorSpec(dataset=scan_folder(str(tiny.make_images(tmp_path / "class", 5, (64, 96))), "class"),
                              weight=0.7, ratio=0.5),
        method=specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3, file_precision="fp32"),
        training=specs.TrainingSpec(steps=4, batch_size=4, accumulation=2, resolution=64, ema_decay=0.5),
        # Adam steps by a ratio of gradients: where they are all but zero, epsilon keeps it from being one of roundings.
        optimizer=specs.OptimizerSpec(learning_rate=1e-2, epsilon=1e-6),
        validation=specs.ValidationSpec(fraction=0.3, every=2), checkpoints=specs.CheckpointSpec(every=2, minutes=1e-6),
    )


def tensors(path) -> dict:
    if path.suffix == ".safetensors":
        return {name: value for name, value in load_file(path).items() if not name.endswith("alpha")}
    networks, _ = read_hypernetwork(path)
    return {(width, part, name): value for width, pair in networks.items() for part, state in enumerate(pair)
            for name, value in state.items()}


@pytest.mark.parametrize("method, dropout", [
    (None, 0.0),
    (specs.TextualInversionSpec(token="square"), 0.5),  # some batches of a process do not hold the word
    (specs.HypernetworkSpec(activation="mish", layer_norm=True), 0.0),  # networks that many layers share
], ids=["LoRA", "new word", "hypernetwork"])
def test_two_processes_equal_one(method, dropout, preloaded, two, tiny_bases, make_spec, tmp_path):
    parts = parts_with_everything(tmp_path)
    parts["method"] = method or parts["method"]
    parts["training"] = parts["training"].model_copy(update={"caption_dropout": dropout})
    if parts["method"].kind == "hypernetwork":  # every process encodes the captions that it meets
        parts["dataset"] = parts["dataset"].model_copy(update={"images": tuple(image.model_copy(update={
            "variation": specs.CaptionVariationSpec(shuffle=True, templates=("a {caption}", "the {caption}")),
            "augmentation": specs.AugmentationSpec(variants=2, flip=True), "weight": 0.5 + number / 4,
        }) for number, image in enumerate(parts["dataset"].images))})
    # With a small epsilon Adam makes a step of full size out of the rounding of a gradient that is nearly 0.
    parts["optimizer"] = specs.OptimizerSpec(learning_rate=1e-2, epsilon=1e-3)
    one = train(make_spec(tiny_bases["sdxl"], name="one", **parts), tmp_path / "one.json", preloaded)
    both = train(make_spec(tiny_bases["sdxl"], name="two", **parts), tmp_path / "two.json", two)
    assert next(event.processes for event in both.events() if event.event == "model") == 2
    assert len(one.losses()) == 4 and both.losses() == pytest.approx(one.losses(), abs=1e-5)
    validation = one.curve(ValidationEvent)
    assert list(validation) == [0, 2, 4] and both.curve(ValidationEvent) == pytest.approx(validation, abs=1e-5)
    assert one.checkpoints() == both.checkpoints() == [2, 3]
    for name in ("checkpoints/step_000002/{}_step000002", "{}"):  # means of the weights
        expected, found = (tensors(run.folder / (name.format(run.name) + run.artifact.suffix)) for run in (one, both))
        assert expected.keys() == found.keys() and any(value.abs().max() > 1e-3 for value in expected.values())
        for key, value in expected.items():
            assert torch.allclose(value, found[key], atol=1e-4), key
    (_, expected), (_, found) = one.load_state(), both.load_state()
    for kind in (expected["parameters"], found["parameters"]), (expected["mean"]["means"], found["mean"]["means"]):
        assert all(torch.allclose(value, kind[1][name], atol=1e-4) for name, value in kind[0].items())
    assert any(not torch.equal(value, expected["mean"]["means"][name]) for name, value in expected["parameters"].items())


def test_two_processes_are_cancelled_and_go_on(two, tiny_bases, make_spec, tmp_path):
    """As a node starts and cancels them. Both stop at the same step, and together go on as if they never had."""
    parts = {**parts_with_everything(tmp_path), "checkpoints": specs.CheckpointSpec(every=0)}
    parts["training"] = parts["training"].model_copy(update={"steps": 12})
    parts["memory"] = specs.MemorySpec(frozen_precision="int8")
    whole = train(make_spec(tiny_bases["sd1"], name="whole", **parts), tmp_path / "whole.json", two)
    spec = make_spec(tiny_bases["sd1"], name="cancelled", **parts)
    run = open_run(spec)
    events = []
    with TrainingProcess(run, two) as process:
        for event in process.events():
            events += [event] if event else []
            if event and event.event == "step" and event.step == 2:
                process.cancel()
    last = events[-1]
    assert last.event == "cancelled" and 2 <= last.step < 12, json.dumps(events[-3:])
    assert run.checkpoints() == [last.step] and list(run.checkpoint_folder(last.step).glob("*.safetensors"))
    with TrainingProcess(run, two) as process:
        resumed = [event for event in process.events() if event]
    assert resumed[-1].event == "finished" and {"resumed"} <= {event.event for event in resumed}
    assert run.losses() == pytest.approx(whole.losses(), abs=1e-6) and len(run.losses()) == 12
    expected, found = tensors(whole.artifact), tensors(run.artifact)
    assert all(torch.allclose(value, found[key], atol=1e-5) for key, value in expected.items())
