"""Kinds of adapters and control by layer, against closed forms. That they act in ComfyUI: tests/host/test_adapters.py."""
import json

import pytest
import torch
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.adapters.dora import Columns, DoraWeight, compare_columns
from finetune.trainers.artifacts.adapters.loha import LohaWeight
from finetune.trainers.artifacts.adapters.lokr import LokrWeight
from finetune.trainers.artifacts.adapters.lora import LoraWeight
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.artifacts.metadata import lora_metadata
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.protocol import TextEncoders
from finetune.trainers.methods import adapters
from finetune.trainers.methods.adapters.dora import Dora, add_lengths
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.optimization.optimizers import make_optimizer
from finetune.trainers.run_folder import open_run
from finetune.trainers.training.run import train_run
from peft import LoraConfig, inject_adapter_in_model
from pydantic import ValidationError
from safetensors import safe_open
from support import tiny
from torch import nn
from transformers import CLIPTextModel

EVERYTHING = "all with convolutions"


def attached(family="sd1", dtype=torch.float32, text=False, **fields):
    """(method, parts, groups) of a tiny model with fresh adapters; learning rates 1e-4 and 1e-5."""
    fields = {"rank": 4, "alpha": 2, "targets": EVERYTHING, "text_encoder_learning_rate": 1e-5 if text else 0, **fields}
    method = methods.make(specs.LoraSpec(**fields), 1e-4, families.get(family))
    torch.manual_seed(3)
    encoders = {"te": CLIPTextModel(tiny.text_config())}
    unet = tiny.make_unet(family).to(dtype)
    parts = Parts(families.get(family), unet, TextEncoders({}, encoders if text else {}), None)
    return method, parts, method.attach(parts, seed=0)


def disturbed(module: nn.Module, size=0.05):
    """Move all trained values away from where they start."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def layers_of(parts) -> dict:
    return dict(adapters.adapter_layers(parts.denoiser))


def file_of(method, parts, tmp_path) -> tuple[dict, dict]:
    saved = method.save(parts, tmp_path, "file", {})
    with safe_open(tmp_path / saved.files[0].name, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def product(down, up):
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


# ---- all kinds -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr"])
def test_adapters_start_from_the_base_and_have_the_rank_that_is_asked(adapter):
    """The rank may be larger than a layer. DoRA's lengths start as the base's norms, to the last bit."""
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, tiny.WIDTH))
    before = tiny.make_unet("sd1").eval()(*inputs).sample
    _, parts, _ = attached(adapter=adapter, rank=200, alpha=200)
    assert torch.equal(parts.denoiser.eval()(*inputs).sample, before)
    disturbed(parts.denoiser)
    assert not torch.allclose(parts.denoiser(*inputs).sample, before, atol=1e-2)


@pytest.mark.parametrize("adapter", ["dora", "loha", "lokr"])
def test_half_precision_base(adapter, tiny_bases, make_spec):
    """The adapters are float32; training in bf16 with dropout and gradient checkpointing learns something finite."""
    fields = dict(rank=2, alpha=2, adapter=adapter, targets=EVERYTHING, dropout=0.2)
    _, parts, _ = attached(dtype=torch.bfloat16, **fields)
    assert {value.dtype for value in parts.denoiser.parameters() if value.requires_grad} == {torch.float32}
    method = specs.LoraSpec(**fields, text_encoder_learning_rate=1e-3)
    spec = make_spec(tiny_bases["sdxl"], method=method, training=specs.TrainingSpec(steps=2, batch_size=2, resolution=64),
                     memory=specs.MemorySpec(precision="bf16", gradient_checkpointing=True))
    run = open_run(spec)
    report = train_run(spec, run, silent)
    assert 0 < report.change_norm < 100


# ---- ranks, scales and rates ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("fields, linear, convolution", [
    ({}, (4, 2.0), (4, 2.0)),
    ({"convolution_rank": 8}, (4, 2.0), (8, 4.0)),
    ({"convolution_rank": 8, "convolution_alpha": 1}, (4, 2.0), (8, 1.0)),
    ({"convolution_alpha": 1}, (4, 2.0), (4, 1.0)),
    ({"rank_stabilized": True}, (4, 2 * 2.0), (4, 2 * 2.0)),
    ({"rank_stabilized": True, "convolution_rank": 16}, (4, 2 * 2.0), (16, 4 * 2.0)),
    ({"block_ranks": "down=16"}, (16, 8.0), (16, 8.0)),
    ({"block_ranks": "down=16", "convolution_rank": 8, "convolution_alpha": 1}, (16, 8.0), (8, 1.0)),
    ({"block_ranks": "down=16", "rank_stabilized": True}, (16, 4 * 2.0), (16, 4 * 2.0)),
])
def test_ranks_and_alphas_in_the_file(fields, linear, convolution, tmp_path):
    """File readers scale with alpha / rank: that is alpha / √rank of the layer with rank-stabilized scaling."""
    method, parts, _ = attached(**fields, file_precision="fp32")
    tensors, _ = file_of(method, parts, tmp_path)
    for layer, (rank, alpha) in (("attentions_0_transformer_blocks_0_attn1_to_q", linear),
                                 ("attentions_0_proj_in", linear), ("resnets_0_conv1", convolution)):
        assert len(tensors[f"lora_unet_down_blocks_0_{layer}.lora_down.weight"]) == rank, layer
        assert tensors[f"lora_unet_down_blocks_0_{layer}.alpha"].item() == alpha, layer


def test_rank_stabilized_layers_act_with_alpha_over_root_rank():
    _, parts, _ = attached(rank=9, alpha=2, rank_stabilized=True)
    disturbed(parts.denoiser)
    layer = next(layer for name, layer in layers_of(parts).items() if name.endswith("to_q"))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    inputs = torch.randn(5, layer.in_features)
    expected = layer.get_base_layer()(inputs) + 2 / 9**0.5 * inputs @ product(down, up).T
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_ranks_by_block():
    """The more exact name wins, 0 leaves a block out, and the text encoder is not concerned."""
    _, parts, _ = attached(text=True, targets="attention", block_ranks="down=8, up=0, up.1=2, mid=0")
    ranks = {families.get("sd1").block_of(name): layer.r["default"] for name, layer in layers_of(parts).items()}
    assert ranks == {"down.0": 8, "up.1": 2}
    assert {layer.r["default"] for _, layer in adapters.adapter_layers(parts.text.encoders["te"])} == {4}


def test_rates_by_block_and_of_lora_plus():
    """Rates as the optimizer gets them: of the up factors `plus_ratio` times the others, of blocks by their factor."""
    _, parts, groups = attached(text=True, block_rates="down=0.5, mid=2", plus_ratio=16)
    names = [group.name for group in groups]
    assert len(names) == len(set(names)) and names[0] == "denoiser" and groups[0].learning_rate == 1e-4
    rates = {id(parameter): group["lr"] for group in make_optimizer(specs.OptimizerSpec(), groups, 10).param_groups
             for parameter in group["params"]}
    block_rates = {"down": 0.5, "mid": 2.0, "up": 1.0, "other": 1.0}
    for name, layer in layers_of(parts).items():
        rate = 1e-4 * block_rates[families.get("sd1").block_of(name).split(".")[0]]
        assert rates[id(layer.lora_A["default"].weight)] == pytest.approx(rate)
        assert rates[id(layer.lora_B["default"].weight)] == pytest.approx(16 * rate)
    for _, layer in adapters.adapter_layers(parts.text.encoders["te"]):
        assert rates[id(layer.lora_A["default"].weight)] == pytest.approx(1e-5)
        assert rates[id(layer.lora_B["default"].weight)] == pytest.approx(16e-5)
    trained = [parameter for module in (parts.denoiser, parts.text) for parameter in module.parameters()
               if parameter.requires_grad]
    assert len(rates) == len(trained)


def test_without_control_by_layer_there_is_one_group_for_each_module():
    assert [group.name for group in attached(text=True, adapter="dora")[2]] == ["denoiser", "te"]


# ---- DoRA ----------------------------------------------------------------------------------------------------------

def dora_layer(plain: nn.Module, rank=3, alpha=6.0) -> nn.Module:
    holder = nn.Sequential(plain)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"]), holder, adapter_name="default")
    add_lengths(holder[0], "default")
    return holder[0]


@pytest.mark.parametrize("plain", [nn.Linear(6, 6), nn.Linear(5, 7), nn.Conv2d(4, 6, 3, stride=2, padding=1),
                                   nn.Conv2d(4, 4, 1)], ids=str)
def test_dora_is_the_decomposed_weight_of_the_paper(plain):
    """Output and gradients equal those of W' = m · (W + s B A) / c with c held constant (arXiv:2402.09353, eq. 5 and 11),
    c and m over input columns."""
    layer = dora_layer(plain)
    disturbed(layer, 0.3)
    inputs = torch.randn(3, plain.in_features) if isinstance(plain, nn.Linear) else torch.randn(2, plain.in_channels, 6, 6)
    down, up, change = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.lengths.change
    layer(inputs).square().sum().backward()
    got = [value.grad.clone() for value in (down, up, change)]
    for value in (down, up, change):
        value.grad = None
    sides = tuple(side for side in range(plain.weight.ndim) if side != 1)
    merged = plain.weight + 2.0 * product(down, up)
    constant = torch.linalg.vector_norm(merged.detach(), dim=sides, keepdim=True)
    length = torch.linalg.vector_norm(plain.weight.detach(), dim=sides, keepdim=True) + change.view(constant.shape)
    weight = merged * (length / constant)
    expected = (nn.functional.linear(inputs, weight, plain.bias) if isinstance(plain, nn.Linear) else
                nn.functional.conv2d(inputs, weight, plain.bias, plain.stride, plain.padding))
    assert torch.allclose(layer(inputs), expected, atol=1e-5)
    expected.square().sum().backward()
    for one, value in zip(got, (down, up, change)):
        assert torch.allclose(one, value.grad, rtol=1e-4, atol=1e-4)
    weight_of = Dora().weight("a", layer)
    assert weight_of.change_norm() == pytest.approx((weight - plain.weight).norm().item(), rel=1e-4)
    assert weight_of.lengths.shape == constant.shape


def test_dora_over_dead_columns_and_half_precision():
    """A column of zeros gives no division by zero; norms are those of the stored weight, in float32."""
    plain = nn.Linear(6, 5, bias=False)
    plain.weight.data[:, 2] = 0
    plain.weight.data = plain.weight.data.to(torch.bfloat16)
    layer = dora_layer(plain)
    inputs = torch.randn(4, 6, dtype=torch.bfloat16)
    assert torch.equal(layer(inputs), plain(inputs))
    layer(inputs).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in layer.parameters() if value.grad is not None)
    norms = layer.lengths.value()
    assert norms.dtype == torch.float32 and torch.allclose(norms, plain.weight.float().norm(dim=0), atol=1e-6)
    disturbed(layer, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer.lengths.columns(layer).norms()
    assert torch.equal(inside, layer.lengths.columns(layer).norms())


def test_columns_are_compared_without_the_product():
    generator = torch.Generator().manual_seed(0)
    weight, down, up = (torch.randn(shape, generator=generator) for shape in ((5, 4, 3, 3), (2, 4, 3, 3), (5, 2, 1, 1)))
    change = 0.7 * product(down, up)
    columns = compare_columns(weight, down, up, 0.7)
    assert torch.allclose(columns.norms(), (weight + change).transpose(0, 1).flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.allclose(columns.product, (weight * change).sum(dim=(0, 2, 3)), rtol=1e-4, atol=1e-4)


# ---- files ---------------------------------------------------------------------------------------------------------

def test_change_norms_are_those_of_the_products():
    generator = torch.Generator().manual_seed(0)
    a, c = (torch.randn((300, 3), generator=generator) for _ in range(2))
    b, d = (torch.randn((3, 8), generator=generator) for _ in range(2))
    expected = (1.5 / 3 * (a @ b) * (c @ d)).norm().item()
    assert LohaWeight("a", a, b, c, d, 1.5).change_norm() == pytest.approx(expected, rel=1e-5)
    small, whole = torch.randn((2, 4), generator=generator), torch.randn((3, 2, 3, 3), generator=generator)
    expected = (0.3 * torch.kron(small[..., None, None], whole)).norm().item()
    assert LokrWeight("a", small, whole, 0.3).change_norm() == pytest.approx(expected, rel=1e-5)
    expected = (0.3 * torch.kron(small, a @ b)).norm().item()
    assert LokrWeight("a", small, (a, b), 0.3).change_norm() == pytest.approx(expected, rel=1e-5)
    lora = LoraWeight("a", b, a * 0, 2.0)
    same = Columns(torch.rand(8, generator=generator), torch.zeros(8), torch.zeros(8))
    assert DoraWeight(lora, same.norms()[None], same).change_norm() == 0


@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr"])
def test_dropout_is_for_training_and_as_often_as_asked(adapter):
    """Without it a network in training computes what it computes in use."""
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, tiny.WIDTH))
    for dropout in (0.0, 0.5):
        _, parts, _ = attached(adapter=adapter, dropout=dropout)
        disturbed(parts.denoiser)
        used, trained = parts.denoiser.eval()(*inputs).sample, parts.denoiser.train()(*inputs).sample
        assert torch.allclose(used, trained, atol=1e-5) == (dropout == 0)
        assert torch.equal(parts.denoiser.eval()(*inputs).sample, used)


@pytest.mark.parametrize("adapter", ["lora", "loha", "lokr"])
def test_a_file_holds_the_change_that_was_trained(adapter, tmp_path):
    """Of every layer, with an alpha that is not the rank: read back, it is what peft adds to the base's weight."""
    method, parts, _ = attached(adapter=adapter, rank=2, alpha=0.5, file_precision="fp32", text=True)
    disturbed(parts.denoiser)
    method.save(parts, tmp_path, "file", {})
    stored, family = read_lora(tmp_path / "file.safetensors").layers, families.get("sd1")
    for name, layer in layers_of(parts).items():
        change = layer.get_delta_weight(adapters.ADAPTER).detach().flatten(1)
        found = stored.pop(family.denoiser_key(parts.denoiser, name)).change().flatten(1)
        torch.testing.assert_close(found.reshape(change.shape), change, rtol=1e-4, atol=1e-7)
        assert change.abs().max() > 1e-6
    assert stored and all(key.startswith("lora_te_") for key in stored)


def test_lokr_has_its_scale_where_readers_look_for_it():
    """Without a rank in the file nobody reads alpha; with one, alpha / rank."""
    small, whole, pair = torch.ones(2, 2), torch.ones(3, 3), (torch.ones(3, 4), torch.ones(4, 3))
    tensors = LokrWeight("a", small, whole, 0.25).tensors(torch.float32)
    assert torch.equal(torch.kron(tensors["a.lokr_w1"], tensors["a.lokr_w2"]), torch.full((6, 6), 0.25))
    tensors = LokrWeight("a", small, pair, 0.25).tensors(torch.float32)
    assert tensors["a.alpha"].item() / len(tensors["a.lokr_w2_b"]) == 0.25 and torch.equal(tensors["a.lokr_w1"], small)


def test_what_half_precision_would_spoil_stays_exact(tmp_path):
    """Rounded lengths would rescale the base, a rounded alpha the adapter."""
    method, parts, _ = attached(adapter="dora", rank=3, alpha=1, rank_stabilized=True, file_precision="fp16")
    tensors, _ = file_of(method, parts, tmp_path)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert tensors[f"{layer}.dora_scale"].dtype == torch.float32 and tensors[f"{layer}.dora_scale"].shape == (1, 32)
    assert tensors[f"{layer}.alpha"].item() == pytest.approx(3**0.5, rel=1e-7)
    assert tensors[f"{layer}.lora_down.weight"].dtype == torch.float16


@pytest.mark.parametrize("fields, module, arguments", [
    ({"adapter": "lora", "convolution_rank": 4}, "networks.lora", {"conv_dim": "4"}),
    ({"adapter": "dora"}, "lycoris.kohya", {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"}),
    ({"adapter": "loha"}, "lycoris.kohya", {"algo": "loha"}),
    ({"adapter": "lokr", "kronecker_factor": 8}, "lycoris.kohya", {"algo": "lokr", "factor": "8"}),
    ({"block_ranks": "down=4, up.1=8", "plus_ratio": 16}, "networks.lora",
     {"block_ranks": "down=4, up.1=8", "loraplus_lr_ratio": "16.0"}),
])
def test_metadata_names_the_kind(fields, module, arguments):
    metadata = lora_metadata(specs.LoraSpec(**fields), families.get("sd1").metadata)
    assert metadata["ss_network_module"] == module
    assert json.loads(metadata["ss_network_args"]) == {"targets": "attention", **arguments}


# ---- refusals ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fields, words", [
    ({"block_ranks": "left=4"}, "block_ranks names 'left', which is no block of tiny sd1. Its blocks are down.0, down.1"),
    ({"block_rates": "up.7=2"}, "block_rates names 'up.7'"),
    ({"block_ranks": "down=0, mid=0, up=0"}, "gives every layer that would be trained the rank 0"),
])
def test_blocks_that_are_not_there(fields, words, tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], method=specs.LoraSpec(**fields))
    with pytest.raises(UserError, match=words):
        train_run(spec, open_run(spec), silent)


def test_a_convolution_rank_without_convolutions_is_noted(tiny_bases, make_spec):
    method = methods.make(specs.LoraSpec(convolution_rank=4), 1e-4, families.get("sd1"))
    assert "no convolutions" in method.check(families.get("sd1"), make_spec(tiny_bases["sd1"]))[0]


@pytest.mark.parametrize("fields, words", [
    ({"block_ranks": "down=1.5"}, "the rank of 'down' is 1.5; write a whole number"),
    ({"block_ranks": "down=2000"}, "from 0 to 1024"), ({"block_rates": "mid=0"}, "write mid=0 into block_ranks"),
    ({"kronecker_factor": 0}, "write a size of at least 1"),
    ({"adapter": "lokr", "rank_stabilized": True}, "not for lokr"),
])
def test_values_that_make_no_sense(fields, words):
    with pytest.raises(ValidationError, match=words):
        specs.LoraSpec(**fields)
