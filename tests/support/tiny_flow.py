"""Tiny real models of the flow families, as diffusers folders and as all-in-one files in the original layout."""
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from finetune.trainers import families
from finetune.trainers.artifacts import ldm_layout
from finetune.trainers.families.component_configs import CONFIGS
from finetune.trainers.families.text.t5 import t5_tokenizer
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel

from .tiny import END, WIDTH, text_config, with_prefix

FAMILIES = ("sd3", "flux")
T5_WIDTH = 2 * WIDTH
PIPELINES = {"sd3": StableDiffusion3Pipeline, "flux": FluxPipeline}


def t5_config(width=T5_WIDTH, layers=2) -> T5Config:
    return T5Config(vocab_size=32128, d_model=width, d_kv=16, d_ff=2 * width, num_layers=layers, num_heads=4,
                    feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0)


def make_transformer(family: str, plain: bool = False) -> torch.nn.Module:
    """SD3 as 3.5 Medium has it: norms of q and k, and a block that attends twice; `plain` as SD3 Medium, without either.
    Flux as dev has it; `plain` as schnell, without guidance."""
    torch.manual_seed(1)
    if family == "flux":
        return FluxTransformer2DModel(num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=128,
                                      in_channels=64, joint_attention_dim=T5_WIDTH, pooled_projection_dim=WIDTH,
                                      guidance_embeds=not plain)
    return SD3Transformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=64, caption_projection_dim=128,
        joint_attention_dim=T5_WIDTH, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
        dual_attention_layers=() if plain else (0,), qk_norm=None if plain else "rms_norm")


def make_vae(family: str) -> AutoencoderKL:
    torch.manual_seed(2)
    scale, shift = {"sd3": (1.5305, 0.0609), "flux": (0.3611, 0.1159)}[family]
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=16, norm_num_groups=4, sample_size=64,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)


def make_folder(family: str, folder: Path, plain: bool = False) -> Path:
    """A diffusers folder of random weights. Norms' weights differ from 1, so that a lost one shows."""
    clip = CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token=END)
    parts = dict(vae=make_vae(family), transformer=make_transformer(family, plain), tokenizer=clip,
                 scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    torch.manual_seed(3)
    t5 = T5EncoderModel(t5_config())
    if family == "sd3":
        parts |= dict(
            text_encoder=CLIPTextModelWithProjection(text_config(layers=3)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(layers=3, activation="gelu")),
            tokenizer_2=CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token="!"),
            text_encoder_3=t5, tokenizer_3=t5_tokenizer())
    else:
        parts |= dict(text_encoder=CLIPTextModel(text_config()), text_encoder_2=t5, tokenizer_2=t5_tokenizer())
    with torch.no_grad():
        for name, parameter in parts["transformer"].named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "norm_out" in name or "proj_out" in name:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    PIPELINES[family](**parts).save_pretrained(folder)
    return folder


def single_file_weights(family: str, folder: Path) -> dict[str, torch.Tensor]:
    """The model of a diffusers folder as one state dict in the original layout."""
    kind = families.get(family)
    base = families.recognition.recognize(str(folder), "tiny")
    denoiser = kind.load_denoiser(base, torch.float32)
    weights = {f"model.diffusion_model.{kind.layer_names.key_map.native_tensor(name)}": tensor
               for name, tensor in denoiser.state_dict().items()}
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    weights |= {kind.vae_prefix + name: tensor for name, tensor in ldm_layout.original_vae_tensors(vae.state_dict()).items()}
    for name, encoder in kind.load_text(base, torch.float32).encoders.items():
        part = kind.text_parts[name]
        own = encoder.state_dict()
        own.pop("encoder.embed_tokens.weight", None)
        own = own if part.kind.kind == "t5" else with_prefix(own)
        weights |= {part.prefix + each: tensor for each, tensor in own.items()}
    return {name: tensor.clone().contiguous() for name, tensor in weights.items()}


def make_single_file(family: str, folder: Path, path: Path, dtype=torch.float32) -> Path:
    weights = single_file_weights(family, folder)
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
    return path
