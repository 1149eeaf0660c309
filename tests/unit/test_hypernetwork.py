"""Hypernetworks: where they begin, whether they can learn, what they act on, and their file."""
import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune.trainers import families, methods
from finetune.trainers import spec as specs
from finetune.trainers.artifacts.hypernetwork import read_hypernetwork, save_hypernetwork
from finetune.trainers.errors import UserError
from finetune.trainers.events import silent
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.methods.hypernetwork import Hypernetwork, Network, activates_output
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.run_folder import open_run
from finetune.trainers.spec import HypernetworkSpec
from finetune.trainers.training.run import train_run

ACTIVATIONS = HypernetworkSpec.model_fields["activation"].annotation.__args__
WITH_CROSS_ATTENTION = [name for name in families.NAMES if "hypernetwork" in families.get(name).capabilities]


def attached(base, spec):
    family = families.get(base.family)
    denoiser = family.load_denoiser(base, torch.float32)
    methods.make(spec, 1e-3, family).attach(Parts(family, denoiser, None, base), 0)
    return denoiser


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("activate_output", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_every_combination_begins_at_the_base_where_it_can_and_learns(activation, activate_output, layer_norm):
    """A start of zeros behind a ReLU would never leave them."""
    for initialization in ("normal", "xavier uniform", "kaiming normal"):
        spec = HypernetworkSpec(activation=activation, activate_output=activate_output, layer_norm=layer_norm,
                                initialization=initialization)
        torch.manual_seed(0)
        network, contexts, mixing = Network(32, spec), torch.randn(64, 32), torch.randn(32, 32) / 32**0.5
        if layer_norm or not activates_output(spec):
            assert not network(contexts).any()
        target = (contexts @ mixing).clamp(0, 0.9)  # within reach of every activation
        optimizer, losses = torch.optim.AdamW(network.parameters(), lr=1e-2), []
        for _ in range(60):
            loss = (network(contexts) - target).square().mean()
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < 0.7 * losses[0], (initialization, losses[::20])


def test_dropout_is_for_training_only_and_has_no_place_in_the_file():
    torch.manual_seed(0)
    network, contexts = Network(32, HypernetworkSpec(dropout=0.5)), torch.randn(4, 32)
    torch.nn.init.normal_(network.linear[-1].weight)
    assert not torch.equal(network(contexts), network(contexts))
    network.eval()
    assert torch.equal(network(contexts), network(contexts))
    assert list(network.state_dict()) == ["linear.0.weight", "linear.0.bias", "linear.1.weight", "linear.1.bias"]


@pytest.mark.parametrize("family", WITH_CROSS_ATTENTION)
def test_widths_are_those_of_the_real_layers(family, tiny_bases):
    """Of the tiny models and of those of full size (shapes only)."""
    with torch.device("meta"):
        full = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / family / "unet"))
    tiny = tiny_bases[family]
    for denoiser, base in (
        (families.get(family).load_denoiser(tiny, torch.float32), tiny),
        (full, tiny.model_copy(update={"layout": "single_file", "path": ""})),
    ):
        found = {"self-attention": set(), "cross-attention": set()}
        for name, module in denoiser.named_modules():
            if name.endswith(("attn1", "attn2")):
                found["self-attention" if name.endswith("attn1") else "cross-attention"].add(module.to_k.in_features)
        assert families.get(family).attention_widths(base) == found


@pytest.mark.parametrize("widths, expected", [
    ("all", ["32", "64"]), ("cross-attention", ["32"]), ("self-attention", ["32", "64"])])
def test_widths_are_chosen_and_an_ambiguous_one_is_told(widths, expected, tiny_bases, make_spec):
    method = HypernetworkSpec(widths=widths)
    assert list(attached(tiny_bases["sd1"], method).hypernetwork) == expected
    notes = Hypernetwork(method, 1e-3).check(families.get("sd1"), make_spec(tiny_bases["sd1"], method=method))
    assert [("width 32 in common" in note) for note in notes] == ([] if widths == "all" else [True])


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("family", WITH_CROSS_ATTENTION)
@torch.no_grad()
def test_the_same_added_to_all_keys_changes_nothing_so_it_is_not_trained(family, layer_norm, tiny_bases):
    spec, base = HypernetworkSpec(activation="mish", layer_norm=layer_norm), tiny_bases[family]
    denoiser, draw = attached(base, spec), torch.Generator().manual_seed(0)
    cross = denoiser.config.cross_attention_dim
    conditioning = Conditioning({
        "hidden": torch.randn((1, 77, cross), generator=draw), "pooled": torch.randn((1, 32), generator=draw),
        "sizes": torch.full((1, 6), 64.0)})

    def predict():
        latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        return families.get(family).predict(denoiser, latents, torch.tensor([500]), conditioning)

    before = predict()
    pairs = list(denoiser.hypernetwork.values())
    for keys, _ in pairs:
        bias = keys.linear[-1].bias
        assert not bias.requires_grad and not bias.any()
        bias.copy_(torch.randn(bias.shape, generator=draw))
    assert torch.allclose(predict(), before, atol=1e-5)
    for _, values in pairs:
        bias = values.linear[-1].bias
        assert bias.requires_grad
        bias.copy_(torch.randn(bias.shape, generator=draw))
    assert not torch.allclose(predict(), before, atol=1e-3)
    pair = attached(base, spec.model_copy(update={"activate_output": True, "layer_norm": False})).hypernetwork
    assert all(parameter.requires_grad for parameter in pair.parameters())  # behind an activation they are no constants


def test_a_layer_of_no_width_is_refused_before_anything_is_loaded(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sd1"], method=HypernetworkSpec(layer_structure=(1, 0.01, 1)))
    with pytest.raises(UserError, match="layer_structure holds 0.01"):
        train_run(spec, open_run(spec), lambda event: pytest.fail(str(event)) if event.event == "phase" else None)


@pytest.mark.parametrize("structure", [(1,), (1, 2), (2, 1), (1, 0, 1), (1, -1, 1), (1, 100, 1)])
def test_impossible_structures_are_sentences(structure):
    with pytest.raises(UserError, match="begins and ends with 1"):
        specs.checked(HypernetworkSpec, layer_structure=structure)


def test_half_precision_trains_networks_of_float32(tiny_bases, make_spec):
    spec = make_spec(tiny_bases["sdxl"], method=HypernetworkSpec(activation="swish", layer_norm=True),
                     memory=specs.MemorySpec(precision="bf16", gradient_checkpointing=True),
                     previews=specs.PreviewSpec(prompts=("a",), every=6, sampler_steps=2))
    run = open_run(spec)
    report = train_run(spec, run, silent)
    networks, facts = read_hypernetwork(run.artifact)
    assert {tensor.dtype for pair in networks.values() for state in pair for tensor in state.values()} == {torch.float32}
    assert sorted(networks) == list(report.widths) == [64] and report.change_norm > 0
    assert facts | {"sd_checkpoint_name": ""} == {
        "step": 6, "name": "run", "layer_structure": [1.0, 2.0, 1.0], "activation_func": "swish", "is_layer_norm": True,
        "weight_initialization": "Normal", "use_dropout": False, "last_layer_dropout": False, "activate_output": True,
        "sd_checkpoint": None, "sd_checkpoint_name": ""}


def test_values_that_are_no_numbers_are_refused_and_nothing_is_left(tmp_path):
    state = {"linear.0.weight": torch.tensor([[float("inf")]]), "linear.0.bias": torch.zeros(1)}
    with pytest.raises(UserError, match="linear.0.weight for the keys of width 64"):
        save_hypernetwork(tmp_path / "net.pt", {64: (state, state)}, {})
    assert not list(tmp_path.iterdir())


def test_a_slice_of_a_large_tensor_does_not_take_all_of_it_into_the_file(tmp_path):
    state = {"linear.0.weight": torch.zeros(1000, 1000)[:1, :1], "linear.0.bias": torch.zeros(1)}
    save_hypernetwork(tmp_path / "net.pt", {1: (state, state)}, {})
    assert (tmp_path / "net.pt").stat().st_size < 10_000


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"linear.0.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is not a hypernetwork"):
        read_hypernetwork(path)
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match="damaged"):
        read_hypernetwork(path)
    torch.save({64: Network(4, HypernetworkSpec())}, path)  # a pickled object, which could run code
    with pytest.raises(UserError, match="more than tensors"):
        read_hypernetwork(path)
