"""A run inside the process: repeated, accumulated, watched, in other precisions, and what is said when it cannot go on."""
import json

import pytest
import torch
from finetune.trainers import families
from finetune.trainers import spec as specs
from finetune.trainers.accelerator import make_accelerator
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.batches import BatchOrder
from finetune.trainers.training.run import Training, train_run
from safetensors.torch import load_file
from support.running import losses_of


def test_a_second_run_in_the_process_equals_the_first(tiny_bases, make_spec):
    first, _ = losses_of(make_spec(tiny_bases["sd1"], name="one"))
    second, _ = losses_of(make_spec(tiny_bases["sd1"], name="two"))
    assert first == second


def test_accumulation_equals_a_larger_batch(tiny_bases, make_spec):
    """Two batches of two images train as one batch of four, where the order of images is the same."""
    def order(seed, batch, count):
        batches = BatchOrder([(64, 64)] * 4, [1] * 4, batch, seed)
        return [index for number in range(count) for index in batches[number]]

    seed = next(seed for seed in range(100) if order(seed, 2, 2) == order(seed, 4, 1))
    results = [
        losses_of(make_spec(tiny_bases["sd1"], training=specs.TrainingSpec(
            steps=1, batch_size=batch, accumulation=4 // batch, resolution=64, seed=seed)))
        for batch in (2, 4)
    ]
    (accumulated, one), (large, other) = results
    assert accumulated == pytest.approx(large, abs=1e-6)
    one, other = load_file(one.artifact), load_file(other.artifact)
    assert all(torch.allclose(one[key], other[key], atol=1e-4) for key in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_trainable_weights_are_float32_over_any_base(precision, tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64),
                     memory=specs.MemorySpec(precision=precision))
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    training.execute()
    assert {parameter.dtype for parameter in training.parameters.values()} == {torch.float32}
    frozen = {p.dtype for p in training.parts.denoiser.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}


def test_second_run_encodes_nothing(tiny_bases, make_spec):
    encoded = []

    def emit(event):
        if event.event == "encoding":
            encoded.append(event.what)

    for name in ("one", "two"):
        spec = make_spec(tiny_bases["sd1"], name=name)
        train_run(spec, open_run(spec), emit)
    assert sorted(encoded) == ["captions"] * 4 + ["images"] * 4


def test_previews_are_drawn_and_change_nothing(tiny_bases, make_spec):
    plain, _ = losses_of(make_spec(tiny_bases["sdxl"], name="plain"))
    spec = make_spec(tiny_bases["sdxl"], previews=specs.PreviewSpec(prompts=("a", "b"), every=3, sampler_steps=2))
    drawn, run = losses_of(spec)
    assert drawn == plain
    assert sorted(path.name for path in (run.folder / "previews").iterdir()) == [
        "progress.png", "step_000000.png", "step_000003.png", "step_000006.png"]


def test_checkpoints_are_pruned_and_each_has_its_file(tiny_bases, make_spec):
    _, run = losses_of(make_spec(tiny_bases["sd1"], checkpoints=specs.CheckpointSpec(every=1, keep=2)))
    assert run.checkpoints() == [4, 5]
    assert (run.checkpoint_folder(5) / "run_step000005.safetensors").exists()


def test_a_loss_that_is_no_number_stops_with_a_sentence(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"])
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    load = training.family.load_denoiser

    class Broken:
        def __getattr__(self, name):
            return getattr(families.get("sd1"), name)

        def load_denoiser(self, base, dtype, keeper):
            denoiser = load(base, dtype, keeper)
            denoiser.conv_out.bias.data.fill_(float("nan"))
            return denoiser

    training.family = Broken()
    with pytest.raises(UserError, match="not a number any more at step 1"):
        training.execute()


def test_unmatched_pattern_is_explained(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], method=specs.LoraSpec(targets="pattern", pattern="no such layer"))
    with pytest.raises(UserError, match="matches no layer"):
        train_run(spec, open_run(spec), silent)


def test_losses_survive_in_the_events(tiny_bases, make_spec):
    from finetune.trainers.process.worker import Reporter

    spec = make_spec(tiny_bases["sd1"])
    run = open_run(spec)
    train_run(spec, run, Reporter(run, None, is_main=True))
    assert len(run.losses()) == 6
    events = [json.loads(line) for line in run.events_path.read_text().splitlines()]
    assert {"phase", "encoding", "model", "step"} <= {event["event"] for event in events}
