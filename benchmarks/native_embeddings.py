"""Does a learned word mean in ComfyUI what it meant in training?

    python -m benchmarks.native_embeddings

For every family: text encoders of full width with random weights and few layers, and for SD 1.x the real demo base too. A
new word is put into the engine's encoders and saved by the engine; ComfyUI's own tokenizer, loader and encoders take
`embedding:name` from that file. Both encode the same prompt, and the results are compared.
"""
import argparse
import tempfile
from pathlib import Path

from .pack import ROOT, become_host, comfyui_folder, load_pack
from .report import finish

LAYERS = 3
WIDTHS = {"sd1": {"te": 768}, "sd2": {"te": 1024}, "sdxl": {"te1": 768, "te2": 1280}}
PROMPT = "a photo of {}, by night, and a {}"
OTHER = "a photo of a red dog, by night, and a red dog"
LIMIT = 1e-4
"""Largest difference allowed, relative to the largest value: float32 arithmetic in another order."""


def text_config(width: int, layers: int, activation: str):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=8,
        projection_dim=width, max_position_embeddings=77, hidden_act=activation, bos_token_id=49406, eos_token_id=49407)


def random_encoders(family: str) -> dict:
    """The engine's encoders; that of SD 2.x lacks the last layer, as diffusers stores it."""
    import torch
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1)
    layers = LAYERS - 1 if family == "sd2" else LAYERS
    return {
        name: (CLIPTextModelWithProjection if name == "te2" else CLIPTextModel)(
            text_config(width, layers, "quick_gelu" if name in ("te", "te1") and family != "sd2" else "gelu")).eval()
        for name, width in WIDTHS[family].items()
    }


def tokenizers(family: str) -> dict:
    from finetune.trainers.families.text.clip import TOKENIZER
    from transformers import CLIPTokenizer

    end = "<|endoftext|>"
    return {name: CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!" if name == "te2" or family == "sd2" else end)
            for name in WIDTHS[family]}


def host_text(family: str, encoders: dict, folder: Path):
    """ComfyUI's tokenizer and model of the family with the encoders' weights: prompt → (hidden states, pooled)."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.text_encoders.sd2_clip as sd2_clip
    import torch

    tokenizer_class, model_class = {
        "sd1": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
        "sd2": (sd2_clip.SD2Tokenizer, sd2_clip.SD2ClipModel),
        "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
    }[family]
    names = {"sd1": {"te": "clip_l"}, "sd2": {"te": "clip_h"}, "sdxl": {"te1": "clip_l", "te2": "clip_g"}}[family]
    wanted = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act")
    options = {
        f"{name}_model_config": {**{key: getattr(encoders[ours].config, key) for key in wanted}, "num_hidden_layers": LAYERS}
        for ours, name in names.items()
    }
    options["_model_config"] = options[f"{next(iter(names.values()))}_model_config"]  # how SD 2.x asks for it
    model = model_class(device="cpu", dtype=torch.float32, model_options=options)
    for ours, name in names.items():
        weights = {key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}": tensor
                   for key, tensor in encoders[ours].state_dict().items()}
        # The host holds what the diffusers form of SD 2.x leaves out; its state is not read.
        spare = {key.replace(f"layers.{LAYERS - 2}.", f"layers.{LAYERS - 1}."): tensor for key, tensor in weights.items()}
        missing, unexpected = getattr(model, name).transformer.load_state_dict({**spare, **weights}, strict=False)
        unloaded = [key for key in missing if not key.startswith("text_projection")]
        if unloaded or unexpected:
            raise SystemExit(f"ComfyUI's {name} did not take the weights: {[*unloaded, *unexpected][:5]}")
    tokenizer = tokenizer_class(embedding_directory=str(folder))
    return lambda prompt: model.encode_token_weights(tokenizer.tokenize_with_weights(prompt))[:2]


def demo_text(folder: Path):
    """The demo base's native CLIP: prompt → (hidden states, pooled)."""
    import folder_paths
    from finetune.nodes import host

    folder_paths.add_model_folder_path("embeddings", str(folder))
    clip = host.load_native(ROOT / "demo_base")[1]
    return lambda prompt: clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)


def compare(family_name: str, text, prepare_host, folder: Path, label: str) -> list[dict]:
    """Attach, save, encode on both sides; rows for the report. `prepare_host` is asked before anything is attached."""
    import torch
    from finetune.trainers import families
    from finetune.trainers.methods.protocol import Parts
    from finetune.trainers.methods.textual_inversion import TextualInversion
    from finetune.trainers.spec import TextualInversionSpec

    family, encode = families.get(family_name), prepare_host(folder)
    method = TextualInversion(TextualInversionSpec(token="zorp", vectors=3), 1e-3)
    parts = Parts(family, None, text, None)
    method.attach(parts, seed=5)
    name = f"word_{label.replace(' ', '_')}"
    method.save(parts, folder, name, {})
    with torch.no_grad():
        ours = family.encode_captions(text, [PROMPT.format("zorp", "zorp")])
        theirs, pooled = encode(PROMPT.format(f"embedding:{name}", f"embedding:{name}"))
        without, _ = encode(OTHER)
    difference = relative(ours["hidden"], theirs)
    if "pooled" in ours:
        difference = max(difference, relative(ours["pooled"], pooled))
    change = relative(without, theirs)
    print(f"{label}: difference {difference:.1e}, the word changes {change:.2f}", flush=True)
    return [row(f"{label}: largest difference of the encoded prompt, ComfyUI to engine", difference, f"< {LIMIT:g}",
                difference < LIMIT),
            row(f"{label}: change by the word against ordinary words", change, "> 0.01", change > 0.01)]


def relative(one, other) -> float:
    return float((one - other).abs().max() / one.abs().max())


def row(measure: str, value: float, goal: str, met: bool) -> dict:
    return {"measure": measure, "value": value, "unit": "of the largest value", "goal": goal, "met": met}


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if comfyui_folder() is None:
        raise SystemExit("This needs a ComfyUI: run scripts/demo.py once, which gets one, or set COMFYUI_PATH.")
    become_host(comfyui_folder())
    load_pack()
    import torch
    from finetune.trainers import families
    from finetune.trainers.families.protocol import TextEncoders
    from finetune.trainers.families.recognition import recognize

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = families.get("sd1").load_text(recognize(str(ROOT / "demo_base"), "demo_base"), torch.float32)
        rows += compare("sd1", demo, demo_text, folder, "demo base")
        for family in families.NAMES:
            encoders = random_encoders(family)
            rows += compare(family, TextEncoders(tokenizers(family), encoders),
                            lambda folder: host_text(family, encoders, folder), folder, f"{family} at full width")
    finish("native_embeddings", rows, {"layers": LAYERS, "prompt": PROMPT})


if __name__ == "__main__":
    main()
