"""What a step is planned to need is what it needs."""
from dataclasses import replace

import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.errors import Cancelled
from finetune.trainers.families import get as get_family
from finetune.trainers.memory.alive_bytes import AliveBytes
from finetune.trainers.memory.block_swap import BlockSwap, chosen
from finetune.trainers.memory.placement import placing
from finetune.trainers.memory.plan import pack_without_weights, plan_step
from finetune.trainers.memory.quantization import PACKED
from finetune.trainers.training import memory_advice
from support.running import training_of

CPU = torch.device("cpu")


LORA, TEXT = specs.LoraSpec(rank=2, alpha=2), specs.LoraSpec(rank=2, alpha=2, text_encoder_learning_rate=1e-3)
WORD = specs.TextualInversionSpec(token="square", vectors=2, initial_text="red", train_t5=True)


@pytest.mark.parametrize("family, method, memory", [
    ("sd1", LORA, dict()), ("sd1", specs.FullSpec(text_encoder_learning_rate=1e-3), dict()),
    ("sdxl", TEXT, dict(gradient_checkpointing=True)), ("sd3", LORA, dict(frozen_precision="int8")),
    ("sd3", TEXT, dict(gradient_checkpointing=True)), ("flux", LORA, dict()),
    ("flux", LORA, dict(gradient_checkpointing=True, frozen_precision="fp8")), ("flux", WORD, dict()),
])
def test_a_step_needs_what_is_planned(family, method, memory, tiny_bases, make_spec):
    """Counted in the second step, in which the optimizer has its state: weights to the byte, the rest within a tenth. With
    text encoders that train, and with those that do not."""
    training = training_of(make_spec(
        tiny_bases[family], method=method, memory=specs.MemorySpec(**memory),
        training=specs.TrainingSpec(steps=2, batch_size=2, resolution=256)))
    attach, after_step, plans, alive = training._attach, training._after_step, [], AliveBytes()

    def planned_first():
        plans.append(memory_advice.plan_of(
            training.spec, training.family, training.method, training.placement, training.data))
        attach()

    def counted(result):
        if result.step == 1:
            going_on = after_step(result)
            alive.__enter__()
            return going_on
        alive.__exit__(None, None, None)
        return after_step(result)

    training._attach, training._after_step = planned_first, counted
    training.execute()
    model, plan = training.model, plans[0]
    resident = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    assert plan.weights(0) + plan.trained == resident + 8 * sum(value.numel() for value in training.parameters.values())
    assert plan.working == pytest.approx(alive.most, rel=0.1)


def test_swapped_blocks_leave_room_for_two(tiny_bases):
    """What is planned to be there is what is there: weights that stay, and the rooms."""
    kind = get_family("flux")
    for storage, swapped in (("same", 3), ("int8", 4), ("int8", 1)):
        empty = kind.empty_denoiser(tiny_bases["flux"]).requires_grad_(False)
        pack_without_weights(empty, storage, torch.float32)
        plan = plan_step(empty, kind.swappable_blocks(empty), 0, lambda: 0)
        swaps = []

        def keeper(blocks, storage=storage, swapped=swapped, swaps=swaps):
            away = [blocks[number] for number in chosen(len(blocks), swapped)]
            swaps.append(BlockSwap(away, PACKED[storage], torch.float32, CPU, "memory"))
            return placing(storage, torch.float32, CPU, swaps[0])

        denoiser = kind.load_denoiser(tiny_bases["flux"], torch.float32, keeper)
        for number in range(swapped):
            swaps[0].on_device(number)
        there = [*denoiser.parameters(), *denoiser.buffers(), *(room for room, _ in swaps[0].there.values())]
        resident = sum(each.numel() * each.element_size() for each in there)
        assert plan.weights(swapped) == pytest.approx(resident, rel=0.01)  # blocks are aligned
    assert plan.weights(1) == plan.weights(0) > plan.weights(4)  # the room of one block is as large as that block


def test_advice_names_the_first_settings_that_fit(tiny_bases, make_spec):
    training = training_of(make_spec(tiny_bases["sd3"], method=specs.LoraSpec(rank=2, alpha=2)))
    sentences = []

    def asked():
        def plan(**memory):
            spec = training.spec.model_copy(update={"memory": specs.MemorySpec(**memory)})
            form = replace(training.placement, storage=spec.memory.frozen_precision)
            return memory_advice.plan_of(spec, training.family, training.method, form, training.data)

        smaller = plan(gradient_checkpointing=True), plan(gradient_checkpointing=True, frozen_precision="int8")
        for free in (plan().on_gpu(), *(each.on_gpu() for each in smaller), 10**8):
            sentences.append(memory_advice.advice(
                training.spec, training.family, training.method, training.placement, training.data, free))
        raise Cancelled

    training._attach = asked
    with pytest.raises(Cancelled):
        training.execute()
    assert sentences[0] is None
    assert "With gradient_checkpointing on (Training Memory)" in sentences[1]
    assert "With gradient_checkpointing on and frozen_precision int8 (Training Memory) it needs 0.6 GB" in sentences[2]
    assert "0.1 GB free, and no setting of Training Memory makes it fit. Lower resolution or batch_size" in sentences[3]
