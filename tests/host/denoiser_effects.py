"""Do denoisers compute in ComfyUI what they compute here? Run by test_denoiser_effects.py in a process of its own.

    python tests/host/denoiser_effects.py <ComfyUI> <folder for files> <result.json>

Tiny denoisers of the families whose ComfyUI classes are built with a configuration of their own, because its detection
knows the released sizes only. All errors are relative to what ComfyUI computes.
"""
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

load_pack()
become_host(Path(sys.argv[1]))

import comfy.model_detection  # noqa: E402
import comfy.supported_models  # noqa: E402
from finetune.trainers import families  # noqa: E402
from finetune.trainers.families.conditioning import Conditioning  # noqa: E402
from support import tiny_denoisers  # noqa: E402

SIGMAS = (0.02, 0.25, 0.5, 0.75, 0.98)
SMALL = {"qwen_image": lambda shapes: ("QwenImage", dict(
    num_attention_heads=shapes["img_in.weight"][0] // 128, joint_attention_dim=shapes["txt_norm.weight"][0]))}
"""By family: ComfyUI's description, and what its detection takes for granted."""


def host_model(family: str, weights: dict):
    detected = comfy.model_detection.detect_unet_config(weights, "")
    name, sizes = SMALL[family]({key: tensor.shape for key, tensor in weights.items()})
    settings = getattr(comfy.supported_models, name)(detected | sizes)
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model(weights, "", device="cpu")
    wanted = model.diffusion_model.state_dict().keys()
    assert wanted == weights.keys(), sorted(wanted ^ weights.keys())[:5]
    model.load_model_weights(dict(weights), "")
    return model


def host_velocity(model, latents, sigma: float, hidden) -> torch.Tensor:
    frames = latents[:, :, None]
    denoised = model.apply_model(frames, torch.full((len(latents),), sigma), c_crossattn=hidden)
    return ((frames - denoised) / sigma)[:, :, 0]


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-6))


def main():
    results = {}
    for family in SMALL:
        kind = families.get(family)
        denoiser = tiny_denoisers.loaded(family, Path(sys.argv[2]))
        weights = {kind.layer_names.key_map.native_tensor(name): tensor.clone()
                   for name, tensor in denoiser.state_dict().items()}
        model, draw = host_model(family, weights), torch.Generator().manual_seed(6)
        latents = torch.randn((2, tiny_denoisers.CHANNELS[family], 8, 12), generator=draw)
        hidden = torch.randn((2, 21, tiny_denoisers.WIDTH), generator=draw)
        results[family] = [distance(
            kind.predict(denoiser, latents, torch.full((2,), 1000 * sigma), Conditioning({"hidden": hidden})),
            host_velocity(model, latents, sigma, hidden)) for sigma in SIGMAS]
    Path(sys.argv[3]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main()
