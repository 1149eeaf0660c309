"""Blocks that come when they are needed: nothing in the numbers shows it, and no more of them are there than planned."""
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.families.recognition import recognize
from finetune.trainers.memory.activation_offload import Offloaded
from finetune.trainers.memory.alive_bytes import AliveBytes
from finetune.trainers.memory.block_swap import BlockSwap, chosen
from finetune.trainers.memory.frozen_layers import FrozenLayer
from finetune.trainers.memory.placement import placing, settle
from finetune.trainers.memory.quantization import PACKED
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from support import tiny_flow
from support.running import losses_of
from torch import nn

CPU = torch.device("cpu")
TARGETS = {SD3Transformer2DModel: r".*attn\.(to_q|to_v|add_k_proj|to_out\.0)",
           FluxTransformer2DModel: r".*(to_q|to_k|proj_mlp)"}


def tiny(kind, layers=4):
    torch.manual_seed(0)
    if kind is SD3Transformer2DModel:
        return kind(sample_size=8, num_layers=layers, attention_head_dim=16, num_attention_heads=2, in_channels=4,
                    out_channels=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16,
                    pos_embed_max_size=16)
    return kind(patch_size=1, in_channels=16, num_layers=layers // 2, num_single_layers=layers, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6))


def inputs(kind):
    torch.manual_seed(1)
    common = dict(encoder_hidden_states=torch.randn(2, 5, 32), pooled_projections=torch.randn(2, 16), return_dict=False)
    if kind is SD3Transformer2DModel:
        return dict(hidden_states=torch.randn(2, 4, 8, 8), timestep=torch.tensor([300.0, 700.0]), **common)
    return dict(hidden_states=torch.randn(2, 16, 16), timestep=torch.tensor([0.3, 0.7]), img_ids=torch.zeros(16, 3),
                txt_ids=torch.zeros(5, 3), **common)


def blocks_of(model):
    return [*model.transformer_blocks, *getattr(model, "single_transformer_blocks", [])]


def steps_of(model, kind, checkpointing, steps=3, around=nullcontext):
    """Outputs without gradients, losses and adapters of a short training, with previews between the steps."""
    torch.manual_seed(2)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=TARGETS[kind], init_lora_weights=False), model)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer, seen = torch.optim.SGD(trained.values(), 0.1), []
    model.train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    for _ in range(steps):
        with torch.no_grad():
            seen.append(model(**inputs(kind))[0])
        with around():
            loss = model(**inputs(kind))[0].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(loss.detach())
    return [*seen, *(value.detach() for value in trained.values())]


@pytest.mark.parametrize("kind, home, precision, checkpointing, swapped", [
    (SD3Transformer2DModel, "disk", "same", False, 4), (SD3Transformer2DModel, "memory", "same", True, 3),
    (SD3Transformer2DModel, "memory", "int8", False, 4), (FluxTransformer2DModel, "disk", "same", True, 6),
    (FluxTransformer2DModel, "memory", "same", False, 1), (FluxTransformer2DModel, "disk", "fp8", True, 5),
])
def test_the_same_bits_as_without(kind, home, precision, checkpointing, swapped, tmp_path):
    def model():
        return tiny(kind).requires_grad_(False)

    plain, swapping = model(), model()
    settle(plain, placing(precision, torch.float32, CPU))
    blocks = blocks_of(swapping)
    swap = BlockSwap([blocks[number] for number in chosen(len(blocks), swapped)], PACKED[precision], torch.float32, CPU,
                     home, tmp_path)
    settle(swapping, placing(precision, torch.float32, CPU, swap))
    expected, found = steps_of(plain, kind, checkpointing), steps_of(swapping, kind, checkpointing)
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    assert len(swap.there) == min(2, swapped)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("checkpointing", [True, False])
def test_activations_that_wait_elsewhere(kind, checkpointing):
    """The bits are those without. Weights never go; the inputs of the blocks do."""
    moved = []

    class Watched(Offloaded):
        def _away(self, tensor):
            back = super()._away(tensor)
            if back().data_ptr() != tensor.data_ptr():
                moved.append(tensor.detach().clone())
            return back

    expected = steps_of(tiny(kind).requires_grad_(False), kind, checkpointing)
    model = tiny(kind).requires_grad_(False)
    found = steps_of(model, kind, checkpointing, around=lambda: Watched(smallest=256))
    assert all(map(torch.equal, found, expected))
    assert sum(each.numel() == 2 * 16 * 32 for each in moved) >= 3 * len(blocks_of(model))
    weights = [value for value in model.parameters() if value.dim() == 2 and not value.requires_grad]
    assert not any(torch.equal(each, weight) or torch.equal(each, weight.T) for each in moved for weight in weights)


def test_blocks_are_spread_and_come_before_they_are_asked_for(tmp_path):
    """Every block but the first is brought while the one before it computes; the first of a step is still there."""
    assert chosen(6, 2) == [1, 4] and chosen(5, 5) == chosen(5, 9) == [0, 1, 2, 3, 4] and chosen(57, 0) == []
    swap = BlockSwap([nn.Linear(16, 16) for _ in range(4)], None, torch.float32, CPU, "memory")
    brought = []
    for number, home in enumerate(swap.homes):
        home.bring = lambda room, number=number: (brought.append(number), lambda: None)[1]
    asked = [0, 0, 1, 2, 3, 3, 2, 1, 0] * 2
    late = []
    for block in asked:
        late += [block] if block not in swap.there else []
        swap.on_device(block)
    assert late == [0]
    assert brought == [0, 1, 2, 3, 1, 0, 2, 3, 1, 0]  # two stay from one step to the next
    swap.backward_follows = False
    late.clear()
    for block in [0, 1, 2, 3] * 3:
        late += [block] if block not in swap.there else []
        swap.on_device(block)
    assert late == []


def test_whoever_keeps_a_weight_keeps_its_numbers(tmp_path):
    """DoRA and tools read `weight`; what they hold does not change when the next block takes the room."""
    layers = [nn.Linear(16, 16).requires_grad_(False) for _ in range(3)]
    originals = [layer.weight.clone() for layer in layers]
    swap = BlockSwap(layers, None, torch.float32, CPU, "disk", tmp_path)
    settle(nn.ModuleList(layers), placing("same", torch.float32, CPU, swap))
    weights = [layer.weight for layer in layers]
    assert all(isinstance(layer, FrozenLayer) for layer in layers) and all(map(torch.equal, weights, originals))
    assert not list(Path(tmp_path).iterdir()), "the file has a name that a killed run would leave behind"


def test_a_lost_file_is_a_sentence(tmp_path):
    layers = [nn.Linear(16, 16).requires_grad_(False)]
    swap = BlockSwap(layers, None, torch.float32, CPU, "disk", tmp_path)
    settle(layers[0], placing("same", torch.float32, CPU, swap))
    swap.homes[0].file.truncate(8)
    with pytest.raises(UserError, match="Swapped blocks cannot be read back .* set swapped_blocks to 0"):
        layers[0](torch.randn(1, 16))


@pytest.mark.parametrize("precision", ["same", "int8", "fp8"])
@pytest.mark.parametrize("swapped", [0, 4])
def test_no_more_than_one_layer_is_there_twice(precision, swapped, tmp_path):
    """While a model without weights is filled, tensor by tensor, the bytes that are alive never exceed those of the
    finished model and one layer as read and as stored (when it is packed, also in float32, and its quotient)."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
    layers = list(model)
    swap = BlockSwap([layers[number] for number in chosen(8, swapped)], PACKED[precision], torch.bfloat16, CPU, "disk",
                     tmp_path) if swapped else None
    place = placing(precision, torch.bfloat16, CPU, swap)
    with AliveBytes() as alive:
        for layer in layers:
            place(layer, "weight", torch.randn(64, 64, dtype=torch.bfloat16))
    stored = {"same": 2, "int8": 1, "fp8": 1}[precision] * 64 * 64
    scales = 0 if precision == "same" else 64 * 4
    working = 2 * 64 * 64 + (0 if precision == "same" else 3 * 4 * 64 * 64)
    assert alive.most <= (8 - swapped) * (stored + scales) + working + 4096
    assert alive.most >= (8 - swapped) * stored


@pytest.mark.parametrize("family, memory", [
    ("sd1", dict()), ("sd3", dict(gradient_checkpointing=True)),
    ("flux", dict(frozen_precision="int8", text_precision="fp8")),
])
def test_runs_with_swapped_blocks(family, memory, tiny_bases, make_spec, tmp_path):
    """Losses and previews are those of a run without, to the last bit, and its file is the same."""
    flow = family in tiny_flow.FAMILIES
    base = recognize(str(tiny_flow.make_folder(family, tmp_path / family)), family) if flow else tiny_bases[family]
    parts = dict(method=specs.LoraSpec(rank=2, alpha=2, adapter="dora", targets="all with convolutions"),
                 previews=specs.PreviewSpec(prompts=("a cat",), every=3, sampler_steps=2))
    plain, one = losses_of(make_spec(base, name="plain", memory=specs.MemorySpec(**memory), **parts))
    swapped, other = losses_of(make_spec(
        base, name="swapped", memory=specs.MemorySpec(**memory, swapped_blocks=5), **parts))
    assert swapped == plain
    assert other.sheet_path(3).read_bytes() == one.sheet_path(3).read_bytes()
    first, second = load_file(one.artifact), load_file(other.artifact)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_refused_where_it_cannot_be(tiny_bases, make_spec):
    with pytest.raises(ValueError, match="swapped_blocks is for blocks that stay as they are"):
        make_spec(tiny_bases["sd1"], method=specs.FullSpec(), memory=specs.MemorySpec(swapped_blocks=1))
    with pytest.raises(ValueError, match="torch cannot compile blocks that come and go"):
        make_spec(tiny_bases["sd1"], memory=specs.MemorySpec(swapped_blocks=1, compile=True))
