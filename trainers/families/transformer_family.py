"""What families of flow transformers have in common: a denoiser in native layout, text encoders of which some may be
missing, an autoencoder. A family adds its data and the few functions in which it differs (`sd3`, `flux`)."""
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..artifacts.checkpoint import in_precision
from ..artifacts.layer_names import underscored
from ..artifacts.layer_names.transformer import TransformerNames
from ..artifacts.tensor_files import Entry, entry_of, finite
from ..artifacts.tensor_header import read_header
from ..artifacts.weights import Weights
from ..errors import UserError
from ..memory.placement import Keeper, as_they_are
from ..reports import FileKind
from ..required_packages import require_version
from ..spec import BaseModelSpec, ComponentSpec
from .checkpoint_writing import plain, untrained_entries
from .component_configs import config_folder, read_object
from .component_loading import explained
from .component_recognition import components_of, is_full, storage_of
from .filling import fill, without_weights
from .kl_latents import KlLatents
from .model_parts import ModelPart, ModelParts, ModelSource, Recognized, in_folder
from .native_layout import to_native_layout
from .protocol import Family, LoraPreset
from .samplers import FlowSampler
from .separate_files import WantedPart, separate_components
from .sizes import stated_sizes
from .text.text_parts import TextParts
from .variants import Released, Shapes
from .weight_files import weight_files

TRANSFORMER, VAE = "transformer", "vae"
DENOISER = "model.diffusion_model."
SMALL_VAE = 64
"""VAEs whose first width is below this are of no released model but of a small one, such as a demo base."""


def layer_choices(attention: str, feed_forward: str, others: str) -> Mapping[str, str]:
    """The choices of `LoraSpec.targets`, of regular expressions over module names."""
    return MappingProxyType({
        "attention": attention,
        "attention and feed-forward": f"{attention}|{feed_forward}",
        "all with convolutions": f"{attention}|{feed_forward}|{others}",
    })


class TransformerFamily(TextParts, KlLatents, Released, Family[nn.Module, nn.Module]):
    """The half of the family protocol that does not differ."""

    name: str
    title: str
    layer_names: TransformerNames
    class_name: ClassVar[str]
    """diffusers' class of the denoiser."""
    needs_diffusers: ClassVar[str] = ""
    """The first version that has the class, where it is newer than what the pack requires."""
    wanted: ClassVar[str] = "that makes images out of captions alone"
    """What to choose in place of a model that is refused."""
    refused: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Native names of tensors, or diffusers' pipelines → what a model is that has them: a relative with the same layers,
    which is not trained."""
    overflows: ClassVar[bool] = False
    """Values in the denoiser leave the range of fp16."""
    vae_prefix: ClassVar[str]
    """Of the VAE in an all-in-one file."""
    vae_files: ClassVar[tuple[str, ...]]
    """Names that people have the VAE by, the best first."""
    patch, vae_channels = 2, 16
    lora_preset: LoraPreset

    # ---- what a family adds ----------------------------------------------------------------------------------------

    def denoiser_config(self, shapes: Shapes) -> Mapping[str, Any]:
        """What diffusers' class is made with, for tensors of these native names and shapes."""
        raise NotImplementedError

    def make_denoiser(self, shapes: Shapes) -> nn.Module:
        """diffusers' model in native layout; called on the meta device."""
        import diffusers

        denoiser = getattr(diffusers, self.class_name)(**self.denoiser_config(shapes))
        self.to_native_layout(denoiser)
        return denoiser

    def to_native_layout(self, denoiser: nn.Module):
        """Give diffusers' model, which has no weights yet, the layers of the original file, in place."""
        to_native_layout(denoiser, self.layer_names.key_map)

    # ---- what it is ------------------------------------------------------------------------------------------------

    def base_metadata(self, base: BaseModelSpec) -> Mapping[str, str]:
        return {**self.metadata, "modelspec.implementation": "diffusers"}

    @property
    def separate_parts(self) -> Sequence[WantedPart]:
        return self.parts_beside(0)

    def parts_beside(self, width: int) -> Sequence[WantedPart]:
        vae = WantedPart(VAE, self.vae_kind, self.vae_files, channels=self.vae_channels)
        return [vae, *(WantedPart(part.component, part.kind.kind, part.files, required=part.required,
                                  width=part.kind.width_of(width)) for part in self.read_by(width).values())]

    def read_width(self, base: BaseModelSpec) -> int:
        return self.layer_names.read_width(self.native_shapes(base)) if self.layer_names.reads else 0

    def native_resolution(self, base: BaseModelSpec) -> int:
        side = self._stated(base).get("sample_size")
        return side * self.latent_format(base).downscale if isinstance(side, int) else self.lora_preset.resolution

    def is_small(self, base: BaseModelSpec) -> bool:
        return bool(self._stated(base)) and self.vae_width(base) < SMALL_VAE

    def _stated(self, base: BaseModelSpec) -> dict:
        """What a folder or a small checkpoint says of its denoiser; released files say nothing and need not."""
        return read_object(config_folder(base) / TRANSFORMER / "config.json") or {}

    def precision_note(self, dtype: torch.dtype) -> str:
        if dtype != torch.float16 or not self.overflows:
            return ""
        return (f"{self.title} was trained in bf16, and some of its values do not fit into fp16, in which this run "
                "computes: the loss may become no number. Set precision to bf16, or to fp32 on a GPU that has no bf16")

    def size_metadata(self, base: BaseModelSpec) -> dict[str, str]:
        return stated_sizes(config_folder(base), self.name)

    def recognize(self, source: ModelSource) -> Recognized | None:
        found = self._recognize_folder(source) if source.layout == "diffusers" else self._recognize_file(source)
        if found is not None and self.needs_diffusers:
            require_version("diffusers", self.needs_diffusers, self.title)
        return found

    def _recognize_file(self, source: ModelSource) -> Recognized | None:
        tensors, _ = read_header(source.path)
        prefix = self.layer_names.prefix(tensors)
        if prefix is None:
            return None
        self._require_own(source, self.relative(source, tensors, prefix))
        width = self.layer_names.read_width({name: facts["shape"] for name, facts in tensors.items()}, prefix)
        wanted, text = self.parts_beside(width), self.read_by(width).values()
        if source.others:
            beside = separate_components(source, self.title, wanted)
        else:
            # An all-in-one file says by its prefixes which text encoder is which, however small they are.
            own = {part.component: part.prefix for part in text}
            beside = {want.component: ComponentSpec(name=want.component, path=str(source.path), prefix=each.prefix)
                      for want in wanted for each in components_of(tensors)
                      if (each.prefix == own[want.component] if want.component in own else want.fits(each))}
        missing = next((want for want in wanted if want.required and want.component not in beside), None)
        if missing is None and not any(part.component in beside for part in text):
            missing = next(want for want in wanted if want.component != VAE)
        if missing is not None:
            raise UserError(f"{source.name!r} is a {self.title} model without its {missing.title}. Use the node Base Model "
                            f"from Parts with the file of it in {missing.folder} (usually {' or '.join(missing.usual)}), or "
                            "choose a checkpoint that has all parts.")
        kept = storage_of(tensors, prefix)
        return Recognized("flow", (ComponentSpec(name=TRANSFORMER, path=str(source.path), prefix=prefix), *beside.values()),
                          (source.path, *source.others), storage="" if is_full(kept) else kept)

    def relative(self, source: ModelSource, tensors: Mapping[str, dict], prefix: str) -> str:
        """What a file with the family's layers is that is no model of it; else ""."""
        return next((what for mark, what in self.refused.items() if prefix + mark in tensors), "")

    def _require_own(self, source: ModelSource, relative: str):
        if relative:
            raise UserError(f"{source.name!r} is {relative}, which is not trained here. Choose a {self.title} model "
                            f"{self.wanted}.")

    def _recognize_folder(self, source: ModelSource) -> Recognized | None:
        config = read_object(source.path / TRANSFORMER / "config.json")
        if config is None or config.get("_class_name") != self.class_name:
            return None
        pipeline = (read_object(source.path / "model_index.json") or {}).get("_class_name")
        self._require_own(source, self.refused.get(str(pipeline), ""))
        text = [part.component for part in self.text_parts.values()
                if part.required or (source.path / part.component / "config.json").is_file()]
        components = list(dict.fromkeys([TRANSFORMER, VAE, *text]))
        files = {source.path / TRANSFORMER / "config.json"}
        for component in components:
            weights = weight_files(source.path, component, source.name)
            files |= {*weights.files, source.path / component / "config.json"}
        tokenizers = {file for file in source.path.glob("tokenizer*/*") if file.suffix in (".json", ".txt", ".model")}
        return Recognized("flow", in_folder(source.path, components), tuple(sorted(files | tokenizers)))

    def prediction_type_of(self, path: Path, tensors: Mapping[str, dict], metadata: Mapping[str, str]) -> str:
        return "flow" if self.layer_names.owns_model(tensors) else ""

    # ---- the denoiser ----------------------------------------------------------------------------------------------

    def load_denoiser(self, base: BaseModelSpec, dtype: torch.dtype, keeper: Keeper = as_they_are) -> nn.Module:
        part = ModelParts.of(base)[TRANSFORMER]
        with explained("denoiser", base):
            entries = self.module_entries(part)
            model = self.empty_denoiser(base)
            fill(model, entries, dtype, base.name, keeper(self.swappable_blocks(model)))
        return model.requires_grad_(False).eval()

    def empty_denoiser(self, base: BaseModelSpec) -> nn.Module:
        return without_weights(lambda: self.make_denoiser(self.native_shapes(base)))

    def module_entries(self, part: ModelPart) -> dict[str, Entry]:
        """The denoiser's tensors by the names they have in memory, wherever they lie. Joined layers may be as diffusers has
        them in a file of its own too."""
        stored, key_map = part.entries(), self.layer_names.key_map
        last = max((int(name.split(".")[1]) for name in stored if name.startswith("transformer_blocks.")), default=0)
        found, joined = {}, {}
        for name, entry in stored.items():
            layer, _, ending = name.rpartition(".")
            own = None if part.is_folder else key_map.module_tensor(name)
            if own is not None:
                found[own] = entry
            elif place := key_map.joined(layer):
                joined.setdefault(f"{place[0]}.{ending}", {})[place[1]] = entry
            elif part.is_folder:
                swapped = key_map.is_swapped(layer, last)
                found[name] = replace(entry, pieces=_halves_swapped(entry)) if swapped else entry
        return found | {name: _one_after_the_other(name, rows) for name, rows in joined.items()}

    def native_shapes(self, base: BaseModelSpec) -> dict[str, tuple[int, ...]]:
        entries, key_map = self.module_entries(ModelParts.of(base)[TRANSFORMER]), self.layer_names.key_map
        return {native: entry.shape for name, entry in entries.items() if (native := key_map.native_tensor(name))}

    def native_entries(self, base: BaseModelSpec) -> dict[str, Entry]:
        """The tensors of the denoiser and of the text encoders by their names in an all-in-one file."""
        parts, key_map = ModelParts.of(base), self.layer_names.key_map
        named = ((key_map.native_tensor(name), entry) for name, entry in self.module_entries(parts[TRANSFORMER]).items())
        return {DENOISER + native: entry for native, entry in named if native} | {
            part.prefix + own: entry for part in self.present(base).values()
            for name, entry in parts[part.component].entries().items() if (own := part.kind.file_name(name))}

    def denoiser_key(self, denoiser: nn.Module, module_name: str) -> str:
        native = self.layer_names.key_map.native_layer(module_name)
        assert native is not None, module_name
        return f"diffusion_model.{native}" if self.layer_names.written == "comfyui" else f"lora_unet_{underscored(native)}"

    def block_of(self, module_name: str) -> str:
        """ "joint.3", "double.3", "single.3", or "other"."""
        key_map = self.layer_names.key_map
        native = key_map.native_layer(module_name) or key_map.native_tensor(module_name) or ""
        numbered = re.fullmatch(r"(\D+)(\d+)", self.layer_names.block(underscored(native)))
        return f"{numbered[1].lower()}.{int(numbered[2])}" if numbered else "other"

    def block_names(self, base: BaseModelSpec) -> list[str]:
        names, shapes = self.layer_names, self.native_shapes(base)
        counts = ((title, names.key_map.blocks(shapes, name)) for name, title in names.numbered.items())
        return [*(f"{title.lower()}.{number}" for title, count in counts for number in range(count)), "other"]

    def swappable_blocks(self, denoiser: nn.Module) -> Sequence[nn.Module]:
        return [block for name in self.layer_names.block_lists.values() for block in denoiser.get_submodule(name).children()]

    # ---- noise levels ----------------------------------------------------------------------------------------------

    def sampler(self, base: BaseModelSpec, zero_terminal_snr: bool = False) -> FlowSampler:
        return FlowSampler(self.timestep_shift(base), self.guidance(base))

    # ---- files -----------------------------------------------------------------------------------------------------

    def checkpoint_kind(self, base: BaseModelSpec, with_text: bool) -> FileKind:
        """Whoever has the parts in files of their own gets a denoiser that fits beside them."""
        return "diffusion_model" if base.layout == "separate_files" and not with_text else "checkpoint"

    def checkpoint_entries(self, base: BaseModelSpec, denoiser: nn.Module, encoders: Mapping[str, nn.Module],
                           dtype: torch.dtype, zero_terminal: bool = False) -> list[Entry]:
        """All-in-one, or the denoiser alone, as ComfyUI's Load Diffusion Model takes it (`checkpoint_kind`). Components that
        were not trained stay as an all-in-one file stores them, scales and notes of quantized layers included, unless its
        header holds the notes: then they become numbers in `dtype`."""
        trained = self._native_tensors(denoiser) | {
            self.text_parts[encoder].prefix + name: tensor for encoder, module in encoders.items()
            for name, tensor in self.text_tensors(encoder, module).items()}
        written = {name: in_precision(entry_of(name, [tensor]), dtype) for name, tensor in trained.items()}
        if base.layout == "single_file":
            numbers = Weights.of_file(Path(base.path)).entries
            own = {_name_in(numbers, name): entry for name, entry in written.items()}
            kept = untrained_entries(Path(base.path), numbers, (
                ModelParts.of(base)[TRANSFORMER].prefix, *(self.text_parts[encoder].prefix for encoder in encoders)), dtype)
            kept = {name: finite(entry, base.name) for name, entry in kept.items() if name not in own}
            return list((kept | {name: replace(entry, name=name) for name, entry in own.items()}).values())
        if self.checkpoint_kind(base, bool(encoders)) == "diffusion_model":
            return list(written.values())
        others = {self.vae_prefix + name: entry for name, entry in self.vae_entries(base).items()}
        untrained = tuple(part.prefix for name, part in self.present(base).items() if name not in encoders)
        others |= {name: entry for name, entry in self.native_entries(base).items() if name.startswith(untrained)}
        return [*written.values(), *(in_precision(replace(entry, name=name), dtype) for name, entry in others.items())]

    def _native_tensors(self, denoiser: nn.Module) -> dict[str, Tensor]:
        key_map, found = self.layer_names.key_map, {}
        for name, tensor in denoiser.state_dict().items():
            native = key_map.native_tensor(name)
            assert native is not None, name
            found[DENOISER + native] = tensor
        return found

    def trained_and_base(self, base: BaseModelSpec, denoiser: nn.Module,
                         encoders: Mapping[str, nn.Module]) -> Iterator[tuple[Tensor, Tensor]]:
        parts = ModelParts.of(base)
        stored = self.module_entries(parts[TRANSFORMER])
        yield from ((tensor, stored[name].tensor()) for name, tensor in denoiser.state_dict().items())
        for encoder, module in encoders.items():
            own = {plain(name): entry for name, entry in parts[self.text_parts[encoder].component].entries().items()}
            yield from ((tensor, own[plain(name)].tensor()) for name, tensor in self.text_tensors(encoder, module).items()
                        if plain(name) in own)

    def attention_widths(self, base: BaseModelSpec) -> dict[str, frozenset[int]]:
        return {"self-attention": frozenset(), "cross-attention": frozenset()}


def _name_in(stored: Mapping[str, Entry], name: str) -> str:
    """What a file calls a tensor: its denoiser may have no prefix, and norms' scales two names."""
    for each in (name, name.removeprefix(DENOISER), plain(name)):
        for own in (each, f"{each.removesuffix('scale')}weight" if each.endswith(".scale") else each):
            if own in stored:
                return own
    return name


def _halves_swapped(entry: Entry) -> Callable[[], list[Tensor]]:
    return lambda: list(reversed(entry.tensor().chunk(2)))


def _one_after_the_other(name: str, rows: Mapping[int, Entry]) -> Entry:
    entries = [rows[number] for number in sorted(rows)]
    first = entries[0]
    shape = (sum(entry.shape[0] for entry in entries), *first.shape[1:])
    return Entry(name, first.dtype, shape, lambda: [entry.tensor() for entry in entries])
