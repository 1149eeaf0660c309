"""What tests know of a family of flow transformers: a tiny model of diffusers' and transformers' own classes, and how a
plain loop computes with them."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import AutoencoderKL
from finetune.trainers.families.conditioning import Conditioning
from torch import Tensor, nn

Said = Mapping[str, Tensor]
"""What text encoders say of a batch of captions, by the names that the family's conditioning has."""


class PlainText:
    """Text encoders of a diffusers folder. `learning` are those that may be trained, by the names that LoRA files give them;
    all others stay as they are."""

    learning: Mapping[str, nn.Module]

    def __call__(self, captions: Sequence[str]) -> Said:
        raise NotImplementedError


class FolderParts:
    """A folder's models, in place of a pipeline, of which diffusers has none."""

    transformer_class: Any
    vae_class: Any

    def __init__(self, **parts):
        self.parts = parts

    def save_pretrained(self, folder: Path):
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)

    @classmethod
    def from_pretrained(cls, folder):
        return SimpleNamespace(
            transformer=cls.transformer_class.from_pretrained(folder, subfolder="transformer"),
            vae=cls.vae_class.from_pretrained(folder, subfolder="vae"), set_progress_bar_config=lambda **how: None)


class FlowModel:
    name: str
    pipeline: type
    releases: Mapping[str, tuple[type[nn.Module], dict[str, Any]]]
    """Released models → diffusers' class and what its config says."""
    files: tuple[str, str]
    """Names that people have a denoiser and its VAE by."""
    vae_class: Any = AutoencoderKL
    text_marks: Mapping[str, Tensor] = {}
    """By which the file of a language model is told that sees images too."""
    last = "norm_out", "proj_out"
    """Parts of the names of layers that a fresh model has small or zero."""

    def transformer(self, plain: bool = False) -> nn.Module:
        """Random. `plain` lacks what some released models of the family lack."""
        raise NotImplementedError

    def vae(self) -> nn.Module:
        raise NotImplementedError

    def text(self) -> dict[str, Any]:
        """Text encoders and tokenizers, by their names in the pipeline."""
        raise NotImplementedError

    def plain_text(self, folder: Path) -> PlainText:
        raise NotImplementedError

    def latents(self, vae: Any, pixels: Tensor) -> Tensor:
        """As the denoiser sees them."""
        return (vae.encode(pixels).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor

    def velocity(self, denoiser: nn.Module, latents: Tensor, sigmas: Tensor, said: Said) -> Tensor:
        """noise - clean as diffusers' denoiser with its own layers says."""
        raise NotImplementedError

    def shift(self, height: int, width: int) -> float:
        """Of latents of this size."""
        raise NotImplementedError

    def adapted(self, denoiser: nn.Module) -> list[list[str]]:
        """Layers of attention that get a LoRA, in the order in which peft finds those of the native layout; in one list
        those that are one layer there."""
        raise NotImplementedError

    def drawn(self, pipeline: Any, said: Said, negative: Said, noise: Tensor, **how) -> Tensor:
        """The pipeline's image for what text encoders say, from this noise."""
        raise NotImplementedError


def each_alone(said: Said, name: str) -> list[Tensor]:
    """A sequence of each sample, [1, tokens, …], without the padding that makes them equally long in one tensor."""
    lengths = said.lengths(name) if isinstance(said, Conditioning) else map(len, said[name])
    return [each[:length].unsqueeze(0) for each, length in zip(said[name], lengths)]


def kl_vae(scale: float, shift: float) -> AutoencoderKL:
    """Of 16 channels, as SD3's and FLUX.1's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=16, norm_num_groups=4, sample_size=64,
        scaling_factor=scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)


def has(module: nn.Module, name: str) -> bool:
    try:
        return isinstance(module.get_submodule(name), nn.Linear)
    except AttributeError:
        return False


def attention_layers(denoiser: nn.Module, ends: Sequence[str], groups: Sequence[Sequence[str]],
                     outs: Sequence[str]) -> list[list[str]]:
    """Those of every module whose name ends so: projections out of the attention, then the joined ones into it."""
    found = []
    for name, block in denoiser.named_modules():
        if name.endswith(tuple(ends)):
            found += [[f"{name}.{each}"] for each in outs if has(block, each)]
            found += [[f"{name}.{each}" for each in group] for group in groups if has(block, group[0])]
    return found
