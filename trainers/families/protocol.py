"""What a model family offers to methods, caches and the loop.

A family is one object. It holds no weights: `load_*` functions return modules and the other functions take them, so
that parts can be loaded, used and freed one at a time.
"""
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from ..artifacts.layer_names import FamilyNames, underscored
from ..artifacts.tensor_files import Entry, entry_of
from ..data.images.buckets import Crop
from ..memory.placement import Keeper, Place, as_they_are, assign
from ..objectives.noise import FamilyShift
from ..reports import FileKind
from ..spec import BaseModelSpec
from .conditioning import Conditioning
from .model_parts import ModelParts, ModelSource, Recognized
from .separate_files import WantedPart

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Vae = TypeVar("Vae", bound=nn.Module)
Denoiser = TypeVar("Denoiser", bound=nn.Module)

Guidance = Literal["classifier-free", "distilled", "none"]
"""How images follow the prompt more closely. "classifier-free": two predictions, one of them for the negative prompt (Ho &
Salimans 2022, arXiv:2207.12598). "distilled": one, for which the conditioning holds the strength as "guidance" [batch].
"none": one, and the strength is not read."""


@dataclass(frozen=True)
class UsualSampling:
    """How images of a base are made where nobody says otherwise: the strength of the guidance, of whatever kind, and the
    steps of the family's sampler."""

    guidance: float = 7.0
    steps: int = 20


Predict = Callable[[Tensor, Tensor], Tensor]
"""(latents [batch, …], timestep []) → the denoiser's prediction in float32, guidance included."""


class Sampler(Protocol):
    """How a family makes images out of noise: the noise levels, what they do to the noise and how a step goes."""

    @property
    def guidance(self) -> Guidance: ...

    def sample(self, predict: Predict, noise: Tensor, steps: int) -> Tensor:
        """Unit Gaussian noise [batch, channels, height, width] → latents, in `steps` steps."""
        ...


@dataclass(frozen=True)
class LatentFormat:
    """Latents handed to the denoiser are (vae output - shift) · scale, at 1 / `downscale` of the image's size."""

    channels: int
    scale: float
    shift: float = 0.0
    downscale: int = 8
    multiple: int = 8
    """Pixels that the sides of images must be a multiple of: `downscale` times the side of the denoiser's patches."""


@dataclass(frozen=True)
class LoraPreset:
    """Starting values for a LoRA of this family that published recipes agree on."""

    learning_rate: float
    rank: int
    alpha: float
    steps: int
    resolution: int
    min_snr_gamma: float
    text_encoder_learning_rate: float
    source: str
    batch_size: int = 1
    targets: str = "attention"


GOALS = "style", "subject", "quick try"


class TextEncoders(nn.Module):
    """Tokenizers and text encoders that belong together, by the names that LoRA files give them ("te", "te1", …).

    `clip_skip` is the layer whose states are read, counted from the end; 0 is the family's own. `text_length` is the number
    of tokens to which T5's captions are padded or cut; 0 is as ComfyUI encodes. `aliases` are whole words of captions and
    the text that the tokenizers see instead.
    """

    def __init__(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], encoders: Mapping[str, "PreTrainedModel"]):
        super().__init__()
        self.tokenizers = dict(tokenizers)
        # torch's own types say neither that a ModuleDict is a mapping nor of what.
        self.encoders = cast("Mapping[str, PreTrainedModel]", nn.ModuleDict(encoders))
        self.clip_skip = self.text_length = 0
        self.aliases: dict[str, str] = {}


class Family(Protocol[Vae, Denoiser]):
    """A family may inherit from this: what has a body here is what most families answer. Checkpoints are then the
    denoiser alone, in a file of its own. `Vae` and `Denoiser` are the classes that it loads."""

    name: str
    """Identifier in specs, for example "sd1"."""
    title: str
    """What people call it, for example "Stable Diffusion 1.x"."""
    capabilities: frozenset[str]
    lora_targets: Mapping[str, str]
    """Choice of `LoraSpec.targets` → regular expression over the denoiser's module names."""
    lora_preset: LoraPreset
    lora_goals: Mapping[str, LoraPreset] = MappingProxyType({})
    """Where recipes differ by what a LoRA is for, one of GOALS."""
    embedding_keys: Mapping[str, str]
    """Text encoder → the name of its vectors in embedding files."""
    large_encoders: Collection[str] = ()
    """Text encoders that recipes leave as they are, such as T5: they learn only where that is asked for."""
    layer_names: FamilyNames
    """The names of its layers in every program's files, and their blocks."""

    @property
    def separate_parts(self) -> Sequence[WantedPart]:
        """What lies beside a denoiser in a file of its own; empty where such files are not read."""
        return ()

    def parts_beside(self, width: int) -> Sequence[WantedPart]:
        """The same of a denoiser that reads states of text of this width: models of a family may differ in that."""
        return self.separate_parts

    metadata: Mapping[str, str]
    """Base-model strings that LoRA managers read: `ss_base_model_version`, `modelspec.architecture`, …"""

    def base_metadata(self, base: BaseModelSpec) -> Mapping[str, str]:
        """`metadata` with what is to be said of this base alone, and `modelspec.implementation`."""
        return self.metadata

    def size_metadata(self, base: BaseModelSpec) -> dict[str, str]:
        """What a checkpoint made of this base must say of its sizes to be loaded again; empty for released sizes."""
        return {}

    def native_resolution(self, base: BaseModelSpec) -> int:
        """Pixels of the side of the square images that a base was made for."""
        return self.lora_preset.resolution

    def is_small(self, base: BaseModelSpec) -> bool:
        """Whether a base is smaller than the released models of the family, and so wants other starting values."""
        return False

    def base_title(self, base: BaseModelSpec) -> str:
        """What people call a base: the family's title, or which of its released models it is."""
        return self.title

    def base_notes(self, base: BaseModelSpec) -> list[str]:
        """What people should know before they train on this base, as clauses without a full stop."""
        return []

    def precision_note(self, dtype: torch.dtype) -> str:
        """What to know of a run that computes in this precision, as a clause; empty: nothing."""
        return ""

    def recognize(self, source: ModelSource) -> Recognized | None:
        """What a file or folder is, if it is of this family; None for everything else. UserError for a model of this family
        that cannot be trained."""
        ...

    def prediction_type_of(self, path: Path, tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
        """What a single file of this family says that it predicts, from its header; "" for what is of no such family."""
        return ""

    def latent_format(self, base: BaseModelSpec) -> LatentFormat: ...

    def latent_identity(self, base: BaseModelSpec, memory: Path) -> Sequence:
        """What latents depend on besides the image, as JSON: the content of the VAE, and how latents are scaled. Bases that
        share it share what is encoded. `memory` is the folder that remembers fingerprints."""
        vae = ModelParts.of(base)["vae"]
        return [self.name, asdict(self.latent_format(base)), vae.fingerprint(memory)]

    def caption_identity(self, base: BaseModelSpec, memory: Path) -> Sequence:
        """The same of conditioning besides the caption: text encoders, tokenizers, how long a caption may be."""
        parts = ModelParts.of(base).parts
        text = sorted(name for name in parts if name not in ("denoiser", "vae"))
        return [self.name, *(parts[name].fingerprint(memory) for name in text)]

    def load_vae(self, base: BaseModelSpec) -> Vae:
        """The autoencoder in float32 (half precision overflows in SDXL's)."""
        ...

    def encoder_names(self, base: BaseModelSpec) -> Sequence[str]:
        """The text encoders of a base, in the order in which `joined` takes what they say."""
        ...

    def load_text(self, base: BaseModelSpec, dtype: torch.dtype, only: Collection[str] | None = None,
                  place: Place = assign) -> TextEncoders:
        """The text encoders of a base, or only some; `place` puts their weights where they belong."""
        ...

    def reads_clip_skip(self, base: BaseModelSpec) -> bool:
        """Whether `TextEncoders.clip_skip` counts: token states of CLIP reach the denoiser."""
        return True

    def reads_text_length(self, base: BaseModelSpec) -> bool:
        """Whether a text encoder of this base is told how long captions are, so that `TextEncoders.text_length` counts."""
        return False

    def cuts_captions(self, base: BaseModelSpec) -> bool:
        """Whether captions with more tokens than fit are cut where no length is said; else they are read whole."""
        return not self.reads_text_length(base)

    def large_text_weights(self, base: BaseModelSpec) -> int:
        """Numbers in the largest text encoder of this base, where it may be too large for a GPU on its own."""
        return 0

    def load_denoiser(self, base: BaseModelSpec, dtype: torch.dtype, keeper: Keeper = as_they_are) -> Denoiser:
        """The denoiser, frozen, on the CPU; what `keeper` makes of `swappable_blocks` puts its weights where they belong."""
        ...

    def empty_denoiser(self, base: BaseModelSpec) -> Denoiser | None:
        """The denoiser without weights, on the meta device; None where there is no way to make it so."""
        return None

    def swappable_blocks(self, denoiser: Denoiser) -> Sequence[nn.Module]:
        """Blocks of the denoiser, which may still be without weights, that can be away until they are needed, in the order
        of the data flow. None lies in another."""
        return []

    def unread_layers(self, denoiser: nn.Module) -> Collection[str]:
        """Layers of the denoiser, by their modules' names, whose output reaches nothing: they can learn nothing."""
        return ()

    def alphas_cumprod(self, base: BaseModelSpec) -> Tensor | None:
        """The discrete noise schedule, float32 [steps]; None for flow models."""
        return None

    def timestep_shift(self, base: BaseModelSpec) -> Callable[[int, int], float]:
        """How far noise levels of latents of a size (height, width) are shifted towards noise, in training and sampling of
        flow models (Esser et al. 2024, arXiv:2403.03206, eq. 23): often a function of the length of the sequence that they
        become. 1: not."""
        return lambda height, width: 1.0

    def noise_shift(self, base: BaseModelSpec) -> FamilyShift:
        """`timestep_shift`, and what else the settings of the objective may follow, for this base."""
        form = self.latent_format(base)
        return FamilyShift(self.timestep_shift(base), self.native_resolution(base) // form.downscale,
                           form.multiple // form.downscale)

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> Sampler:
        """For previews and class images; with `zero_terminal_snr` on the rescaled schedule, from pure noise."""
        ...

    def usual_sampling(self, base: BaseModelSpec) -> UsualSampling:
        return UsualSampling()

    def encode_images(self, vae: Vae, pixels: Tensor, latent_format: LatentFormat) -> Tensor:
        """Pixels float [batch, 3, height, width] in -1…1 → latents [batch, channels, height / 8, width / 8]."""
        ...

    def decode_latents(self, vae: Vae, latents: Tensor, latent_format: LatentFormat) -> Tensor:
        """The way back; pixels are clamped to -1…1."""
        ...

    def encode_with(self, text: TextEncoders, encoder: str, captions: Sequence[str]) -> Conditioning:
        """What one of the text encoders says of captions. Gradients flow to whatever in `text` requires them."""
        ...

    def joined(self, said: Mapping[str, Conditioning]) -> Conditioning:
        """The conditioning out of what all encoders say, by their names."""
        return reduce(Conditioning.__or__, said.values())

    def encode_captions(self, text: TextEncoders, captions: Sequence[str]) -> Conditioning:
        """Captions → conditioning, with all encoders on one device."""
        return self.joined({encoder: self.encode_with(text, encoder, captions) for encoder in text.encoders})

    def crop_conditioning(self, crops: Sequence[Crop]) -> Conditioning:
        """What the denoiser wants to know of how images were cropped, on the CPU; empty where it wants nothing."""
        return Conditioning()

    def load_tokenizers(self, base: BaseModelSpec) -> Mapping[str, "PreTrainedTokenizerBase"]: ...

    def caption_tokenizer(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"]) -> "PreTrainedTokenizerBase":
        """The one that `token_count` counts with."""
        return next(iter(tokenizers.values()))

    def token_count(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], caption: str) -> tuple[int, int]:
        """(tokens of the caption, tokens that fit)."""
        ...

    def predict(self, denoiser: Denoiser, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """One denoising call. `conditioning` is that of the captions and that of the crops together."""
        ...

    def denoiser_key(self, denoiser: Denoiser, module_name: str) -> str:
        """Prefix and name of a denoiser module in LoRA files, for example "lora_unet_mid_block_attentions_0_…"."""
        return f"lora_unet_{underscored(module_name)}"

    def text_lora_target(self, encoder_name: str, encoder: "PreTrainedModel") -> str:
        """Regular expression over a text encoder's modules: those whose output reaches the denoiser."""
        ...

    def text_key(self, encoder_name: str, module_name: str) -> str: ...

    def attention_widths(self, base: BaseModelSpec) -> dict[str, frozenset[int]]:
        """Widths of what keys and values are made of, in "self-attention" and in "cross-attention"."""
        ...

    def block_of(self, module_name: str) -> str:
        """The block that a denoiser module belongs to: "down.0", "mid", "up.2", or "other"."""
        return self.layer_names.block(underscored(module_name))

    def block_names(self, base: BaseModelSpec) -> list[str]:
        """All blocks of a base model's denoiser, in the order of the data flow."""
        return list(self.layer_names.blocks)

    def checkpoint_entries(self, base: BaseModelSpec, denoiser: Denoiser, encoders: Mapping[str, nn.Module],
                           dtype: torch.dtype, zero_terminal: bool = False) -> list[Entry]:
        """Every tensor of a single file in the original layout, in `dtype`: the trained denoiser and text encoders (those
        in `encoders`), all else as the base has it. Tensors are read when they are written. `zero_terminal`: trained with
        a noise schedule that ends in pure noise."""
        return [entry_of(name, [tensor.to(dtype)]) for name, tensor in denoiser.state_dict().items()]

    def checkpoint_kind(self, base: BaseModelSpec, with_text: bool) -> FileKind:
        """What `checkpoint_entries` are to loaders. `with_text`: text encoders were trained too."""
        return "checkpoint"

    def trained_and_base(self, base: BaseModelSpec, denoiser: Denoiser,
                         encoders: Mapping[str, nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of trained tensors and those they started as, which are read from the base one at a time."""
        stored = ModelParts.of(base)["denoiser"].entries()
        yield from ((tensor, stored[name].tensor()) for name, tensor in denoiser.state_dict().items())

    def prediction_note(self, base: BaseModelSpec, denoiser: Denoiser) -> str | None:
        """A sentence when ComfyUI cannot tell from a checkpoint what the model predicts."""
        return None
