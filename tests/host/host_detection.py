"""Run as a script with a folder of ComfyUI and a folder for files: asks the host about checkpoints of several sizes.

    python tests/host/host_detection.py COMFYUI FOLDER

Writes FOLDER/results.json; test_host_detection.py says what must be in it. A process of its own, because ComfyUI's modules
would stay in the tests' process. The full-size files are sparse: their tensors are zeros that take no space on the disk.
"""
import json
import struct
import sys
import time
from math import prod
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

become_host(Path(sys.argv[1]))
sys.path.append(str(ROOT / "tests"))
load_pack()
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from finetune.nodes.host.detection import folder_refusal, host_refusal  # noqa: E402
from finetune.nodes.host.proof import unloaded_widths, unmatched_keys, unmatched_tensors  # noqa: E402
from finetune.trainers.families.component_configs import CONFIGS  # noqa: E402
from finetune.trainers.files import read_json  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support import tiny  # noqa: E402
from support.graphs import random_lora  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

FOLDER = Path(sys.argv[2])
DEMO = ROOT / "demo_base"


def shapes(configs: Path) -> dict[str, torch.Tensor]:
    """A checkpoint of these configs in the original layout, on the meta device."""
    family = configs.name if configs.name in tiny.FAMILIES else "sd1"
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(configs / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae"))
        # A single file of SD 2.x has all layers of the original encoder, of which the last is not read.
        layers = {"num_hidden_layers": 24} if family == "sd2" else {}
        text = [make(CLIPTextConfig(**{**read_json(configs / part / "config.json"), **layers})) for make, part in (
            (CLIPTextModel, "text_encoder"), (CLIPTextModelWithProjection, "text_encoder_2")) if (configs / part).is_dir()]
        tensors = tiny.single_file_weights(family, unet, vae, *text)
    return tensors


def sparse(name: str, tensors: dict[str, torch.Tensor]) -> Path:
    """A safetensors file in half precision whose tensors are all zeros."""
    header, end = {}, 0
    for key, tensor in tensors.items():
        size = 2 * prod(tensor.shape)
        header[key] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path = FOLDER / f"{name}.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def asked(path: Path, family: str, configs: Path, *base: Path) -> dict:
    began = time.monotonic()
    result = {"refusal": host_refusal([path]), "unmatched": unmatched_tensors([path], list(base), family, configs)}
    return {**result, "seconds": time.monotonic() - began}


def without(tensors: dict, *names: str) -> dict:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


results = {}
for family in tiny.FAMILIES:
    configs, tensors = CONFIGS / family, shapes(CONFIGS / family)
    whole = sparse(family, tensors)
    results[family] = asked(whole, family, configs)
    lacking = sparse(f"{family} lacking", without(tensors, "first_stage_model.decoder.conv_in.bias"))
    results[f"{family} lacking"] = asked(lacking, family, configs)
    if family == "sd1":
        results["lacking as its base"] = asked(lacking, family, configs, lacking)
        results["without text"] = asked(sparse("no text", {
            name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage")}), family, configs)
small = shapes(DEMO)
results["demo"] = asked(sparse("demo", small), "sd1", DEMO)
results["demo lacking"] = asked(sparse("demo lacking", without(small, "model.diffusion_model.out.2.bias")), "sd1", DEMO)
mixed = {**shapes(CONFIGS / "sd1"), **{name: tensor for name, tensor in small.items() if name.startswith("first_stage")}}
results["small VAE"] = asked(sparse("small vae", mixed), "sd1", CONFIGS / "sd1")
mixed = {**shapes(CONFIGS / "sd1"), **{name: tensor for name, tensor in small.items() if name.startswith("cond_stage")}}
results["small text"] = asked(sparse("small text", mixed), "sd1", CONFIGS / "sd1")
results["demo folder"] = {"refusal": folder_refusal(DEMO)}

lora, configs = load_file(random_lora(FOLDER / "lora.safetensors", 1)), [
    read_json(DEMO / part / "config.json") for part in ("unet", "text_encoder")]
layers = ["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k",
          "lora_te_text_model_encoder_layers_1_self_attn_k_proj"]
results["lora"] = {"whole": unmatched_keys(lora, "sd1", *configs), "wide": [
    unmatched_keys({**lora, f"{layer}.lora_up.weight": torch.ones(999, 4)}, "sd1", *configs) for layer in layers],
    "strange": unmatched_keys({**lora, "lora_unet_nowhere.alpha": torch.tensor(1.0)}, "sd1", *configs)}

linear = [torch.eye(8), torch.zeros(8), torch.eye(8), torch.zeros(8)]
network = dict(zip(("linear.0.weight", "linear.0.bias", "linear.1.weight", "linear.1.bias"), linear))
flags = {"activation_func": "linear", "is_layer_norm": False, "activate_output": False, "last_layer_dropout": False}
narrow = {**network, "linear.1.weight": torch.zeros(6, 8), "linear.1.bias": torch.zeros(6)}
for name, second in (("whole", network), ("torn", {**network, "linear.1.weight": torch.eye(6)}), ("narrow", narrow)):
    torch.save({8: [network, second], **flags}, FOLDER / f"{name}.pt")
results["hypernetwork"] = {name: unloaded_widths(FOLDER / f"{name}.pt", [8]) for name in ("whole", "torn", "narrow")}
results["hypernetwork"]["of another width"] = unloaded_widths(FOLDER / "whole.pt", [16])

for name in ("demo", "small VAE", "small text"):  # and what its loader really does; its UNet would take gigabytes here
    try:
        comfy.sd.load_checkpoint_guess_config(
            str(FOLDER / f"{name.lower()}.safetensors"), embedding_directory=[], output_model=name == "demo")
        results[name]["loaded"] = True
    except Exception as problem:
        results[name]["loaded"] = str(problem)[:200]
(FOLDER / "results.json").write_text(json.dumps(results), encoding="utf-8")
