"""Tiny real models of every family, as diffusers folders and as single files in the original layout."""
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from finetune.trainers.artifacts import ldm_layout
from finetune.trainers.artifacts.layer_names.unet import original_unet_name
from finetune.trainers.families.component_configs import CONFIGS
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd1", "sd2", "sdxl")
WIDTH = 32
END = "<|endoftext|>"


def text_config(width=WIDTH, layers=2, activation="quick_gelu") -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, projection_dim=width, max_position_embeddings=77, hidden_act=activation,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
    )


def make_unet(family: str) -> UNet2DConditionModel:
    torch.manual_seed(1)
    common = dict(sample_size=8, layers_per_block=1, norm_num_groups=16)
    if family == "sdxl":
        return UNet2DConditionModel(
            **common, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4), cross_attention_dim=2 * WIDTH, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        )
    return UNet2DConditionModel(
        **common, block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=WIDTH, attention_head_dim=4,
        use_linear_projection=family == "sd2",
    )


def make_vae(family: str) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        scaling_factor=0.13025 if family == "sdxl" else 0.18215,
    )


def make_folder(family: str, folder: Path) -> Path:
    """A diffusers folder of random weights."""
    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token="!" if family == "sd2" else END)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction" if family == "sd2" else "epsilon",
    )
    torch.manual_seed(3)
    parts = dict(vae=make_vae(family), tokenizer=tokenizer, unet=make_unet(family), scheduler=scheduler)
    text = CLIPTextModel(text_config(activation="gelu" if family == "sd2" else "quick_gelu"))
    if family == "sdxl":
        second = CLIPTextModelWithProjection(text_config(activation="gelu"))
        tokenizer_2 = CLIPTokenizer.from_pretrained(CONFIGS / "clip_tokenizer", pad_token="!")
        pipeline = StableDiffusionXLPipeline(
            **parts, text_encoder=text, text_encoder_2=second, tokenizer_2=tokenizer_2,
            force_zeros_for_empty_prompt=False, add_watermarker=False,
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, text_encoder=text, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder


def with_prefix(weights: dict) -> dict:
    """transformers ≥ 5.6 names CLIPTextModel's weights without `text_model.`."""
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
        for name, tensor in weights.items()
    }


def single_file_weights(family: str, unet, vae, text, text_2=None) -> dict[str, torch.Tensor]:
    """The parts of a model as one state dict in the original layout."""
    attention = ["CrossAttn" in block for block in unet.config.up_block_types]
    weights = {
        "model.diffusion_model." + original_unet_name(name, unet.config.layers_per_block, attention): tensor
        for name, tensor in unet.state_dict().items()
    }
    weights |= {f"first_stage_model.{name}": t for name, t in ldm_layout.original_vae_tensors(vae.state_dict()).items()}
    if family == "sd2":
        text = ldm_layout.open_clip_tensors(with_prefix(text.state_dict()))
        weights |= {f"cond_stage_model.model.{name}": tensor for name, tensor in text.items()}
    else:
        prefix = "conditioner.embedders.0.transformer." if family == "sdxl" else "cond_stage_model.transformer."
        weights |= {prefix + name: tensor for name, tensor in with_prefix(text.state_dict()).items()}
    if family == "sdxl":
        second = ldm_layout.open_clip_tensors(with_prefix(text_2.state_dict()))
        weights |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    return {name: tensor.clone().contiguous() for name, tensor in weights.items()}


def make_single_file(family: str, folder: Path, path: Path, dtype=torch.float32) -> Path:
    """The model of a diffusers folder as one checkpoint in the original layout."""
    pipeline_class = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    parts = pipeline_class.from_pretrained(folder).components
    weights = single_file_weights(family, parts["unet"], parts["vae"], parts["text_encoder"], parts.get("text_encoder_2"))
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path)
    return path


def make_images(folder: Path, count: int = 4, size=(64, 64)) -> Path:
    """Plain colored squares with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        color = (60 * number % 256, 200 - 40 * number % 256, 30 * number % 256)
        Image.new("RGB", size, color).save(folder / f"square_{number}.png")
        (folder / f"square_{number}.txt").write_text(f"a square, number {number}", encoding="utf-8")
    return folder


def half_mask(size=(64, 64), white="left") -> Image.Image:
    """A mask whose left or right half is white."""
    mask, middle = Image.new("L", size, 0), size[0] // 2
    mask.paste(255, (0, 0, middle, size[1]) if white == "left" else (middle, 0, *size))
    return mask


def make_masked_images(folder: Path, count: int = 4) -> Path:
    """Captioned images whose halves differ in color, with masks that leave the left half white."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.new("RGB", (64, 64), (255, 40 * number, 0))
        image.paste((0, 60 * number, 255), (32, 0, 64, 64))
        image.save(folder / f"{number}.png")
        half_mask().save(folder / f"{number}-masklabel.png")
        (folder / f"{number}.txt").write_text(f"image {number}", encoding="utf-8")
    return folder
