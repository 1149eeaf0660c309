"""The loop against one in plain torch, and runs whose every step is what their settings say."""
import pytest
import torch
from accelerate import Accelerator
from finetune.trainers import randomness
from finetune.trainers import spec as specs
from finetune.trainers.data.images.buckets import fit
from finetune.trainers.objectives.noise import scaled_linear_alphas
from finetune.trainers.objectives.objective import DiscreteObjective
from finetune.trainers.optimization.optimizers import make_optimizer
from finetune.trainers.optimization.parameter_group import ParameterGroup
from finetune.trainers.optimization.schedules import make_schedule
from finetune.trainers.run_folder import open_run
from finetune.trainers.training import loop
from finetune.trainers.training.batches import Batches, BatchOrder, CachedImage, CachedView, Source
from finetune.trainers.training.run import train_run
from support.running import nothing

STEPS, BATCH, ACCUMULATION, SEED, RATE, WARMUP = 6, 3, 2, 5, 0.1, 2
PRIOR_WEIGHT, PRIOR_RATE, PRIOR_BATCH, MAXIMUM, STOP = 0.7, 0.4, 2, 0.05, 3
WEIGHTS = (1.0, 2.0, 0.25, 0.0)


class Small(torch.nn.Module):
    """A network of two parts, which are trained at rates of their own; dropout between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 1)
        self.dropout = torch.nn.Dropout(0.2)

    def forward(self, latents, timesteps, batch):
        return self.second(self.dropout(self.first(latents).tanh() + timesteps[:, None, None, None] / 1000))


def source(count: int, batch: int, stream: int, weights=None) -> Source:
    crop = fit((64, 64), [(64, 64)])
    latents = torch.randn((count, 4, 8, 8), generator=torch.Generator().manual_seed(count))
    images = [CachedImage("", [CachedView(crop, lambda number=number: latents[number])],
                          weight=weights[number] if weights else 1.0) for number in range(count)]
    return Source(images, BatchOrder([(64, 64)] * count, [1] * count, batch, SEED, stream))


def objective():
    return DiscreteObjective(scaled_linear_alphas(), "epsilon", specs.ObjectiveSpec())


def penalty(model):
    return 0.01 * model.second.weight.square().sum()


def sources():
    return (source(4, BATCH, randomness.ORDER, WEIGHTS), source(3, PRIOR_BATCH, randomness.CLASS_ORDER))


def plain_loop(model):
    """What the loop does, with nothing of it but the order of images and the noise: yields (loss, norm, rates)."""
    subject, prior = sources()
    groups = [{"params": list(model.first.parameters())}, {"params": list(model.second.parameters())}]
    optimizer, priors = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True, weight_decay=0.01), 0

    def micro_batch(source, number, first, step):
        chosen = source.order[number]
        latents = torch.stack([source.images[index].views[0].latents() for index in chosen])
        generators = [randomness.generator(SEED, randomness.NOISE, step, first + place) for place in range(len(chosen))]
        noised = objective().noise(latents, generators)
        own = (model(noised.latents, noised.timesteps, None) - noised.target).square().mean(dim=(1, 2, 3))
        return (own * torch.tensor([source.images[index].weight for index in chosen])).mean()

    for step in range(STEPS):
        factor = step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)
        rates = [RATE * factor, RATE / 4 * factor if step < STOP else 0.0]
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate
        torch.manual_seed(randomness.derive(SEED, randomness.DROPOUT, step, 0))
        loss = 0.0
        for micro in range(ACCUMULATION):
            loss = loss + micro_batch(subject, step * ACCUMULATION + micro, micro * BATCH, step) / ACCUMULATION
            if int((step * ACCUMULATION + micro + 1) * PRIOR_RATE) > priors:
                first = ACCUMULATION * BATCH + micro * PRIOR_BATCH
                loss = loss + PRIOR_WEIGHT / ACCUMULATION * micro_batch(prior, priors, first, step)
                priors += 1
        loss = loss + penalty(model)
        loss.backward()
        if step >= STOP:
            for parameter in model.second.parameters():
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAXIMUM)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item(), norm.item(), rates
    assert priors == 4  # of twelve batches, at a rate of 0.4


def test_every_step_is_that_of_a_loop_in_plain_torch(tiny_bases, make_spec):
    """Schedule, clipping, class images, weights of images, accumulation, penalty and a group that stops: the parameters
    after every step, its loss, its norm before clipping and its rates."""
    spec = make_spec(tiny_bases["sd1"], training=specs.TrainingSpec(
        steps=STEPS, batch_size=BATCH, accumulation=ACCUMULATION, resolution=64, seed=SEED), optimizer=specs.OptimizerSpec(
            name="sgd", learning_rate=RATE, betas=(0.9, 0.999), weight_decay=0.01, maximum_gradient_norm=MAXIMUM))
    model, plain = Small(), Small()
    optimizer = make_optimizer(spec.optimizer, [
        ParameterGroup("first", RATE, dict(model.first.named_parameters())),
        ParameterGroup("second", RATE / 4, dict(model.second.named_parameters()), STOP / STEPS)], STEPS)
    schedule = make_schedule(specs.ScheduleSpec(name="linear", warmup_steps=WARMUP), optimizer, STEPS)
    subject, prior = sources()
    batches = Batches(subject, ACCUMULATION, SEED, 0.0, nothing, prior=prior, prior_weight=PRIOR_WEIGHT,
                      prior_rate=PRIOR_RATE)
    expected, seen = plain_loop(plain), []

    def compare(result: loop.StepResult) -> bool:
        loss, norm, rates = next(expected)
        assert (result.loss, result.gradient_norm) == pytest.approx((loss, norm), rel=1e-5)
        assert [*result.learning_rates] == ["first", "second"]
        assert [*result.learning_rates.values()] == pytest.approx(rates)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        seen.append(result)
        return True

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    assert loop.train(accelerator, model, batches, objective(), optimizer, schedule, spec, 0, compare,
                      lambda: penalty(model)) == STEPS
    assert [result.step for result in seen] == list(range(1, STEPS + 1)) and next(expected, None) is None
    assert min(result.gradient_norm for result in seen) > MAXIMUM  # each was clipped


# ---- whole runs ----------------------------------------------------------------------------------------------------

def steps_of(spec) -> list[dict]:
    steps = []
    train_run(spec, open_run(spec), lambda event: steps.append(event) if event.event == "step" else None)
    return steps


@pytest.mark.parametrize("maximum", [0.0, 1e-3])
def test_a_step_is_as_long_as_rate_and_clipping_say(maximum, tiny_bases, make_spec, monkeypatch):
    """Of plain gradient descent a step is the gradient times the rate of its schedule, and no gradient is longer than the
    maximum."""
    values, lengths, train = [], [], loop.train

    def watched(accelerator, model, *arguments):
        def flat():
            return torch.cat([each.detach().flatten().double() for each in model.parameters() if each.requires_grad])

        *others, after_step, regularizer = arguments
        values.append(flat())

        def look(result):
            values.append(flat())
            lengths.append((values[-1] - values[-2]).norm().item())
            return after_step(result)

        return train(accelerator, model, *others, look, regularizer)

    monkeypatch.setattr(loop, "train", watched)
    spec = make_spec(
        tiny_bases["sd1"], schedule=specs.ScheduleSpec(name="linear"), optimizer=specs.OptimizerSpec(
            name="sgd", learning_rate=1.0, betas=(0.0, 0.0), weight_decay=0.0, maximum_gradient_norm=maximum))
    steps = steps_of(spec)
    norms = [step.gradient_norm for step in steps]
    assert min(norms) > 2e-3
    expected = [(1 - number / 6) * (min(norm, maximum) if maximum else norm) for number, norm in enumerate(norms)]
    assert lengths == pytest.approx(expected, rel=1e-3)
    assert [step.learning_rate for step in steps] == pytest.approx([1 - number / 6 for number in range(6)])


@pytest.mark.parametrize("ratio, sizes", [
    (1.0, [2, 2, 2, 2]), (0.5, [1, 1, 1, 1]), (0.25, [0, 1, 0, 1]), (0.125, [0, 0, 0, 1]), (1.5, [3, 3, 3, 3]),
    (0.875, [0, 2, 2, 2])])
def test_class_images_come_as_often_as_their_ratio_says(ratio, sizes, tiny_bases, make_spec, squares, monkeypatch):
    """`sizes`: how many class images each of four steps sees beside its two images of the subject."""
    seen, load = {step: 0 for step in range(4)}, Batches.load

    def count(batches, micro):
        batch = load(batches, micro)
        if micro.source is batches.prior:
            seen[micro.step] += len(batch.latents)
            assert micro.weight == 0.3
        else:
            assert len(batch.latents) == 2 and micro.weight == 1
        return batch

    monkeypatch.setattr(Batches, "load", count)
    steps_of(make_spec(tiny_bases["sd1"], prior=specs.PriorSpec(dataset=squares, weight=0.3, ratio=ratio),
                       training=specs.TrainingSpec(steps=4, batch_size=2, resolution=64)))
    assert list(seen.values()) == sizes
