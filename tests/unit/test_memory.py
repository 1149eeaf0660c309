"""Weights stored in 8 bits, compiling: what they save, what they change, and what they are refused for."""
import pytest
import torch
import torch.nn.functional as F
from finetune.trainers import spec as specs
from finetune.trainers.errors import UserError
from finetune.trainers.families import get as get_family
from finetune.trainers.memory import quantization
from finetune.trainers.memory.placement import placing, settle
from finetune.trainers.training import compilation
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from support.running import losses_of, training_of

PRECISIONS, CPU = ("fp8", "int8"), torch.device("cpu")


def layers():
    torch.manual_seed(0)
    return [
        (torch.nn.Linear(48, 32), torch.randn(3, 5, 48)), (torch.nn.Linear(48, 32, bias=False), torch.randn(3, 48)),
        (torch.nn.Conv2d(16, 24, 3, padding=1, stride=2), torch.randn(2, 16, 9, 9)),
        (torch.nn.Conv2d(32, 32, 3, dilation=2, groups=2), torch.randn(2, 32, 9, 9)),
    ]


@pytest.mark.parametrize("precision, bound", [("int8", 0.5 / 127), ("fp8", 1 / 16)])
def test_rounding_is_bounded(precision, bound):
    """int8: half a step of the channel's largest weight. fp8: e4m3 has 3 bits after the point, so 1/16 of each weight that
    is not far smaller than the largest (its smallest normal number is 448 / 2^15, and half of the range may be empty)."""
    weight = torch.randn(64, 64, 3, 3) * torch.logspace(-6, 0, 64)[:, None, None, None]
    packed, scale = quantization.pack(weight, precision)
    assert packed.element_size() == 1 and packed.shape == weight.shape
    largest = weight.abs().amax(dim=(1, 2, 3), keepdim=True)
    error = (quantization.unpack(packed, scale, torch.float32) - weight).abs()
    allowed = bound * largest if precision == "int8" else bound * torch.maximum(weight.abs(), largest / 2**13)
    assert (error <= allowed * 1.001).all() and error.any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_layers_compute_with_the_unpacked_weight(precision, dtype):
    """Outputs and gradients are those of plain layers with the rounded weights, by autograd's own formulas."""
    for layer, inputs in layers():
        layer, inputs = layer.to(dtype).requires_grad_(False), inputs.to(dtype)
        original = layer.weight.clone()
        module = torch.nn.ModuleList([layer])
        settle(module, placing(precision, dtype, CPU))
        weight = module[0].weight
        assert weight.dtype == dtype and weight.shape == original.shape and 0 < (weight - original).abs().max() < 0.1
        one, other = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
        if isinstance(layer, torch.nn.Linear):
            expected = F.linear(other, weight, layer.bias)
        else:
            expected = F.conv2d(other, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        output = module[0](one)
        assert torch.equal(output, expected)
        draw = torch.randn_like(output)
        output.backward(draw)
        expected.backward(draw)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        assert torch.allclose(one.grad, other.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_adapters_read_the_unpacked_weight(precision):
    """DoRA divides by the length of the base's columns: it sees those of the rounded weights, not of bytes."""
    def build(weights=None):
        torch.manual_seed(1)
        module = torch.nn.ModuleList([torch.nn.Linear(48, 32), torch.nn.Conv2d(16, 24, 3)]).requires_grad_(False)
        for layer, weight in zip(module, weights or ()):
            layer.weight.data.copy_(weight)
        config = LoraConfig(r=4, target_modules=["0", "1"], use_dora=True, init_lora_weights="gaussian")
        inject_adapter_in_model(config, module)
        for name, parameter in module.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                torch.nn.init.uniform_(parameter, 0.1, 0.5)
        return module

    packed = build()
    settle(packed, placing(precision, torch.float32, CPU))
    plain = build([layer.base_layer.weight for layer in packed])
    for number, inputs in enumerate((torch.randn(3, 48), torch.randn(2, 16, 8, 8))):
        assert type(packed[number].base_layer).__name__.startswith("Frozen")
        one, other = packed[number](inputs), plain[number](inputs)
        assert torch.allclose(one, other, atol=1e-5)
        one.sum().backward()
        other.sum().backward()
    expected = {name: value.grad for name, value in plain.named_parameters() if value.requires_grad}
    assert {name for name, value in packed.named_parameters() if value.requires_grad} == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(packed.get_parameter(name).grad, gradient, atol=1e-4), name


def test_what_trains_or_is_narrow_stays():
    module = torch.nn.ModuleList([torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), torch.nn.Conv2d(4, 32, 3),
                                  torch.nn.LayerNorm(32)])
    module[1:].requires_grad_(False)
    settle(module, placing("int8", torch.float32, CPU))
    assert [type(each).__name__ for each in module] == ["Linear", "FrozenLinear", "Conv2d", "LayerNorm"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_backward_pass_keeps_no_unpacked_weight(precision):
    """Of a frozen stack, autograd keeps no tensor of a weight's size; of plain frozen layers it keeps every weight."""
    def kept(module, inputs):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda x: x):
            module(inputs).sum().backward()
        return sizes

    module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4))).requires_grad_(False)
    inputs = torch.randn(2, 64, requires_grad=True)
    assert kept(module, inputs).count(64 * 64) == 4
    settle(module, placing(precision, torch.float32, CPU))
    assert kept(module, inputs).count(64 * 64) == 0


def stored_bytes(module) -> int:
    return sum(value.numel() * value.element_size() for value in module.parameters() if not value.requires_grad)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family, method, checkpointing", [
    ("sd1", specs.LoraSpec(rank=2, alpha=2, targets="all with convolutions", text_encoder_learning_rate=1e-3), False),
    ("sdxl", specs.LoraSpec(rank=2, alpha=2), True),
    *(("sd1", specs.LoraSpec(rank=2, alpha=2, adapter=adapter, targets="all with convolutions"), False)
      for adapter in ("dora", "loha", "lokr")),
])
def test_training_beside_packed_weights(precision, family, method, checkpointing, tiny_bases, make_spec):
    """The losses stay within a fiftieth of those beside the same weights unpacked; adapters stay float32 and learn; the
    packed weights are the same afterwards, and take about a quarter of float32's bytes."""
    plain, _ = losses_of(make_spec(tiny_bases[family], name="plain", method=method))
    training = training_of(make_spec(tiny_bases[family], method=method, memory=specs.MemorySpec(
        frozen_precision=precision, gradient_checkpointing=checkpointing)))
    losses, attach, before = [], training._attach, {}
    training.emit = lambda event: losses.append(event.loss) if event.event == "step" else None

    def remember():
        attach()
        before.update({name: value.detach().clone() for name, value in training.parts.denoiser.named_parameters()})

    training._attach = remember
    training.execute()
    assert losses == pytest.approx(plain, rel=2e-2) and losses != plain
    denoiser = training.parts.denoiser
    assert {value.dtype for value in training.parameters.values()} == {torch.float32}
    declared = {id(value) for value in training.parameters.values()}
    for name, value in denoiser.named_parameters():
        assert torch.equal(value, before[name]) != (id(value) in declared), name
    whole = stored_bytes(get_family(family).load_denoiser(tiny_bases[family], torch.float32))
    assert stored_bytes(denoiser) < 0.35 * whole
    file = load_file(training.run.artifact)
    assert all(value.isfinite().all() for value in file.values())


def test_refused_for_weights_that_train(tiny_bases, make_spec):
    with pytest.raises(ValueError, match="full fine-tuning trains the denoiser's own weights"):
        make_spec(tiny_bases["sd1"], method=specs.FullSpec(), memory=specs.MemorySpec(frozen_precision="fp8"))


def test_a_device_without_these_numbers_is_a_sentence(monkeypatch):
    def fail(*_):
        raise TypeError("no Float8")

    monkeypatch.setattr(quantization, "pack", fail)
    with pytest.raises(UserError, match=r"This device \(cpu\) cannot store weights in fp8. Set frozen_precision to int8 or"):
        quantization.require_support("fp8", torch.device("cpu"))


def test_without_a_compiler(monkeypatch, tiny_bases, make_spec):
    """torch is asked in earnest, with a compiler that is not there."""
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no such compiler"))
    spec = make_spec(tiny_bases["sd1"], memory=specs.MemorySpec(compile=True))
    with pytest.raises(UserError, match="compile is on, but torch cannot compile on this computer .*switch compile off"):
        training_of(spec)


def test_compiled_training(tiny_bases, make_spec, monkeypatch):
    """Traced by torch.compile, run without code generation, which takes minutes: losses and names stay the same."""
    monkeypatch.setattr(compilation, "require_compiler", lambda device: None)
    compiled, module_compile = [], torch.nn.Module.compile

    def traced(module):
        compiled.append(type(module).__name__)
        module_compile(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    parts = dict(training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64),
                 checkpoints=specs.CheckpointSpec(every=1))
    plain, one = losses_of(make_spec(tiny_bases["sd1"], name="plain", memory=specs.MemorySpec(frozen_precision="int8"),
                                     **parts))
    fast, other = losses_of(make_spec(tiny_bases["sd1"], memory=specs.MemorySpec(frozen_precision="int8", compile=True),
                                      **parts))
    assert compiled == ["UNet2DConditionModel"] and fast == pytest.approx(plain, abs=1e-5)
    assert load_file(one.artifact).keys() == load_file(other.artifact).keys()
    (_, saved), (_, expected) = other.load_state(), one.load_state()
    assert saved["parameters"].keys() == expected["parameters"].keys()
