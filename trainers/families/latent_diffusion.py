"""What SD 1.x, SD 2.x and SDXL have in common: a UNet over four-channel latents and CLIP text encoders."""
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..artifacts.layer_names import ReleasedNames
from ..artifacts.tensor_files import Entry
from ..artifacts.weights import Weights
from ..memory.placement import Keeper, as_they_are, settle
from ..spec import BaseModelSpec
from . import checkpoint_writing, component_loading, unet_recognition
from .component_configs import component_config, config_folder
from .filling import without_weights
from .kl_latents import KlLatents, content_of
from .model_parts import TOKENIZERS, ModelParts, ModelSource, Recognized
from .protocol import Family, LoraPreset
from .samplers import DiscreteSampler
from .separate_files import WantedPart
from .sizes import UNET, stated_sizes
from .text import clip

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ATTENTION = r"attn[12]\.to_(q|k|v|out\.0)$"
LORA_TARGETS = MappingProxyType({
    "attention": ATTENTION,
    "attention and feed-forward": rf"{ATTENTION}|ff\.net\.(0\.proj|2)$|proj_(in|out)$",
    "all with convolutions": (
        rf"{ATTENTION}|ff\.net\.(0\.proj|2)$|proj_(in|out)$"
        r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)$|(down|up)samplers\.0\.conv$"
    ),
})
"""The first is the target list of the diffusers LoRA examples; the second adds what kohya's LoRA adds by default
(its Transformer2DModel modules); the third what kohya adds with `conv_dim`."""
SMALL = 160
"""UNets whose first width is below this are no released model but a small one, such as the demo base (64)."""


class LatentDiffusion(KlLatents, Family[nn.Module, "UNet2DConditionModel"]):
    """The half of the family protocol that does not differ between the generations."""

    name: str
    lora_preset: LoraPreset
    capabilities = frozenset({"lora", "full", "text_encoder", "hypernetwork", "textual_inversion"})
    lora_targets = LORA_TARGETS
    embedding_keys: Mapping[str, str] = MappingProxyType({"te": "emb_params"})
    text_places: Mapping[str, tuple[str, str]]
    """Text encoder → its folder in diffusers' layout, and its prefix in a single file."""

    @property
    def layer_names(self) -> ReleasedNames:
        return ReleasedNames(self.name)

    @property
    def separate_parts(self) -> Sequence[WantedPart]:
        return unet_recognition.PARTS[self.name]

    def native_resolution(self, base: BaseModelSpec) -> int:
        side = component_config(base, "unet").get("sample_size")
        return side * self.latent_format(base).downscale if isinstance(side, int) else self.lora_preset.resolution

    def is_small(self, base: BaseModelSpec) -> bool:
        return component_config(base, "unet")["block_out_channels"][0] < SMALL

    def size_metadata(self, base: BaseModelSpec) -> dict[str, str]:
        return stated_sizes(config_folder(base), self.name)

    def recognize(self, source: ModelSource) -> Recognized | None:
        return unet_recognition.recognize(source, self.name)

    def prediction_type_of(self, path: Path, tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
        return unet_recognition.prediction_type_of(path, tensors, metadata)

    def caption_identity(self, base: BaseModelSpec, memory: Path) -> Sequence:
        """Captions are cut at the length that the config of their encoder says."""
        encoders, parts = [component for component, _ in self.text_places.values()], ModelParts.of(base)
        tokenizers = [parts[name].fingerprint(memory) for name in TOKENIZERS if name in parts]
        return [self.name, tokenizers, *content_of(base, memory, encoders)]

    def load_denoiser(self, base: BaseModelSpec, dtype: torch.dtype,
                      keeper: Keeper = as_they_are) -> "UNet2DConditionModel":
        denoiser = component_loading.load_unet(base, dtype)
        settle(denoiser, keeper(self.swappable_blocks(denoiser)))
        return denoiser

    def empty_denoiser(self, base: BaseModelSpec) -> "UNet2DConditionModel":
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return without_weights(lambda: cast("UNet2DConditionModel", UNet2DConditionModel.from_config(
            component_config(base, "unet"))))

    def swappable_blocks(self, denoiser: "UNet2DConditionModel") -> Sequence[nn.Module]:
        """Residual blocks, each followed by the transformer blocks behind it."""
        found: list[nn.Module] = []
        for level in (*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks):
            attentions = list(getattr(level, "attentions", []))
            for number, residual in enumerate(cast("Iterable[nn.Module]", level.resnets)):
                found.append(residual)
                found += [block for attention in attentions[number:number + 1] for block in attention.transformer_blocks]
        return found

    def alphas_cumprod(self, base: BaseModelSpec) -> Tensor:
        return component_loading.load_alphas_cumprod(base)

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> DiscreteSampler:
        return DiscreteSampler(component_loading.load_sampler(base, zero_terminal_snr))

    def token_count(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], caption: str) -> tuple[int, int]:
        return clip.token_count(next(iter(tokenizers.values())), caption)

    def encoder_names(self, base: BaseModelSpec) -> tuple[str, ...]:
        return tuple(self.text_places)

    def text_lora_target(self, encoder_name: str, encoder: "PreTrainedModel") -> str:
        return clip.LORA_TARGET

    def text_key(self, encoder_name: str, module_name: str) -> str:
        return clip.lora_key(encoder_name, module_name)

    def checkpoint_entries(self, base: BaseModelSpec, denoiser: "UNet2DConditionModel", encoders: Mapping[str, nn.Module],
                           dtype: torch.dtype, zero_terminal: bool = False) -> list[Entry]:
        def others() -> checkpoint_writing.Pieces:
            text = {**self.load_text(base, dtype).encoders, **encoders}
            vae = checkpoint_writing.vae_pieces(self.load_vae(base))
            return {**vae, **self._text_pieces(text), **self.idle_layers(text)}

        trained = {**checkpoint_writing.unet_pieces(denoiser), **self._text_pieces(encoders)}
        entries = checkpoint_writing.checkpoint_entries(trained, base, others, dtype)
        return self.marked(list(entries.values()), base, zero_terminal)

    def _text_pieces(self, encoders: Mapping[str, nn.Module]) -> checkpoint_writing.Pieces:
        return {name: pieces for encoder, module in encoders.items()
                for name, pieces in checkpoint_writing.text_pieces(module, self.text_places[encoder][1]).items()}

    def idle_layers(self, encoders: Mapping[str, nn.Module]) -> checkpoint_writing.Pieces:
        """Layers that a single file holds and a diffusers folder has left out, because nobody reads them."""
        return {}

    def marked(self, entries: list[Entry], base: BaseModelSpec, zero_terminal: bool) -> list[Entry]:
        """The entries with the marker tensors from which loaders know what the model predicts."""
        return entries

    def trained_and_base(self, base: BaseModelSpec, denoiser: "UNet2DConditionModel",
                         encoders: Mapping[str, nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
        if base.layout == "single_file":
            trained = {**checkpoint_writing.unet_pieces(denoiser), **self._text_pieces(encoders)}
            yield from checkpoint_writing.pairs_in_file(trained, Weights.of_file(Path(base.path)).entries)
            return
        parts = ModelParts.of(base)
        if base.layout == "diffusers":
            yield from checkpoint_writing.pairs_in_folder(denoiser, parts["unet"].files)
        else:
            stored = {UNET + name: entry for name, entry in parts["unet"].entries().items()}
            yield from checkpoint_writing.pairs_in_file(checkpoint_writing.unet_pieces(denoiser), stored)
        for encoder, module in encoders.items():
            yield from checkpoint_writing.pairs_in_folder(module, parts[self.text_places[encoder][0]].files)

    def attention_widths(self, base: BaseModelSpec) -> dict[str, frozenset[int]]:
        config = component_config(base, "unet")
        levels = zip(config["block_out_channels"], config["down_block_types"])
        inner = [width for width, block in levels if block.startswith("CrossAttn")]
        return {
            "self-attention": frozenset([*inner, config["block_out_channels"][-1]]),  # the middle block attends too
            "cross-attention": frozenset([config["cross_attention_dim"]]),
        }

    def block_of(self, module_name: str) -> str:
        match = re.match(r"(down|up)_blocks\.(\d+)\.|mid_block\.", module_name)
        return "other" if not match else f"{match[1]}.{match[2]}" if match[1] else "mid"

    def block_names(self, base: BaseModelSpec) -> list[str]:
        levels = range(len(component_config(base, "unet")["block_out_channels"]))
        return [*(f"down.{level}" for level in levels), "mid", *(f"up.{level}" for level in levels), "other"]
