"""Whether a training step fits on the GPU, before its denoiser is loaded, and the smallest changes with which it does."""
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..data.images.buckets import Crop
from ..families.protocol import Family, TextEncoders
from ..memory.dry_run import empty_copy, peak_of
from ..memory.placement import Placement
from ..memory.plan import StepPlan, pack_without_weights, plan_step
from ..methods.protocol import Method, Parts
from ..optimization.optimizers import STATE_BYTES
from ..spec import MemorySpec, RunSpec
from .assistant import Assistant
from .batches import Batch
from .conditioned_model import ConditionedModel
from .preparation import Prepared

META = torch.device("meta")


def plan_of(spec: RunSpec, family: Family, method: Method, placement: Placement, data: Prepared) -> StepPlan | None:
    """The plan of a step with the largest images and the longest caption; None for families that cannot make an empty
    denoiser."""
    denoiser = family.empty_denoiser(spec.base)
    if denoiser is None:
        return None
    pack_without_weights(denoiser.to(placement.base).requires_grad_(False), placement.storage, placement.frozen)
    blocks = family.swappable_blocks(denoiser)
    if spec.base.assistant:
        Assistant(spec.base, family).attach(denoiser, placement.frozen, META)
    text = data.text and _without_weights(data.text)
    method.attach(Parts(family, denoiser, text or TextEncoders({}, {}), spec.base), spec.training.seed)
    model = ConditionedModel(family, denoiser, text, family.encoder_names(spec.base), placement.around_forward).train()
    if spec.memory.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    width, height = max(data.buckets, key=lambda size: size[0] * size[1])
    count, form = spec.training.batch_size, data.latent_format
    longest = max((image.variation.longest(image.caption) for image in data.trained), key=len)
    captions = (longest,) * count
    known = data.conditioning(captions, [Crop.whole(width, height)] * count).to(META)

    def step():
        latents = torch.empty(count, form.channels, height // form.downscale, width // form.downscale, device=META)
        timesteps = torch.empty(count, device=META)
        model(latents, timesteps, Batch(latents, captions, known, ())).float().square().mean().backward()

    state = STATE_BYTES[spec.optimizer.name] + (4 if spec.training.ema_decay else 0)
    autocast = None if placement.frozen == torch.float32 else placement.frozen
    return plan_step(model, blocks, state, lambda: peak_of(step, autocast))


def _without_weights(text: TextEncoders) -> TextEncoders:
    """The same encoders on the meta device, for words of their own."""
    empty = TextEncoders(text.tokenizers, {name: empty_copy(encoder) for name, encoder in text.encoders.items()})
    empty.clip_skip, empty.text_length, empty.aliases = text.clip_skip, text.text_length, dict(text.aliases)
    return empty


def advice(spec: RunSpec, family: Family, method: Method, placement: Placement, data: Prepared, free: int) -> str | None:
    """A sentence when a step needs more than the `free` bytes of the GPU; None when it fits, or when nobody can tell."""
    swapped = spec.memory.swapped_blocks

    def plan_with(memory: MemorySpec) -> StepPlan | None:
        form = replace(placement, storage=memory.frozen_precision, offloads=memory.offload_activations)
        return plan_of(spec.model_copy(update={"memory": memory}), family, method, form, data)
    try:
        plan = plan_with(spec.memory)
        if plan is None or plan.on_gpu(swapped) <= free:
            return None
        need = (f"a step is planned to need {plan.on_gpu(swapped) / 1e9:.1f} GB on the GPU, which has {free / 1e9:.1f} GB "
                "free")
        for memory, swaps in _smaller(spec.memory, method.trains_base()):
            smaller = plan_with(memory)
            count = smaller and (smaller.fewest_blocks(free) if swaps else swapped)
            if smaller and count is not None and smaller.on_gpu(count) <= free:
                return (f"{need}. With {_words(memory, count)} (Training Memory) it needs "
                        f"{smaller.on_gpu(count) / 1e9:.1f} GB")
        return f"{need}, and no setting of Training Memory makes it fit. Lower resolution or batch_size"
    except (RuntimeError, NotImplementedError, TypeError, ValueError):  # a model that asks for values while it computes
        return None


def _smaller(memory: MemorySpec, trains_base: bool) -> Iterator[tuple[MemorySpec, bool]]:
    """Settings that need less and less, and whether blocks may be swapped too; those first that cost the least time."""
    memory = memory.model_copy(update={"gradient_checkpointing": True})
    yield memory, False
    if not trains_base:
        if memory.frozen_precision == "same":
            memory = memory.model_copy(update={"frozen_precision": "int8"})
            yield memory, False
        memory = memory.model_copy(update={"compile": False})
        yield memory, True
    yield memory.model_copy(update={"offload_activations": True}), not trains_base


def _words(memory: MemorySpec, swapped_blocks: int) -> str:
    wanted = ["gradient_checkpointing on"]
    wanted += [f"frozen_precision {memory.frozen_precision}"] if memory.frozen_precision != "same" else []
    wanted += [f"swapped_blocks {swapped_blocks}"] if swapped_blocks else []
    wanted += ["offload_activations on"] if memory.offload_activations else []
    return ", ".join(wanted[:-1]) + (" and " if len(wanted) > 1 else "") + wanted[-1]
