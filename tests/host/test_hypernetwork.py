"""Hypernetworks mean to the host what they meant in training: network by network, in a denoising call, in images."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from environment import describe
from finetune.benchmarks.pack import become_host
from finetune.trainers import families, methods
from finetune.trainers.families.conditioning import Conditioning
from finetune.trainers.families.recognition import recognize
from finetune.trainers.methods.protocol import Parts
from finetune.trainers.spec import HypernetworkSpec
from support.graphs import images_of, sampling, training_node

ACTIVATIONS = HypernetworkSpec.model_fields["activation"].annotation.__args__
STRUCTURES = ((1, 2, 1), (1, 1), (1, 0.5, 1.25, 1))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def comfy():
    """ComfyUI's modules in this process, beside the server."""
    become_host(describe().comfyui)
    from comfy_extras import nodes_hypernetwork

    return nodes_hypernetwork


def unet(family: str, cross: int) -> UNet2DConditionModel:
    """A small UNet of random weights that the host can build too: its attention heads and norms are of fixed sizes."""
    torch.manual_seed(1)
    shape = dict(block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=cross, sample_size=8)
    kinds = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                 up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    if family == "sd1":
        return UNet2DConditionModel(**shape, **kinds, attention_head_dim=8)
    if family == "sd2":
        return UNet2DConditionModel(**shape, **kinds, attention_head_dim=(1, 2), use_linear_projection=True)
    return UNet2DConditionModel(
        **shape, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(1, 2), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    )


def attached(denoiser, base, method_spec: HypernetworkSpec, folder: Path):
    """(the method's networks with weights of every kind, the path of their file)."""
    family = families.get(base.family)
    method = methods.make(method_spec, 1e-3, family)
    parts = Parts(family, denoiser, None, base)
    method.attach(parts, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in denoiser.hypernetwork.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    saved = method.save(parts, folder, "net", {"ss_steps": "12"})
    assert saved.change_norm > 0
    return denoiser.hypernetwork.eval(), folder / saved.files[0].name


def small_base(folder: Path, family: str, denoiser: UNet2DConditionModel):
    """What a run would know about the denoiser: its config."""
    denoiser.save_config(folder / "unet")
    return recognize(str(ROOT / "demo_base"), "small").model_copy(update={"family": family, "path": str(folder)})


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_host_builds_the_networks_that_were_trained(comfy, activation, tmp_path):
    """Every combination of activation, activated output, layer norm and structure; exact, and A1111's numbering too."""
    denoiser = unet("sd1", 96)
    base, generator = small_base(tmp_path, "sd1", denoiser), torch.Generator().manual_seed(0)
    for structure in STRUCTURES:
        for activate_output in (False, True):
            for layer_norm in (False, True):
                spec = HypernetworkSpec(layer_structure=structure, activation=activation, layer_norm=layer_norm,
                                        activate_output=activate_output, dropout=0.5)
                networks, path = attached(denoiser, base, spec, tmp_path)
                patch = comfy.load_hypernetwork_patch(str(path), 0.7)
                assert set(patch.hypernet) == {64, 96, 128} == {int(width) for width in networks}
                file = torch.load(path, weights_only=True)
                for width, ours in networks.items():
                    contexts = torch.randn((2, 5, int(width)), generator=generator)
                    _, keys, values = patch(None, contexts, contexts, {})
                    for network, given, theirs, state in zip(ours, (keys, values), patch.hypernet[int(width)],
                                                             file[int(width)]):
                        expected = contexts + 0.7 * network(contexts)
                        assert torch.allclose(given, expected, atol=1e-6, rtol=1e-6)
                        assert (expected - contexts).abs().max() > 1e-3
                        assert list(state) == a1111_names(file) and len(theirs) == len(network.linear)


def a1111_names(file: dict) -> list[str]:
    """Names of the weights in the Sequential that A1111 would build from a file's own description (without dropout)."""
    layers, count = [], len(file["layer_structure"]) - 1
    assert file["use_dropout"] is False
    for number in range(count):
        active = file["activation_func"] != "linear" and (number < count - 1 or file["activate_output"])
        layers += ["weights", *(["activation"] if active else []), *(["weights"] if file["is_layer_norm"] else [])]
    return [f"linear.{place}.{part}" for place, kind in enumerate(layers) if kind == "weights"
            for part in ("weight", "bias")]


@pytest.mark.parametrize("family, cross", [("sd1", 96), ("sd1", 128), ("sd2", 96), ("sdxl", 96)])
@pytest.mark.parametrize("widths", ["all", "cross-attention", "self-attention"])
@torch.no_grad()
def test_a_denoising_call_of_the_host_equals_ours(comfy, family, cross, widths, tmp_path):
    """With a width of its own for cross-attention, and with one that self-attention has too."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.utils
    from finetune.nodes.host import native

    denoiser = unet(family, cross).eval()
    config = dict(denoiser.config)
    weights = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    names = comfy.utils.unet_to_diffusers(native.host_unet_config(config))
    _, model = native.host_model(config, family, {})
    model.diffusion_model.load_state_dict({names[name]: tensor for name, tensor in weights.items()})
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)

    generator = torch.Generator().manual_seed(9)
    latents, hidden = torch.randn((2, 4, 8, 8), generator=generator), torch.randn((2, 77, cross), generator=generator)
    timesteps, tensors, added = torch.tensor([700, 20]), {"hidden": hidden}, {}
    if family == "sdxl":
        pooled, sizes = torch.randn((2, 32), generator=generator), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        tensors |= {"pooled": pooled, "sizes": sizes}
        added["y"] = torch.cat([pooled, denoiser.add_time_proj(sizes.flatten()).reshape(2, -1)], dim=1)

    def ours():
        return families.get(family).predict(denoiser, latents, timesteps, Conditioning(tensors))

    def theirs(patched):
        options = patched.model_options.get("transformer_options", {})
        return model.diffusion_model(latents, timesteps.float(), context=hidden, transformer_options=options, **added)

    plain = ours()
    assert torch.allclose(theirs(patcher), plain, atol=1e-5)
    spec = HypernetworkSpec(activation="mish", layer_norm=True, widths=widths)
    _, path = attached(denoiser, small_base(tmp_path, family, denoiser), spec, tmp_path)
    patch, patched = comfy_patch(path), patcher.clone()
    patched.set_model_attn1_patch(patch)
    patched.set_model_attn2_patch(patch)
    changed = ours()
    assert (changed - plain).abs().max() > 1e-2
    assert torch.allclose(theirs(patched), changed, atol=1e-5)


def comfy_patch(path: Path):
    from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch

    return load_hypernetwork_patch(str(path), 1.0)


def test_the_hosts_silent_refusal_is_noticed(comfy, tmp_path):
    from finetune.nodes import host

    path = tmp_path / "net.pt"
    denoiser = unet("sd1", 96)
    attached(denoiser, small_base(tmp_path, "sd1", denoiser), HypernetworkSpec(), tmp_path)
    assert host.unloaded_widths(path, [64, 96, 128]) == []
    assert host.unloaded_widths(path, [64, 320]) == ["width 320"]
    torch.save({**torch.load(path, weights_only=True), "activation_func": None}, path)
    assert host.unloaded_widths(path, [64, 96]) == ["width 64", "width 96"]


# ---- on a real server ----------------------------------------------------------------------------------------------

def with_hypernetwork(prompt: dict, name: str, file, strength: float) -> dict:
    return {**prompt, name: {"class_type": "HypernetworkLoader", "inputs": {
        "model": ["demo", 0], "hypernetwork_name": file, "strength": strength}}}


def test_the_core_applies_the_file_and_strength_zero_restores_the_base(host):
    prompt = training_node("FineTuneTrainHypernetwork", name="hyper", steps=4, learning_rate=1e-2, layer_structure="1, 2, 1",
                           activation="swish", layer_norm=True, activate_output=False, attention_layers="all",
                           checkpoint_every=2)
    prompt = with_hypernetwork(with_hypernetwork(prompt, "on", ["train", 0], 1.0), "off", ["train", 0], 0.0)
    prompt["loss"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}}
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "plain")
    prompt = sampling(sampling(prompt, ["on", 0], ["demo", 1], "on"), ["off", 0], ["demo", 1], "off")
    outputs = host.run(prompt)
    plain, on, off = (images_of(host, outputs, f"{name}/save") for name in ("plain", "on", "off"))
    assert np.array_equal(plain, off)
    assert np.abs(plain - on).mean() > 0.01
    assert outputs["train"]["hypernetwork"] == ["hyper.pt"] and outputs["loss"]["images"]
    assert (host.base_directory / "models" / "hypernetworks" / "hyper.pt").exists()
    assert outputs["train"]["text"][0].startswith(
        "hyper.pt: loads in ComfyUI for the widths 64, 128, 192; its effect is not zero")
    assert "Unsupported Hypernetwork" not in host.log.read_text(encoding="utf-8", errors="replace")
    report = json.loads((host.output / "finetune" / "hyper" / "report.json").read_text(encoding="utf-8"))
    assert report["change_norm"] > 0 and report["unmatched_keys"] == []
    # by its name in the list too, as another graph would load it
    again = sampling(with_hypernetwork({"demo": prompt["demo"]}, "on", "hyper.pt", 1.0), ["on", 0], ["demo", 1], "named")
    assert np.array_equal(images_of(host, host.run(again), "named/save"), on)
