"""Krea 2 Raw and Turbo (Krea 2026, technical report): one stream of text and image, told by states of twelve layers of
Qwen3-VL-4B, which small blocks fuse into one. Raw is made for training, and Turbo, distilled from it, for making images."""
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import SCALE, WHOLE, KeyMap, Rule, Split
from ..artifacts.layer_names.transformer import TransformerNames
from ..artifacts.tensor_files import Entry
from ..objectives.noise import ShiftByLength
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .model_parts import ModelPart
from .protocol import LoraPreset, UsualSampling
from .qwen_latents import QwenLatents
from .text import taps
from .text.encoder_kind import TextPart
from .text.language_model import QWEN3_VL, LanguageModel
from .transformer_family import Shapes, TransformerFamily
from .variants import Variant

FUSION = tuple(f"{kind}_blocks.{number}" for kind in ("layerwise", "refiner") for number in range(2))
"""Blocks that fuse the states of a token's layers, and blocks that let tokens attend to each other."""
TEXT_FILES = ("qwen3vl_4b_bf16.safetensors", "qwen3vl_4b_fp8_scaled.safetensors")
SHIFT = ShiftByLength(second=(6400, 1.15))
"""The line of Raw's scheduler; Turbo has its far end at every size (diffusers' pipeline)."""


def _block(native: str, module: str) -> tuple[Rule, ...]:
    """What all blocks have in common."""
    def layer(own: str, theirs: str) -> Rule:
        return Rule(f"{native}.{own}", f"{module}.{theirs}", others=(Split(f"transformer.{native}.{own}"),))

    def norm(own: str, theirs: str) -> Rule:
        return Rule(f"{native}.{own}", f"{module}.{theirs}", tensors=SCALE)
    return (
        layer("attn.wq", "attn.to_q"), layer("attn.wk", "attn.to_k"), layer("attn.wv", "attn.to_v"),
        layer("attn.gate", "attn.to_gate"), layer("attn.wo", "attn.to_out.0"),
        layer("mlp.gate", "ff.gate"), layer("mlp.up", "ff.up"), layer("mlp.down", "ff.down"),
        norm("attn.qknorm.qnorm", "attn.norm_q"), norm("attn.qknorm.knorm", "attn.norm_k"),
        norm("prenorm", "norm1"), norm("postnorm", "norm2"),
    )


KEY_MAP = KeyMap((
    *_block("blocks.{}", "transformer_blocks.{}"),
    Rule("blocks.{}.mod.lin", "transformer_blocks.{}.modulation", tensors=WHOLE),
    *(rule for each in FUSION for rule in _block(f"txtfusion.{each}", f"text_fusion.{each}")),
    Rule("txtfusion.projector", "text_fusion.projector"),
    Rule("txtmlp.0", "txt_in.norm", tensors=SCALE),
    Rule("txtmlp.1", "txt_in.linear_1"), Rule("txtmlp.3", "txt_in.linear_2"),
    Rule("first", "img_in"),
    Rule("tmlp.0", "time_embed.linear_1"), Rule("tmlp.2", "time_embed.linear_2"), Rule("tproj.1", "time_mod_proj"),
    Rule("last.norm", "final_layer.norm", tensors=SCALE), Rule("last.linear", "final_layer.linear"),
    Rule("last.modulation.lin", "final_layer.scale_shift_table", tensors=WHOLE),
))
"""Sources: the original code (krea-ai/krea-2) and diffusers' conversion of single files."""

ATTENTION = r"^transformer_blocks\.\d+\.attn\.to_(q|k|v|gate|out\.0)$"
FEED_FORWARD = r"^transformer_blocks\.\d+\.ff\.(gate|up|down)$"


class Krea2(QwenLatents, TransformerFamily):
    name, title = "krea2", "Krea 2"
    class_name, needs_diffusers, vae_prefix = "Krea2Transformer2DModel", "0.39", "vae."
    vae_files = ("qwen_image_vae.safetensors",)
    layer_names = TransformerNames(
        "krea2", "Krea 2", (BASE, *numbered("BLOCK", 28), EXTRA), KEY_MAP, marker="txtfusion.projector.weight",
        numbered=MappingProxyType({"blocks": "BLOCK"}), widths=frozenset({6144, 2560}),
        stated=("krea2", "krea-2", "krea_2"), written="comfyui", reads="txtmlp.1")
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "qwen3vl_4b", LanguageModel(QWEN3_VL, taps.KREA2), TEXT_FILES)})
    variants = (
        Variant("Krea 2 Turbo", r"(?<!de)(?<!de-)turbo", guidance="none", sampling=UsualSampling(steps=8), distilled=True,
                instead="Krea 2 Raw, whose LoRAs are made to be used on Turbo",
                assistant="ostris publishes krea2_turbo_training_adapter"),
        Variant("Krea 2 Raw", sampling=UsualSampling(guidance=5.5, steps=28)),
    )
    """Sampling as in diffusers' pipeline, whose guidance of 4.5 is 5.5 in other programs."""
    lora_targets = MappingProxyType({
        "attention": ATTENTION,
        "attention and feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all with convolutions": ".",
    })
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=32, alpha=32, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0, targets="all with convolutions",
        source="the model's authors, in musubi-tuner's documentation and diffusers' README for Krea 2: rank and alpha 32 on "
               "all linear layers; musubi-tuner's and ai-toolkit's rate 1e-4")
    lora_goals = MappingProxyType({
        "style": replace(lora_preset, learning_rate=3e-4, steps=1000,
                         source="diffusers' DreamBooth README for Krea 2: rank and alpha 32, 3e-4, 1000 steps"),
    })
    metadata = MappingProxyType({
        "ss_base_model_version": "krea2", "ss_v2": "False", "modelspec.architecture": "krea-2"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        width, text_width = shapes["first.weight"][0], shapes["txtmlp.1.weight"][1]
        text = f"txtfusion.{FUSION[0]}"
        head, text_head = (shapes[f"{block}.attn.qknorm.qnorm.scale"][0] for block in ("blocks.0", text))
        turned = 6 * (head // 16)
        return dict(
            in_channels=shapes["first.weight"][1], num_layers=KEY_MAP.blocks(shapes, "blocks"), attention_head_dim=head,
            num_attention_heads=width // head, num_key_value_heads=shapes["blocks.0.attn.wk.weight"][0] // head,
            intermediate_size=shapes["blocks.0.mlp.up.weight"][0], timestep_embed_dim=shapes["tmlp.0.weight"][1],
            text_hidden_dim=text_width, num_text_layers=shapes["txtfusion.projector.weight"][1],
            text_num_attention_heads=text_width // text_head,
            text_num_key_value_heads=shapes[f"{text}.attn.wk.weight"][0] // text_head,
            text_intermediate_size=shapes[f"{text}.mlp.up.weight"][0], axes_dims_rope=(head - 2 * turned, turned, turned))

    def to_native_layout(self, denoiser: nn.Module):
        from diffusers.models.transformers.transformer_krea2 import Krea2RMSNorm, Krea2TransformerBlock

        class Norm(Krea2RMSNorm):
            """Adds the 1 in float32, whatever the weights are kept in: in bfloat16 most of them would vanish beside it."""

            def forward(self, hidden_states: Tensor) -> Tensor:
                normed = F.rms_norm(hidden_states.float(), (self.dim,), self.weight.float() + 1, self.eps)
                return normed.to(hidden_states.dtype)

        class Block(Krea2TransformerBlock):
            """Its modulation is one row of numbers, as in the original file; diffusers has a table of six rows."""

            modulation: nn.Parameter
            scale_shift_table = 0.0

            def forward(self, hidden_states: Tensor, temb: Tensor, *others: Any) -> Tensor:
                return super().forward(hidden_states, temb + self.modulation, *others)

        for module in list(denoiser.modules()):
            if type(module) is Krea2RMSNorm:
                module.__class__ = Norm
            elif type(module) is Krea2TransformerBlock:
                module.modulation = nn.Parameter(module.scale_shift_table.flatten())
                del module.scale_shift_table
                module.__class__ = Block

    def module_entries(self, part: ModelPart) -> dict[str, Entry]:
        """With the tables of a folder as one row."""
        found = super().module_entries(part)
        tables = {name: entry for name, entry in found.items() if part.is_folder and name.startswith("transformer_blocks.")
                  and name.endswith(".scale_shift_table")}
        rows = {name.replace("scale_shift_table", "modulation"): _as_one_row(entry) for name, entry in tables.items()}
        return {name: entry for name, entry in found.items() if name not in tables} | rows

    def base_notes(self, base: BaseModelSpec) -> list[str]:
        if self.variant(base).distilled:
            return super().base_notes(base)
        return ["Krea 2 Raw is made to be trained: previews look rougher than what the result makes on Krea 2 Turbo"]

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        if self.variant(base).distilled:
            return lambda height, width: SHIFT(SHIFT.second[0])
        return lambda height, width: SHIFT(height // self.patch * (width // self.patch))

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Latents become tokens of 2 × 2 behind those of the text, which all have the place 0. "hidden" is float [batch,
        tokens, layers, width]."""
        height, width = latents.shape[-2] // 2, latents.shape[-1] // 2
        packed = F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)
        places = torch.zeros(height, width, 3, device=latents.device)
        places[..., 1] = torch.arange(height, device=latents.device)[:, None]
        places[..., 2] = torch.arange(width, device=latents.device)[None]

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            words = torch.zeros(said["hidden"].shape[1], 3, device=latents.device)
            return denoiser(packed[chosen], said["hidden"], timesteps[chosen] / 1000,
                            torch.cat([words, places.flatten(0, 1)]), return_dict=False)[0]
        found = by_length(some, conditioning, "hidden")
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height, width)), 2)


def _as_one_row(entry: Entry) -> Entry:
    return replace(entry, shape=(entry.shape[0] * entry.shape[1],),
                   pieces=lambda: (piece.flatten() for piece in entry.pieces()))


KREA2 = Krea2()
