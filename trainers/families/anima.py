"""Anima (CircleStone Labs 2026): Cosmos-Predict2's transformer (NVIDIA 2025, arXiv:2511.00062) for drawings. A small adapter
in the denoiser turns the states of Qwen3-0.6B and the ids of T5's tokens into the states of T5 that Cosmos was made for."""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..artifacts.layer_names.blocks import BASE, EXTRA, numbered
from ..artifacts.layer_names.key_map import NORM, KeyMap, Rule, Split
from ..artifacts.layer_names.transformer import TransformerNames
from ..artifacts.tensor_files import Entry
from ..spec import BaseModelSpec
from .conditioning import Conditioning, by_length
from .model_parts import ModelPart, ModelSource, Recognized
from .protocol import LoraPreset, TextEncoders, UsualSampling
from .qwen_latents import QwenLatents
from .text import taps
from .text.encoder_kind import TextPart
from .text.language_model import QWEN3, LanguageModel
from .text.t5 import t5_tokenizer
from .transformer_family import Shapes, TransformerFamily, layer_choices
from .variants import Variant
from .weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADAPTER, CONDITIONER = "llm_adapter", "text_conditioner"
"""What the original file and the denoiser in memory call the adapter, and diffusers, which has it as a model of its own."""
ADAPTER_BLOCKS = 6
LONGEST_SIDE = 2048
"""Of the latents of the largest images that positions are prepared for."""
STRETCHED = (1.0, 4.0, 4.0)
"""How far positions of (time, row, column) are extrapolated, as in ComfyUI; the file does not tell."""
SHIFT = 3.0
"""ComfyUI samples with it."""


def _block(native: str, module: str) -> Rule:
    native = f"blocks.{{}}.{native}"
    return Rule(native, f"transformer_blocks.{{}}.{module}", others=(Split(f"transformer.{native}"),))


def _attention(native: str, module: str) -> tuple[Rule, ...]:
    return (
        *(_block(f"{native}.{each}_proj", f"{module}.to_{each}") for each in "qkv"),
        _block(f"{native}.output_proj", f"{module}.to_out.0"),
        *(replace(_block(f"{native}.{each}_norm", f"{module}.norm_{each}"), tensors=NORM, others=()) for each in "qk"),
    )


def _modulation(native: str, module: str) -> tuple[Rule, ...]:
    return tuple(_block(f"adaln_modulation_{native}.{number}", f"{module}.linear_{number}") for number in (1, 2))


def _adapter(number: int) -> tuple[Rule, ...]:
    """One of its blocks, whose names are the same in memory."""
    def rule(name: str, **how) -> Rule:
        name = f"blocks.{number}.{name}"
        return Rule(f"{ADAPTER}.{name}", f"{ADAPTER}.{name}", others=(Split(f"{CONDITIONER}.{name}"),), **how)
    attentions = ("self_attn", "cross_attn")
    return (
        *(rule(f"{attention}.{each}_proj") for attention in attentions for each in "qkvo"),
        *(rule(f"{attention}.{each}_norm", tensors=NORM) for attention in attentions for each in "qk"),
        *(rule(f"norm_{each}", tensors=NORM) for each in (*attentions, "mlp")),
        rule("mlp.0"), rule("mlp.2"),
    )


KEY_MAP = KeyMap((
    *_attention("self_attn", "attn1"), *_attention("cross_attn", "attn2"),
    _block("mlp.layer1", "ff.net.0.proj"), _block("mlp.layer2", "ff.net.2"),
    *_modulation("self_attn", "norm1"), *_modulation("cross_attn", "norm2"), *_modulation("mlp", "norm3"),
    Rule("x_embedder.proj.1", "patch_embed.proj"),
    Rule("t_embedder.1.linear_1", "time_embed.t_embedder.linear_1"),
    Rule("t_embedder.1.linear_2", "time_embed.t_embedder.linear_2"),
    Rule("t_embedding_norm", "time_embed.norm", tensors=NORM),
    Rule("final_layer.adaln_modulation.1", "norm_out.linear_1"),
    Rule("final_layer.adaln_modulation.2", "norm_out.linear_2"),
    Rule("final_layer.linear", "proj_out"),
    *(rule for number in range(ADAPTER_BLOCKS) for rule in _adapter(number)),
    *(Rule(f"{ADAPTER}.{name}", f"{ADAPTER}.{name}", tensors=NORM) for name in ("embed", "norm")),
    Rule(f"{ADAPTER}.out_proj", f"{ADAPTER}.out_proj", others=(Split(f"{CONDITIONER}.out_proj"),)),
))
"""Sources: the original code (nvidia-cosmos/cosmos-predict2) and diffusers' conversion of LoRAs."""

ATTENTION = r"^transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)$"
FEED_FORWARD = r"^transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)$"
MODULATION = r"^transformer_blocks\.\d+\.norm[123]\.linear_[12]$"


class Anima(QwenLatents, TransformerFamily):
    name, title = "anima", "Anima"
    class_name, needs_diffusers, vae_prefix = "CosmosTransformer3DModel", "0.39", "vae."
    vae_files = ("qwen_image_vae.safetensors",)
    layer_names = TransformerNames(
        "anima", "Anima", (BASE, *numbered("BLOCK", 28), EXTRA), KEY_MAP,
        marker=f"{ADAPTER}.blocks.0.cross_attn.q_proj.weight", numbered=MappingProxyType({"blocks": "BLOCK"}),
        widths=frozenset({2048}), stated=("anima",), shared=True,
        reads=f"{ADAPTER}.blocks.0.cross_attn.k_proj")
    text_parts = MappingProxyType({
        "te1": TextPart("text_encoder", "qwen3_06b", LanguageModel(QWEN3, taps.ANIMA), ("qwen_3_06b_base.safetensors",))})
    variants = (Variant("Anima", sampling=UsualSampling(guidance=4.5, steps=30)),)
    """Sampling as the model's card says: 30 to 50 steps, guidance 4 to 5."""
    lora_targets = layer_choices(ATTENTION, FEED_FORWARD, MODULATION)
    lora_preset = LoraPreset(
        learning_rate=1e-4, rank=16, alpha=16, steps=2000, resolution=1024, min_snr_gamma=0.0,
        text_encoder_learning_rate=0.0, targets="attention and feed-forward",
        source="kohya's documentation for Anima: 1e-4 on attention and feed-forward, without the adapter; the author of its "
               "first script: rank 16")
    metadata = MappingProxyType({
        "ss_base_model_version": "anima", "ss_v2": "False", "modelspec.architecture": "anima"})

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        (width, patch), head = shapes["x_embedder.proj.1.weight"], shapes["blocks.0.self_attn.q_norm.weight"][0]
        # One channel more than latents have: the mask of padding, which images have none of.
        return dict(
            in_channels=patch // self.patch**2, out_channels=shapes["final_layer.linear.weight"][0] // self.patch**2,
            num_attention_heads=width // head, attention_head_dim=head, num_layers=KEY_MAP.blocks(shapes, "blocks"),
            mlp_ratio=shapes["blocks.0.mlp.layer1.weight"][0] / width, concat_padding_mask=False, extra_pos_embed_type=None,
            text_embed_dim=shapes["blocks.0.cross_attn.k_proj.weight"][1],
            adaln_lora_dim=shapes["blocks.0.adaln_modulation_mlp.1.weight"][0],
            max_size=(1, LONGEST_SIDE, LONGEST_SIDE), rope_scale=STRETCHED)

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        from diffusers.models.condition_embedders.condition_embedder_anima import AnimaRotaryEmbedding, AnimaTextConditioner

        own = {name.removeprefix(f"{ADAPTER}."): shape for name, shape in shapes.items() if name.startswith(f"{ADAPTER}.")}
        (said, inside), head = own["out_proj.weight"], own["blocks.0.cross_attn.q_norm.weight"][0]
        adapter = AnimaTextConditioner(
            source_dim=own["blocks.0.cross_attn.k_proj.weight"][1], model_dim=inside, target_dim=said,
            num_attention_heads=inside // head, num_layers=KEY_MAP.blocks(own, "blocks"),
            target_vocab_size=own["embed.weight"][0])
        with torch.device("cpu"):  # its numbers are in no file
            adapter.rotary_emb = AnimaRotaryEmbedding(head)
        denoiser = super().make_denoiser(shapes)
        denoiser.add_module(ADAPTER, adapter)
        return denoiser

    def _recognize_folder(self, source: ModelSource) -> Recognized | None:
        """Folders of Cosmos' own models have no adapter."""
        config = source.path / CONDITIONER / "config.json"
        found = super()._recognize_folder(source) if config.is_file() else None
        beside = weight_files(source.path, CONDITIONER, source.name).files if found else []
        return found and replace(found, files=tuple(sorted({*found.files, config, *beside})))

    def module_entries(self, part: ModelPart) -> dict[str, Entry]:
        """With the adapter, which folders hold as a component of its own."""
        if not part.is_folder:
            return super().module_entries(part)
        beside = replace(part, name=CONDITIONER, path=part.path.parent / CONDITIONER)
        own = {f"{ADAPTER}.{name}": entry for name, entry in beside.entries().items()}
        return super().module_entries(part) | own

    def load_tokenizers(self, base: BaseModelSpec) -> Mapping[str, "PreTrainedTokenizerBase"]:
        return {**super().load_tokenizers(base), "t5": t5_tokenizer()}

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """"ids" of T5's tokens beside the states, int64 [batch, tokens], the end token included."""
        said = super().encode_with(text, encoder, captions)
        ids = (text.tokenizers["t5"](caption, truncation=False, verbose=False).input_ids for caption in captions)
        pieces = Conditioning.collated([Conditioning({"ids": torch.tensor([each])}) for each in ids])
        return said | pieces.to(said["hidden"].device)

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        return lambda height, width: SHIFT

    def predict(self, denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """An image is a video of one frame. "hidden" is float [batch, tokens, width] of Qwen3, "ids" int [batch, tokens] of
        T5. The adapter sees each caption without padding; its states are filled with zeros, which count, to 512."""
        frames = torch.cat([latents, torch.zeros_like(latents[:, :1])], dim=1)[:, :, None]
        alone = (zip(conditioning[name].split(1), conditioning.lengths(name)) for name in ("hidden", "ids"))
        adapter = denoiser.get_submodule(ADAPTER)
        states = Conditioning.collated([Conditioning({"states": adapter(words[:, :count], pieces[:, :length])})
                                        for (words, count), (pieces, length) in zip(*alone)])

        def some(said: Conditioning, chosen: Tensor) -> Tensor:
            return denoiser(frames[chosen], timesteps[chosen] / 1000, said["states"], return_dict=False)[0]
        return by_length(some, states, "states")[:, :, 0]


ANIMA = Anima()
