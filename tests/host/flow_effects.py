"""Do flow models compute in ComfyUI what they compute here? Run by test_flow_effects.py in a process of its own.

    python tests/host/flow_effects.py <ComfyUI> <folder for files>

Tiny models of SD3 and FLUX.1 in ComfyUI's own classes: what text encoders say of captions, latents, velocities, and the
files that every method ends in. All errors are relative to what ComfyUI computes.
"""
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

load_pack()
become_host(Path(sys.argv[1]))

import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.text_encoders.flux  # noqa: E402
import comfy.text_encoders.sd3_clip  # noqa: E402
from finetune.trainers import families  # noqa: E402
from finetune.trainers import spec as specs  # noqa: E402
from finetune.trainers.accelerator import make_accelerator  # noqa: E402
from finetune.trainers.data.manifest import scan_folder  # noqa: E402
from finetune.trainers.events import silent  # noqa: E402
from finetune.trainers.families.conditioning import Conditioning  # noqa: E402
from finetune.trainers.families.recognition import recognize  # noqa: E402
from finetune.trainers.run_folder import open_run  # noqa: E402
from finetune.trainers.training.run import Training  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support import tiny, tiny_flow  # noqa: E402
from support.flow_models.clip_and_t5 import T5_WIDTH, t5_config  # noqa: E402
from vae_effects import FORMATS, names_that_wan22_has, vae_effects  # noqa: E402

SIGMAS = (0.02, 0.25, 0.5, 0.75, 0.98)
PREFIX = "model.diffusion_model."
POOLED = {"sd3": 2 * tiny.WIDTH, "flux": tiny.WIDTH}
NAMES = {"te1": "clip_l", "te2": "clip_g", "te3": "t5xxl"}
CAPTIONS = {
    "short": "a cat, sitting", "empty": "", "other scripts": "Größe: 図書館の猫, кошка 🐈",
    "long": "one word after the other " * 60}
SUBSETS = {"sd3": [("te1", "te2", "te3"), ("te1",), ("te1", "te2"), ("te2",), ("te1", "te3"), ("te3",)],
           "flux": [("te1", "te3")]}
COMMON = dict(rank=4, alpha=2, targets="all with convolutions", text_encoder_learning_rate=1e-2, file_precision="fp32",
              train_t5=True)
KINDS_OF = {"sd3": ("lora", "loha", "full", "new word"), "flux": ("lora", "dora", "lokr", "full", "new word")}
METHODS = {
    "lora": specs.LoraSpec(**COMMON), "dora": specs.LoraSpec(**COMMON, adapter="dora"),
    "loha": specs.LoraSpec(**COMMON, adapter="loha"), "lokr": specs.LoraSpec(**COMMON, adapter="lokr"),
    "full": specs.FullSpec(text_encoder_learning_rate=1e-2, file_precision="fp32", train_t5=True),
    "new word": specs.TextualInversionSpec(token="square", vectors=3, initial_text="red", train_t5=True),
}
WIDEST = comfy.text_encoders.sd3_clip.T5XXLTokenizer().embedding_size


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6))


# ---- ComfyUI's models ------------------------------------------------------------------------------------------------

def host_denoiser(file: dict):
    """The denoiser of an all-in-one file in ComfyUI's model, by its own detection. Version 0.3.75 knows Flux in one width
    only: there the configuration that it detects gets the widths of the weights."""
    weights = {name.removeprefix(PREFIX): tensor.clone() for name, tensor in file.items() if name.startswith(PREFIX)}
    config = comfy.model_detection.detect_unet_config(weights, "")
    width = weights["img_in.weight"].shape[0] if "img_in.weight" in weights else 0
    if not width or config["num_heads"] == width // 128:
        patcher = comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": torch.float32})
        comfy.model_management.load_models_gpu([patcher])
        return patcher.model
    config |= dict(hidden_size=width, num_heads=width // 128, context_in_dim=weights["txt_in.weight"].shape[1],
                   vec_in_dim=weights["vector_in.in_layer.weight"].shape[1])
    kind = comfy.supported_models.Flux if config["guidance_embed"] else comfy.supported_models.FluxSchnell
    settings = kind(config)
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model(weights, "", device="cpu")
    model.load_model_weights(weights, "")
    return model


class HostText:
    """ComfyUI's text encoders of a family with tiny weights, by the prefixes of an all-in-one file."""

    def __init__(self, family: str, weights: dict, encoders: tuple[str, ...]):
        def options(layers: int, activation: str) -> dict:
            return dict(hidden_size=tiny.WIDTH, intermediate_size=2 * tiny.WIDTH, num_hidden_layers=layers,
                        num_attention_heads=4, hidden_act=activation)

        t5 = t5_config()
        made = {
            "clip_l_model_config": options(3 if family == "sd3" else 2, "quick_gelu"),
            "clip_g_model_config": options(3, "gelu"),
            "t5xxl_model_config": {
                name: getattr(t5, name) for name in ("d_model", "d_ff", "num_layers", "num_heads", "d_kv")},
        }
        common = dict(device="cpu", dtype=torch.float32, dtype_t5=torch.float32, model_options=made)
        if family == "sd3":
            self.model = comfy.text_encoders.sd3_clip.SD3ClipModel(
                clip_l="te1" in encoders, clip_g="te2" in encoders, t5="te3" in encoders, **common)
            self.tokenizer = comfy.text_encoders.sd3_clip.SD3Tokenizer()
        else:
            self.model = comfy.text_encoders.flux.FluxClipModel(**common)
            self.tokenizer = comfy.text_encoders.flux.FluxTokenizer()
        for encoder in encoders:
            prefix = f"text_encoders.{NAMES[encoder]}.transformer."
            own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            missing, unexpected = getattr(self.model, NAMES[encoder]).load_sd(own)
            assert set(missing) <= {"text_projection.weight"} and not unexpected, (encoder, missing, unexpected)
        if family == "sd3" and "te3" in encoders:
            # SD3 in ComfyUI joins states of 4096 numbers; those of a tiny T5 get zeros behind.
            encode = self.model.t5xxl.encode_token_weights
            self.model.t5xxl.encode_token_weights = lambda tokens: (widened(encode(tokens)[0]), None)

    def __call__(self, caption: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden, pooled)"""
        hidden, pooled, *extra = self.model.encode_token_weights(self.tokenizer.tokenize_with_weights(caption))
        assert not any(extra), "ComfyUI hands on a mask"
        return hidden, pooled


def widened(states: torch.Tensor) -> torch.Tensor:
    return F.pad(states, (0, WIDEST - states.shape[-1]))


def host_velocity(model, latents, sigma: float, conditioning: Conditioning) -> torch.Tensor:
    level = torch.full((len(latents),), sigma)
    more = {"guidance": conditioning["guidance"]} if "guidance" in conditioning else {}
    denoised = model.apply_model(latents, level, c_crossattn=conditioning["hidden"], y=conditioning["pooled"], **more)
    return (latents - denoised) / sigma


# ---- comparisons -----------------------------------------------------------------------------------------------------

def some_conditioning(kind, guidance: float | None) -> Conditioning:
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn((2, 100, T5_WIDTH), generator=draw)
    said = Conditioning({"hidden": hidden, "pooled": torch.randn((2, POOLED[kind.name]), generator=draw)})
    return said if guidance is None else said | Conditioning.guidance(guidance, 2)


def velocities(kind, denoiser, model, conditioning: Conditioning) -> list[float]:
    """Errors at five noise levels, of images that are no squares."""
    latents = torch.randn((2, 16, 8, 12), generator=torch.Generator().manual_seed(6))
    return [distance(kind.predict(denoiser, latents, torch.full((2,), 1000 * sigma), conditioning),
                     host_velocity(model, latents, sigma, conditioning)) for sigma in SIGMAS]


def texts(kind, encoders, host: HostText, captions=CAPTIONS) -> dict:
    """By caption: errors of hidden and pooled states, and ComfyUI's number of tokens. What CLIP says of long captions is
    compared for its first 77 tokens: ComfyUI goes on, and training does not."""
    found = {}
    for title, caption in captions.items():
        said = kind.joined({name: kind.encode_with(encoders, name, [caption]) for name in encoders.encoders})
        hidden, pooled = host(caption)
        ours = widened(said["hidden"]) if hidden.shape[-1] == WIDEST else said["hidden"]
        more = hidden.shape[1] - ours.shape[1]
        if title == "long" and more > 0:
            hidden = torch.cat([hidden[:, :77], hidden[:, 77 + more:]], dim=1)
        found[title] = {"hidden": distance(ours, hidden), "pooled": distance(said["pooled"], pooled),
                        "tokens": ours.shape[1]}
    return found


def latents_of(kind, base, model) -> dict:
    """Latents of the same image, and the way back to what the decoder gets."""
    vae, form = kind.load_vae(base), kind.latent_format(base)
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(7)) * 2 - 1
    raw = vae.encode(pixels).latent_dist.mode()
    ours = kind.encode_images(vae, pixels, form)
    return {"in": distance(ours, model.latent_format.process_in(raw)),
            "out": distance(ours / form.scale + form.shift, model.latent_format.process_out(ours))}


def trained(base, method, images, folder: Path) -> Training:
    spec = specs.RunSpec(
        name="run", base=base, dataset=images, method=method, optimizer=specs.OptimizerSpec(learning_rate=1e-2),
        training=specs.TrainingSpec(steps=3, batch_size=2, resolution=64), checkpoints=specs.CheckpointSpec(every=0),
        folders=specs.FolderSpec(runs=str(folder), caches=str(folder.parent / "caches")), device="cpu")
    training = Training(spec, open_run(spec), silent, lambda: False, make_accelerator(spec))
    with torch.enable_grad():
        training.execute()
    for module in (training.parts.denoiser, training.parts.text):
        module.requires_grad_(False).eval()
    return training


def with_lora(model, text: HostText, file: Path) -> dict:
    """A LoRA file in ComfyUI's weights, by its own names and arithmetic; tells how many layers it holds and which of them
    ComfyUI does not know."""
    lora = load_file(file)
    names = comfy.lora.model_lora_keys_clip(text.model, comfy.lora.model_lora_keys_unet(model, {}))
    patches = comfy.lora.load_lora(lora, names)
    for key, patch in patches.items():
        weight = (model if key.startswith("diffusion_model.") else text.model).get_parameter(key)
        new = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.detach().clone(), key)
        weight.data.copy_(new)
    layers = {key.split(".")[0] for key in lora}
    return {"layers": len(layers), "loaded": len(patches), "unknown": sorted(layers - names.keys())}


def with_checkpoint(file: Path, base_file: Path, family: str, encoders) -> tuple:
    weights, before = load_file(file), load_file(base_file)
    model = host_denoiser(weights)
    saved = {PREFIX + name for name in model.diffusion_model.state_dict()}
    names = {name for name in weights if name.startswith(PREFIX)}
    found = {"same names as the base": weights.keys() == before.keys(),
             "names that ComfyUI saves": {name.replace(".scale", ".weight") for name in saved}
             == {name.replace(".scale", ".weight") for name in names}}
    return model, HostText(family, weights, encoders), found


def with_word(text: HostText, file: Path, folder: Path) -> dict:
    """The learned word as ComfyUI's tokenizers find it; tells the sizes that its loader reads."""
    tensors, sizes = load_file(file), {}
    file.rename(folder / "learned.safetensors")
    for name, tensor in tensors.items():
        tokenizer = getattr(text.tokenizer, name)
        tokenizer.embedding_directory, tokenizer.embedding_size = [str(folder)], tensor.shape[1]
        loaded = comfy.sd1_clip.load_embed("learned", [str(folder)], tensor.shape[1], name)
        sizes[name] = list(loaded.shape) if torch.equal(loaded, tensor) else "another tensor"
    return {"vectors": sizes}


def method_effect(name: str, family: str, base, base_file: Path, images, folder: Path) -> dict:
    """How far ComfyUI with the file of a method is from the trained model, and how far it was without."""
    kind = families.get(family)
    encoders = tuple(kind.text_parts)
    training = trained(base, METHODS[name], images, folder / f"{family} {name}")
    conditioning, weights = some_conditioning(kind, 1.0 if family == "flux" else None), load_file(base_file)
    model = host_denoiser(weights)
    text = HostText(family, weights, encoders)
    ours, denoiser, caption = training.parts.text, training.parts.denoiser, "a small square of red"
    before = {"velocity": min(velocities(kind, denoiser, model, conditioning)),
              "text": texts(kind, ours, text, {"it": caption})["it"]}
    file, theirs = training.run.folder / training.run.report.files[0].name, caption
    if name == "full":
        model, text, found = with_checkpoint(file, base_file, family, encoders)
    elif name == "new word":
        found, theirs = with_word(text, file, folder), "a small embedding:learned of red"
    else:
        found = with_lora(model, text, file)
    said = kind.joined({each: kind.encode_with(ours, each, [caption]) for each in ours.encoders})
    hidden, pooled = text(theirs)
    hidden = distance(widened(said["hidden"]) if hidden.shape[-1] == WIDEST else said["hidden"], hidden)
    return {**found, "before": before, "velocity": max(velocities(kind, denoiser, model, conditioning)),
            "text": {"hidden": hidden, "pooled": distance(said["pooled"], pooled)}}


def main():
    folder, results = Path(sys.argv[2]), {"text": {}, "velocity": {}, "latents": {}, "methods": {}}
    images = scan_folder(str(tiny.make_images(folder / "squares")), "squares")
    for family in SUBSETS:
        kind = families.get(family)
        for plain in (False, True):
            name = f"{family}{', plain' if plain else ''}"
            place = tiny_flow.make_folder(family, folder / name, plain)
            base = recognize(str(place), name)
            weights = tiny_flow.single_file_weights(family, place)
            model = host_denoiser(weights)
            denoiser = kind.load_denoiser(base, torch.float32)
            for guidance in (1.0, 3.5) if family == "flux" and not plain else (None,):
                results["velocity"][f"{name}, {guidance}"] = velocities(
                    kind, denoiser, model, some_conditioning(kind, guidance))
        base = recognize(str(folder / family), family)
        results["latents"][family] = latents_of(kind, base, model)
        weights = tiny_flow.single_file_weights(family, folder / family)
        for encoders in SUBSETS[family]:
            ours = kind.load_text(base, torch.float32, encoders)
            results["text"][f"{family}: {', '.join(encoders)}"] = texts(kind, ours, HostText(family, weights, encoders))
        one = tiny_flow.make_single_file(family, folder / family, folder / f"{family}.safetensors")
        single = recognize(str(one), family, configs=str(folder / family))
        for method in KINDS_OF[family]:
            results["methods"][f"{family}: {method}"] = method_effect(method, family, single, one, images, folder)
    results["vaes"] = {kind: vae_effects(kind, folder) for kind in FORMATS} | {"wan 2.2": names_that_wan22_has()}
    (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
