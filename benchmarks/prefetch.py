"""Whether steps wait for files: the training loop over caches whose every read takes longer, with and without reading ahead.

    python -m benchmarks.prefetch [--steps 40] [--step 0.05] [--delay 0.02]

The loop, its batches and the caches on disk are those of the pack. The model waits in every step as long as a GPU would
compute; each file of a cache, latents or conditioning, is read that much later. A step of one image reads two files.
"""
import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from .pack import load_pack
from .report import finish

IMAGES = 8


def seconds_per_step(folder: Path, steps: int, step: float, delay: float, begun: int | None = None) -> list[float]:
    """Of the steps of one training after the first. `begun`: micro-batches in memory at once, if not the pack's number."""
    import torch
    from accelerate import Accelerator
    from finetune.trainers import randomness
    from finetune.trainers import spec as specs
    from finetune.trainers.caches.tensor_cache import TensorCache
    from finetune.trainers.data.images.buckets import Crop
    from finetune.trainers.families.conditioning import Conditioning
    from finetune.trainers.objectives.noise import scaled_linear_alphas
    from finetune.trainers.objectives.objective import make_objective
    from finetune.trainers.optimization.optimizers import make_optimizer
    from finetune.trainers.optimization.parameter_group import ParameterGroup
    from finetune.trainers.optimization.schedules import make_schedule
    from finetune.trainers.training import loop, prefetch
    from finetune.trainers.training.batches import Batches, BatchOrder, CachedImage, CachedView, Source

    class Slow(torch.nn.Module):
        """Takes `step` seconds, in which the processor is free, as while a GPU computes."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(4, 4, 1)

        def forward(self, latents, timesteps, batch):
            time.sleep(step)
            return self.layer(latents)

    cache = TensorCache(folder)
    for number in range(IMAGES):
        cache.put(cache.key("latents", number), {"latents": torch.randn((4, 64, 64))})
        cache.put(cache.key("caption", number), {"hidden": torch.randn((77, 768))})

    def read(kind: str, number: int) -> dict:
        time.sleep(delay)
        return cache.get(cache.key(kind, number))

    def conditioning(captions, crops) -> Conditioning:
        return Conditioning.collated([Conditioning.of_entry(read("caption", int(each))) for each in captions])

    crop = Crop.whole(512, 512)
    images = [CachedImage(str(number), [CachedView(crop, lambda number=number: read("latents", number)["latents"])])
              for number in range(IMAGES)]
    order = BatchOrder([crop.bucket] * IMAGES, [1] * IMAGES, 1, 0, randomness.ORDER)
    model, optimizer_spec = Slow(), specs.OptimizerSpec(name="sgd", learning_rate=1e-4)
    optimizer = make_optimizer(optimizer_spec, [ParameterGroup("model", 1e-4, dict(model.named_parameters()))], steps)
    schedule = make_schedule(specs.ScheduleSpec(), optimizer, steps)
    accelerator, own, ends = Accelerator(cpu=True), prefetch.BEGUN, []
    model, optimizer = accelerator.prepare(model, optimizer)
    spec = specs.RunSpec.model_construct(
        training=specs.TrainingSpec(steps=steps, batch_size=1), optimizer=optimizer_spec)
    prefetch.BEGUN = begun or own
    try:
        loop.train(accelerator, model, Batches(Source(images, order), 1, 0, 0.0, conditioning),
                   make_objective("epsilon", scaled_linear_alphas(), specs.ObjectiveSpec()), optimizer, schedule, spec, 0,
                   lambda result: ends.append(time.perf_counter()) or True)
    finally:
        prefetch.BEGUN = own
    return [later - earlier for earlier, later in pairwise(ends[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--step", type=float, default=0.05, help="seconds that the model takes")
    parser.add_argument("--delay", type=float, default=0.02, help="seconds that each read of a file takes longer")
    arguments = parser.parse_args()
    load_pack()
    rows = {"no delay": (0.0, None), "delay, read ahead": (arguments.delay, None),
            "delay, not read ahead": (arguments.delay, 1)}
    seconds = {}
    for name, (delay, begun) in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds[name] = seconds_per_step(Path(folder), arguments.steps, arguments.step, delay, begun)
        print(f"{name}: {1000 * statistics.median(seconds[name]):.1f} ms a step", flush=True)
    usual, ahead, waiting = (statistics.median(each) for each in seconds.values())
    finish("prefetch", [
        {"measure": "length of a step with slow reads, read ahead, against one with no delay",
         "value": round(ahead / usual, 3), "unit": "ratio of medians", "goal": "<= 1.05", "met": ahead <= 1.05 * usual},
        {"measure": "the same without reading ahead", "value": round(waiting / usual, 3), "unit": "ratio of medians",
         "goal": "for comparison", "met": True},
    ], {"arguments": vars(arguments), "milliseconds": {
        name: {"median": round(1000 * statistics.median(each), 2), "longest": round(1000 * max(each), 2)}
        for name, each in seconds.items()}})


if __name__ == "__main__":
    main()
