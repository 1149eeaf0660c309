"""The node Assistant LoRA on a real server: what it says of a file, and a run with it."""
import pytest
import torch
from host_server import NodeFailed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.graphs import DEMO_BASE, training

LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def adapter(host):
    """Writes a LoRA of rank 2 for a layer of the demo base, or for one as wide as is said."""
    weight = next(tensor for name, tensor in load_file(
        DEMO_BASE / "unet" / "diffusion_pytorch_model.safetensors").items()
        if f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}" == LAYER)
    folder = host.base_directory / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)

    def write(name, width=weight.shape[1]):
        save_file({f"{LAYER}.lora_down.weight": torch.ones(2, width), f"{LAYER}.lora_up.weight": torch.ones(len(weight), 2)},
                  folder / name)
        return name
    return write


def with_assistants(prompt, *names):
    for number, name in enumerate(names):
        prompt[f"assistant {number}"] = {"class_type": "FineTuneAssistantLora", "inputs": {
            "base": prompt["train"]["inputs"]["base"], "lora": name, "strength": 0.5}}
        prompt["train"]["inputs"]["base"] = [f"assistant {number}", 0]
    return prompt


def test_it_says_what_it_puts_on_the_base_and_the_run_says_it_too(host, adapter):
    outputs = host.run(with_assistants(training(name="assisted", steps=1), adapter("adapter.safetensors")))
    said = "he assistant LoRA adapter.safetensors is on with the strength 0.5 while training"
    assert outputs["assistant 0"]["text"][0].startswith(f"T{said}") and f"t{said}" in outputs["train"]["text"][0]
    with safe_open(host.output / "loras" / "assisted.safetensors", "pt") as file:
        assert file.metadata()["finetune.assistant_lora"] == "adapter.safetensors at 0.5"


def test_what_is_wrong_is_a_sentence(host, adapter):
    with pytest.raises(NodeFailed, match="is for another model"):
        host.run(with_assistants(training(name="too wide", steps=1), adapter("wide.safetensors", 7)))
    with pytest.raises(NodeFailed, match="has an assistant LoRA already, 'adapter.safetensors'"):
        host.run(with_assistants(training(name="two", steps=1), *[adapter("adapter.safetensors")] * 2))
