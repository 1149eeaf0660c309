"""The validation loss is a number of the weights alone: of those that a file gets, without dropout, whatever was drawn."""
import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.training.validation import ValidationRecord, validation_loss
from support.running import training_of


def losses_again(training, seed):
    """The validation of a run that is over, of its weights as they are."""
    torch.manual_seed(seed)
    return validation_loss(training.accelerator, training.model.train(), training.objective, training.data.held_out,
                           training.data.conditioning, training.spec.training.seed)


def validated(make_spec, base, **parts):
    spec = make_spec(base, **{**dict(validation=specs.ValidationSpec(fraction=0.5, every=1)), **parts})
    training, seen = training_of(spec), []
    training.emit = lambda event: seen.append(event.loss) if event.event == "validation" else None
    training.execute()
    return training, seen


def test_dropout_is_off(tiny_bases, make_spec):
    training, seen = validated(make_spec, tiny_bases["sd1"], method=specs.LoraSpec(rank=2, alpha=2, dropout=0.9))
    assert losses_again(training, 1) == losses_again(training, 2) == seen[-1]
    assert len(set(seen)) > 2  # the weights have moved


def test_it_looks_at_the_mean_of_the_weights(tiny_bases, make_spec):
    """The file holds the mean, so it is the mean that is the best or not."""
    training, seen = validated(make_spec, tiny_bases["sd1"], training=specs.TrainingSpec(
        steps=6, batch_size=2, resolution=64, ema_decay=0.9))
    last_weights = losses_again(training, 1)
    with training.mean_weights():
        assert losses_again(training, 1) == seen[-1] != last_weights


@pytest.mark.parametrize("patience, losses, ends", [
    (2, [9, 5, 6, 4, 5, 6], [False] * 5 + [True]), (1, [9, 5, 5], [False, False, True]), (0, [1, 2, 3, 4], [False] * 4),
    (1, [1, 5, 4], [False] * 3),  # the base before the first step is no best
])
def test_patience_counts_validations_since_the_best(patience, losses, ends):
    record, seen = ValidationRecord(patience), []
    for step, loss in enumerate(losses):
        record.add(step, loss)
        seen.append(record.exhausted)
    assert seen == ends and record.first == losses[0] and record.last == losses[-1]
    assert record.best == min(losses[1:]) and losses[record.best_step] == record.best
