"""A checkpoint of SD3's or FLUX.1's true width and of reduced depth, with random weights.

    python -m benchmarks.flow_size FAMILY DEPTH FILE

Time per block, memory per block and key names depend on widths only. The text encoders are smaller than the released ones:
captions are encoded before steps are measured. The configs of all components lie beside the file, in a folder of its name.
"""
import json
import subprocess
import sys
from pathlib import Path

from .pack import ROOT, load_pack

WIDTHS = {
    "sd3": dict(num_attention_heads=24, attention_head_dim=64, caption_projection_dim=1536, joint_attention_dim=4096,
                pooled_projection_dim=2048, pos_embed_max_size=192, in_channels=16),
    "flux": dict(num_attention_heads=24, attention_head_dim=128, joint_attention_dim=4096, pooled_projection_dim=768,
                 guidance_embeds=True, in_channels=64),
}
"""Of SD3 Medium and FLUX.1 dev."""
SINGLE_PER_DOUBLE = 2
"""Of Flux' blocks, as in the released model (38 and 19)."""
CLIP = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12, projection_dim=768)
CLIP_G = dict(hidden_size=1280, intermediate_size=1280, num_hidden_layers=2, num_attention_heads=20, projection_dim=1280)
T5 = dict(d_model=4096, d_kv=64, d_ff=1024, num_heads=8, num_layers=1)


def depths(family: str, depth: int) -> dict[str, int]:
    single = {"num_single_layers": SINGLE_PER_DOUBLE * depth} if family == "flux" else {}
    return {"num_layers": depth, **single}


def make_checkpoint(family: str, depth: int, path: Path) -> Path:
    """Write the checkpoint in a process of its own, so that its memory is given back."""
    subprocess.run([sys.executable, "-m", f"{__package__}.flow_size", family, str(depth), str(path)], cwd=ROOT, check=True)
    return path


def configs_of(path: Path) -> Path:
    return path.with_suffix("")


def plain_denoiser(family: str, depth: int):
    """diffusers' model as its own scripts have it."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    kind = FluxTransformer2DModel if family == "flux" else SD3Transformer2DModel
    return kind(**WIDTHS[family], **depths(family, depth))


def _write_configs(family: str, folder: Path) -> dict[str, dict]:
    """The family's own, with smaller text encoders."""
    from trainers.families.component_configs import CONFIGS, config_file

    configs = {each.name: json.loads((each / config_file(each.name)).read_text()) for each in (CONFIGS / family).iterdir()}
    for name, config in configs.items():
        if name.startswith("text_encoder"):
            config |= T5 if config["model_type"] == "t5" else CLIP_G if name == "text_encoder_2" else CLIP
        (folder / name).mkdir(parents=True)
        (folder / name / config_file(name)).write_text(json.dumps(config))
    return configs


def write_checkpoint(family: str, depth: int, path: Path):
    """One file, bf16, in the original layout."""
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    load_pack()
    from tests.support.tiny import with_prefix
    from trainers import families
    from trainers.artifacts.ldm_layout import original_vae_tensors
    from trainers.families.native_layout import to_native_layout

    kind, configs = families.get(family), _write_configs(family, configs_of(path))
    key_map = kind.layer_names.key_map

    def random(name: str, shape) -> "torch.Tensor":
        scale = torch.ones if name.endswith("norm.weight") or ".norm_" in name else None
        return scale(shape).bfloat16() if scale else (0.02 * torch.randn(shape)).bfloat16()

    with torch.device("meta"):
        denoiser = plain_denoiser(family, depth)
    to_native_layout(denoiser, key_map)
    torch.manual_seed(0)
    weights = {f"model.diffusion_model.{key_map.native_tensor(name)}": random(name, tensor.shape)
               for name, tensor in denoiser.state_dict().items()}
    vae = AutoencoderKL.from_config(configs["vae"])
    weights |= {kind.vae_prefix + name: tensor.bfloat16() for name, tensor in original_vae_tensors(vae.state_dict()).items()}
    for part in kind.text_parts.values():
        config = configs[part.component]
        if part.kind.kind == "t5":
            own = T5EncoderModel(T5Config.from_dict(config)).state_dict()
            own.pop("encoder.embed_tokens.weight")
        else:
            clip = CLIPTextModelWithProjection if part.kind.kind == "clip_g" else CLIPTextModel
            own = with_prefix(clip(CLIPTextConfig.from_dict(config)).state_dict())
        weights |= {part.prefix + name: tensor.bfloat16() for name, tensor in own.items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
