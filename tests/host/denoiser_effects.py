"""Do denoisers compute in ComfyUI what they compute here? Run by test_denoiser_effects.py in a process of its own.

    python tests/host/denoiser_effects.py <ComfyUI> <folder for files>

Tiny models of the families whose ComfyUI classes are built with a configuration of their own, because its detection knows
the released sizes only; told what tiny text encoders say of captions. All errors are relative to what ComfyUI computes.
"""
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

load_pack()
become_host(Path(sys.argv[1]))

import comfy.lora  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.supported_models  # noqa: E402
from finetune.trainers import families, methods  # noqa: E402
from finetune.trainers import spec as specs  # noqa: E402
from finetune.trainers.families.conditioning import Conditioning  # noqa: E402
from finetune.trainers.families.recognition import recognize  # noqa: E402
from finetune.trainers.methods.protocol import Parts  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from support import tiny_flow  # noqa: E402

SIGMAS = (0.02, 0.25, 0.5, 0.75, 0.98)
CAPTIONS = "a cat", "one word after the other " * 12
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Small:
    """A family's tiny model in ComfyUI: the name of its description, what its detection takes for granted, what is put in
    the place of layers that have one width only, what it is told, whether an image is a film of one frame, and whether it is
    the family's plain model."""

    name: str
    sizes: Callable[[Shapes], dict]
    replaced: Callable[[torch.nn.Module, Shapes], None] = lambda model, shapes: None
    told: Callable[[Conditioning], dict] = lambda said: {"c_crossattn": said["hidden"]}
    frames: bool = False
    plain: bool = False


def z_image_sizes(shapes: Shapes) -> dict:
    heads = shapes["x_embedder.weight"][0] // shapes["layers.0.attention.q_norm.weight"][0]
    return dict(n_heads=heads, n_kv_heads=heads, n_refiner_layers=1, axes_dims=[4, 6, 6], axes_lens=[1536, 512, 512],
                rope_theta=256.0, ffn_dim_multiplier=8 / 3, multiple_of=32, z_image_modulation=True, time_scale=1000.0,
                pad_tokens_multiple=32)


def wide_time(model: torch.nn.Module, shapes: Shapes):
    for number in (0, 2):
        rows, columns = shapes[f"t_embedder.mlp.{number}.weight"]
        model.t_embedder.mlp[number] = torch.nn.Linear(columns, rows)


def chroma_sizes(shapes: Shapes) -> dict:
    width, hidden = shapes["img_in.weight"][0], shapes["distilled_guidance_layer.in_proj.weight"][0]
    return dict(hidden_size=width, num_heads=width // 128, context_in_dim=shapes["txt_in.weight"][1], out_dim=width,
                hidden_dim=hidden, n_layers=sum(name.startswith("distilled_guidance_layer.norms.") for name in shapes))


def anima_sizes(shapes: Shapes) -> dict:
    return dict(num_heads=shapes["x_embedder.proj.1.weight"][0] // shapes["blocks.0.self_attn.q_norm.weight"][0],
                crossattn_emb_channels=shapes["blocks.0.cross_attn.k_proj.weight"][1])


def small_adapter(model: torch.nn.Module, shapes: Shapes):
    def shape(name: str) -> torch.Size:
        return shapes[f"llm_adapter.{name}.weight"]

    (said, inside), head = shape("out_proj"), shape("blocks.0.cross_attn.q_norm")[0]
    model.llm_adapter = type(model.llm_adapter)(
        shape("blocks.0.cross_attn.k_proj")[1], said, inside, num_layers=2, num_heads=inside // head,
        operations=comfy.ops.disable_weight_init)


def flux2_sizes(shapes: Shapes) -> dict:
    (width, _), head = shapes["img_in.weight"], shapes["single_blocks.0.norm.query_norm.scale"][0]
    return dict(hidden_size=width, num_heads=width // head, axes_dim=[head // 4] * 4,
                context_in_dim=shapes["txt_in.weight"][1])


UNUSED = {"norm_final.weight"}
"""What older versions have and never ask."""
SMALL = {
    "anima": Small("Anima", anima_sizes, small_adapter, lambda said: {
        "c_crossattn": said["hidden"], "t5xxl_ids": said["ids"], "t5xxl_weights": torch.ones(1, said["ids"].shape[1], 1)},
        frames=True),
    "krea2": Small("Krea2", lambda shapes: {}, told=lambda said: {"c_crossattn": said["hidden"].flatten(2)}, frames=True),
    "qwen_image": Small("QwenImage", lambda shapes: dict(
        num_attention_heads=shapes["img_in.weight"][0] // 128, joint_attention_dim=shapes["txt_norm.weight"][0]),
        frames=True),
    "flux2": Small("Flux2", flux2_sizes),
    "flux2, dev": Small("Flux2", flux2_sizes, plain=True, told=lambda said: {
        "c_crossattn": said["hidden"], "guidance": said["guidance"]}),
    "chroma": Small("Chroma", chroma_sizes,
                    told=lambda said: {"c_crossattn": said["hidden"], "guidance": torch.zeros(1)}),
    "z_image": Small("ZImage", z_image_sizes, wide_time,
                     lambda said: {"c_crossattn": said["hidden"], "num_tokens": said["hidden"].shape[1]}),
}


def host_model(small: Small, weights: dict):
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    detected = comfy.model_detection.detect_unet_config(weights, "")
    settings = getattr(comfy.supported_models, small.name)(detected | small.sizes(shapes))
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model(weights, "", device="cpu")
    small.replaced(model.diffusion_model, shapes)
    wanted = model.diffusion_model.state_dict().keys() - UNUSED
    given = settings.process_unet_state_dict(dict(weights)).keys()
    assert wanted == given, sorted(wanted ^ given)[:5]
    model.load_model_weights(dict(weights), "")
    return model


def host_velocity(small: Small, model, latents, sigma: float, said: Conditioning) -> torch.Tensor:
    latents = latents[:, :, None] if small.frames else latents
    denoised = model.apply_model(latents, torch.full((len(latents),), sigma), **small.told(said))
    velocity = (latents - denoised) / sigma
    return velocity[:, :, 0] if small.frames else velocity


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6))


def add_lora(kind, base, denoiser: torch.nn.Module, model, folder: Path):
    """A LoRA on all layers that have one, to ours as in training, and to ComfyUI's out of the file that training ends in."""
    spec = specs.LoraSpec(rank=4, alpha=2, targets="all with convolutions", file_precision="fp32")
    method = methods.make(spec, 1e-3, kind)
    parts = Parts(kind, denoiser, None, base)
    method.attach(parts, 0)
    for name, parameter in denoiser.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    method.save(parts, folder, "lora", {})
    lora = load_file(folder / "lora.safetensors")
    patches = comfy.lora.load_lora(dict(lora), comfy.lora.model_lora_keys_unet(model, {}))
    assert set().union(*(patch.loaded_keys for patch in patches.values())) == lora.keys(), "keys that ComfyUI does not load"
    for target, patch in patches.items():
        name, rows = (target, None) if isinstance(target, str) else target[:2]
        weight = model.get_parameter(name)
        weight.copy_(comfy.lora.calculate_weight([(1.0, patch, 1.0, rows, None)], weight.detach().clone(), name))


def errors(title: str, folder: Path) -> list[float]:
    """At every noise level, for a short caption and a long one, of images that are no squares; then with a LoRA."""
    family, small = title.partition(",")[0], SMALL[title]
    kind = families.get(family)
    base = recognize(str(tiny_flow.make_folder(family, folder / title, small.plain)), family)
    denoiser, text = kind.load_denoiser(base, torch.float32), kind.load_text(base, torch.float32)
    weights = {kind.layer_names.key_map.native_tensor(name): tensor.clone()
               for name, tensor in denoiser.state_dict().items()}
    model, draw = host_model(small, weights), torch.Generator().manual_seed(6)
    latents = torch.randn((1, kind.latent_format(base).channels, 8, 12), generator=draw)
    said = [kind.encode_captions(text, [caption]) for caption in CAPTIONS]
    if kind.guidance(base) == "distilled":
        said = [each | Conditioning.guidance(2.5, 1) for each in said]

    def compared() -> list[float]:
        return [distance(kind.predict(denoiser, latents, torch.full((1,), 1000 * sigma), each),
                         host_velocity(small, model, latents, sigma, each)) for each in said for sigma in SIGMAS]
    found, before = compared(), host_velocity(small, model, latents, 0.5, said[0])
    add_lora(kind, base, denoiser, model, folder / title)
    assert distance(before, host_velocity(small, model, latents, 0.5, said[0])) > 1e-2, "the LoRA does nothing"
    return found + compared()


if __name__ == "__main__":
    with torch.no_grad():
        results = {title: errors(title, Path(sys.argv[2])) for title in SMALL
                   if hasattr(comfy.supported_models, SMALL[title].name)}
    (Path(sys.argv[2]) / "results.json").write_text(json.dumps(results), encoding="utf-8")
