"""Tiny denoisers alone, without the text encoders and the VAE that go with them."""
from pathlib import Path

import torch
from diffusers import QwenImage21Transformer2DModel, QwenImageTransformer2DModel
from finetune.trainers import families
from finetune.trainers import spec as specs

WIDTH = 40
"""Of what text encoders say."""
MAKERS = {
    "qwen_image": lambda: QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=1, joint_attention_dim=WIDTH),
    "qwen_image_21": lambda: QwenImage21Transformer2DModel(
        num_layers=2, attention_head_dim=128, num_attention_heads=1, context_in_dim=WIDTH),
}
CHANNELS = {"qwen_image": 16, "qwen_image_21": 64}


def make(family: str) -> torch.nn.Module:
    """diffusers' own. Norms' weights differ from what they are at first, so that a lost one shows."""
    torch.manual_seed(1)
    model = MAKERS[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def loaded(family: str, folder: Path) -> torch.nn.Module:
    """The same in memory as the family has it, by way of a folder."""
    make(family).save_pretrained(folder / "transformer")
    part = specs.ComponentSpec(name="transformer", path=str(folder / "transformer"))
    base = specs.BaseModelSpec(family=family, path=str(folder), name=family, layout="diffusers", prediction_type="flow",
                               fingerprint="none", components=(part,))
    return families.get(family).load_denoiser(base, torch.float32)
