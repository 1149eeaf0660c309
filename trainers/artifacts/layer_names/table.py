"""The authority on names: every layer of a model that a LoRA can change, under all names that programs give it.

A family's table follows from its layout (`unet`, `text`) or its rules (`transformer`), a checkpoint's from the names of its
tensors; no model is built. UNets of SD 1.x and 2.x get diffusers' names from kohya's scripts, all others the original ones.
"""
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from ...errors import UserError
from .blocks import BASE, BLOCKS, SMALLEST, place
from .brought import BROUGHT
from .family import TITLES, family_of_lora, family_of_model
from .key_map import Split
from .spelling import BARE_TEXT, UNET, read_spelling, underscored
from .text import ENCODERS, Encoder, places
from .unet import ALIASES, LINEAR, UNetLayout, diffusers_unet_name, layers_per_block

CHECKPOINT = "model.diffusion_model."
OTHER_PARTS = ("first_stage_model.", "vae.", "text_encoders.", "model_ema.")
NO_DENOISER = (*OTHER_PARTS, "cond_stage_model.", "conditioner.", "clip_")
UNKNOWN_ENCODERS = (Encoder("te", "text_encoder", "", 0), Encoder("te2", "text_encoder_2", "", 0))
LAYOUTS = {
    "sd1": UNetLayout(widths=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=False),
    "sd2": UNetLayout(widths=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1, linear=True),
    "sdxl": UNetLayout(widths=(1, 2, 4), depths=(0, 2, 10), middle=10, linear=True, size_embedding=True),
}
"""A family that is added here gets its table, and every tool reads and writes its names."""
MAKERS = {"kohya": "kohya's", "diffusers": "diffusers'", "comfyui": "ComfyUI's own"}


@dataclass(frozen=True)
class Layer:
    """One layer that a LoRA can change, by kohya's name `key`, diffusers' ("" where it has none) and ComfyUI's, `native`.

    `kernel` is that of its weight, None where it is not known. In a checkpoint it is the weight `tensor`, or the rows
    `part` of `parts` of it, or its transpose (OpenCLIP's projection). Where diffusers cuts a layer otherwise, `splits` are
    what it has instead, and `views` are these as layers: those know by `split` which rows of the layer they are.
    """

    key: str
    diffusers: str
    native: str
    kernel: tuple[int, ...] | None = None
    tensor: str = ""
    part: int = 0
    parts: int = 1
    transposed: bool = False
    own_block: str = ""
    """As a family says that brings its names."""
    splits: tuple[Split, ...] = ()
    read_only: tuple[Split, ...] = ()
    """Names of other programs for the layer or rows of it, which are not written."""
    split: Split | None = None
    ratio: Fraction = Fraction()
    """Of the native weight's rows to its columns; 0: not told."""

    @cached_property
    def views(self) -> dict[str, "Layer"]:
        """The layer as other names mean it, by these: diffusers' own, and others' that are read only. A view of rows that
        diffusers has in no layer of its own has no name of diffusers'."""
        component = self.diffusers.partition(".")[0]
        own = {split.name: self if split.is_whole else replace(self, diffusers=f"{component}.{split.name}", split=split)
               for split in self.splits}
        by_rows = {split.share: own[split.name] for split in self.splits}
        return own | {split.name: self if split.is_whole else by_rows.get(split.share) or replace(
            self, diffusers="", split=split) for split in self.read_only}

    def may_have(self, shape: tuple[int, int]) -> bool:
        """Whether its weight, or the rows of it that it is a view of, may have this shape, whatever the model's widths."""
        own = self.ratio * (self.split.fraction if self.split else 1)
        return not own or Fraction(*shape) == own

    @property
    def block(self) -> str:
        """As block weights call it: "IN04", "MID", "OUT11", "BASE" for text encoders, "EXTRA" outside all blocks."""
        return self.own_block or place(self.native or self.key).block

    @property
    def is_text(self) -> bool:
        return self.block == BASE

    def rows(self, weight: Tensor) -> Tensor:
        """The layer's own part [out, in, …] of the checkpoint's weight `tensor`, for reading."""
        own = self._own(weight)
        return own[self._where(own)]

    def add(self, weight: Tensor, change: Tensor):
        """To the layer's own part of the checkpoint's weight, in place."""
        own = self._own(weight)
        where = self._where(own)
        own[where] += change.reshape(own[where].shape)

    def _own(self, weight: Tensor) -> Tensor:
        rows = weight.chunk(self.parts)[self.part]
        return rows.T if self.transposed else rows

    def _where(self, rows: Tensor) -> slice | Tensor:
        return self.split.rows(*rows.shape[:2]) if self.split else slice(None)

    def name(self, maker: str) -> str:
        """By one of `MAKERS`; "" where it has none."""
        return {"kohya": self.key, "diffusers": self.diffusers, "comfyui": self.native}[maker]

    def spellings(self) -> dict[str, str]:
        """Program → its name in LoRA files, without the part of a tensor's name that says which factor it is."""
        component, _, path = self.diffusers.partition(".")
        if self.split and not self.diffusers:
            return {"ComfyUI": f"diffusion_model.{self.split.name}"}
        native = self.native.removeprefix("diffusion_model.")
        own = {"kohya": self.key, "ComfyUI": self.native}
        theirs = {"diffusers": self.diffusers, "diffusers and peft": f"{component}.base_model.model.{path}"}
        if component != "text_encoder_2":  # alone, peft does not say which text encoder it is
            theirs["peft"] = f"base_model.model.{path}"
        if component == "transformer":
            theirs |= {"diffusers, bare": path, "SimpleTuner": f"lycoris_{underscored(path)}",
                       "OneTrainer, older": f"lora_transformer_{underscored(path)}"}
            own |= {"OneTrainer": f"transformer.{native}", "original, bare": native}
            if self.split:
                same = [f"transformer.{each.name}" for each in self.read_only if each.share == self.split.share]
                return theirs | dict(zip(("OneTrainer",), same))
            return own if self.splits else own | theirs
        found = own | theirs
        if self.is_text:
            encoder = native.removeprefix("text_encoders.").replace(".transformer.", ".", 1).replace("t5xxl.", "t5.", 1)
            old = path.replace("self_attn.out_proj", "self_attn.to_out_lora")
            for letter in "qkv":
                old = old.replace(f"self_attn.{letter}_proj", f"self_attn.to_{letter}_lora")
            return found | {"old diffusers": f"{component}.{old}", "OneTrainer": encoder, "LyCORIS": self.key,
                            "without text_model": f"{component}.{path.removeprefix('text_model.')}"}
        old = path.replace(".to_", ".processor.to_").removesuffix(".0") if ".attn" in path else path
        return found | {
            "old diffusers": f"unet.{old}", "older diffusers": old, "diffusers without unet": path,
            "LyCORIS": f"lycoris_{underscored(path)}", "LyCORIS and OneTrainer": f"lora_unet_{underscored(path)}",
            "OneTrainer": f"unet.{native}", "OneTrainer, dotted": f"lora_unet.{path}",
            "original names": f"lora_unet_{underscored(native)}",
        }


@dataclass(frozen=True)
class LayerNames:
    """The layers of one model. `find` knows every name that a program gives them."""

    family: str
    layers: tuple[Layer, ...]
    index: Mapping[tuple[str, str], Layer] = field(repr=False, compare=False)

    @classmethod
    def of(cls, family: str, layers: Iterable[Layer]) -> "LayerNames":
        layers, index = tuple(layers), {}
        for layer in layers:
            for name, view in layer.views.items():
                index.setdefault(read_spelling(name), view)
            for name in filter(None, (layer.key, layer.native, layer.diffusers)):
                index.setdefault(read_spelling(name), layer)
        for (part, core), layer in list(index.items()):
            for alias, name in ALIASES.items():
                if core.startswith(name):
                    index.setdefault((part, alias + core[len(name):]), layer)
            if part == BARE_TEXT:  # the first encoder's number is not always written
                index.setdefault(("te1", core), layer)
            elif part == "te1":
                index.setdefault((BARE_TEXT, core), layer)
        return cls(family, layers, index)

    @classmethod
    def of_checkpoint(cls, shapes: Mapping[str, tuple[int, ...]]) -> "LayerNames":
        """From the names and shapes of a checkpoint's tensors. UserError for what is no model."""
        return cls.of(family_of_model(shapes), layers_of_checkpoint(shapes))

    @classmethod
    def of_comfyui(cls, shapes: Mapping[str, tuple[int, ...]], family: str = "") -> "LayerNames":
        """From the names and shapes of ComfyUI's MODEL and CLIP, each alone or both, of a `family`; of a CLIP alone its
        encoders tell it."""
        own = family or family_of_encoders({name.partition(".")[0] for name in shapes})
        return cls.of(own, _layers(shapes, own, "diffusion_model."))

    def find(self, name: str) -> Layer | None:
        """The layer that a name in a LoRA file means, whoever wrote it: with a `split` where it means some rows."""
        return self.index.get(read_spelling(name))


def family_of_encoders(present: Collection[str]) -> str:
    """The family of a CLIP with these text encoders, by ComfyUI's names: the one that has them and the fewest others."""
    known = {family: {each.native for each in encoders} for family, encoders in ENCODERS.items()}
    known |= {family: set(each.encoders()) for family, each in BROUGHT.items()}
    wanted = {name for name in present if any(name in encoders for encoders in known.values())}
    return min((family for family, encoders in known.items() if wanted <= encoders), key=lambda family: len(known[family]),
               default=SMALLEST)


def family_names(family: str) -> LayerNames | None:
    """The table of a family as released; None for families whose names are read from the model itself."""
    if family in LAYOUTS:
        return released_names(family)
    return BROUGHT[family].table() if family in BROUGHT else None


@lru_cache(maxsize=16)
def released_names(family: str, layers_per_level: int = 2) -> LayerNames:
    """The table of a family of `LAYOUTS`; models of unusual size may have fewer layers per level."""
    layout = UNetLayout(**{**LAYOUTS[family].__dict__, "layers_per_block": layers_per_level})
    unet = [_denoiser_layer(family, original, diffusers, kernel) for diffusers, original, kernel in layout.modules()]
    return LayerNames.of(family, [*unet, *released_text(ENCODERS[family])])


def released_text(encoders: Iterable[Encoder]) -> Iterator[Layer]:
    """Every layer of text encoders."""
    return (_text_layer(encoder, module) for encoder in encoders for module in encoder.modules())


def _denoiser_layer(family: str, original: str, diffusers: str, kernel: tuple[int, ...], **where: Any) -> Layer:
    """kohya's scripts write diffusers' names for SD 1.x and 2.x, for SDXL the original ones."""
    own = original if family == "sdxl" else diffusers
    return Layer(f"lora_unet_{underscored(own)}", f"unet.{diffusers}", f"diffusion_model.{original}", kernel, **where)


def _text_layer(encoder: Encoder, module: str, **where: Any) -> Layer:
    key, diffusers, native = encoder.names(module)
    return Layer(key, diffusers, native if encoder.native else "", LINEAR, **where)


def layers_of_checkpoint(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
    """All layers of a checkpoint, in the file's order."""
    start = CHECKPOINT if any(name.startswith(CHECKPOINT) for name in shapes) else ""
    return _layers(shapes, family_of_model(shapes), start)


def _layers(shapes: Mapping[str, tuple[int, ...]], family: str, start: str) -> Iterator[Layer]:
    if family in BROUGHT:
        yield from BROUGHT[family].layers(shapes)
        return
    yield from text_layers(shapes, ENCODERS.get(family, UNKNOWN_ENCODERS))
    per_block = layers_per_block(name.removeprefix(start) for name in shapes)
    for name, shape in shapes.items():
        if len(shape) not in (2, 4) or "embedding" in name or not name.startswith(start) or name.startswith(NO_DENOISER):
            continue
        if not name.endswith(".weight") or any(places(name)):
            continue
        module, kernel = name.removeprefix(start).removesuffix(".weight"), tuple(shape[2:])
        if family not in LAYOUTS:
            yield Layer(f"lora_unet_{underscored(module)}", "", f"diffusion_model.{module}", kernel, name)
            continue
        if per_block is None:
            raise UserError("This UNet has no downsamplers where they are expected; it is of no family that is known here")
        yield _denoiser_layer(family, module, diffusers_unet_name(module, per_block), kernel, tensor=name)


def text_layers(shapes: Mapping[str, tuple[int, ...]], encoders: Sequence[Encoder]) -> Iterator[Layer]:
    """Those of the text encoders in a checkpoint or in ComfyUI's CLIP, in the file's order."""
    for name, shape in shapes.items():
        for each in places(name) if len(shape) == 2 and "embedding" not in name else ():
            if encoder := each.encoder(encoders):
                yield _text_layer(encoder, each.module, tensor=name, part=each.part, parts=each.parts,
                                  transposed=each.transposed)


@dataclass(frozen=True)
class ReleasedNames:
    """`FamilyNames` of a family that is described in this folder."""

    family: str

    @property
    def title(self) -> str:
        return TITLES[self.family]

    @property
    def blocks(self) -> tuple[str, ...]:
        return BLOCKS[self.family]

    def owns_model(self, names: Collection[str]) -> bool:
        return family_of_model(names) == self.family

    def owns_lora(self, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bool:
        return family_of_lora(shapes, metadata) == self.family

    def layers(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Layer]:
        starts = (each for each in (CHECKPOINT, "diffusion_model.") if any(name.startswith(each) for name in shapes))
        start = next(starts, "")
        return _layers(shapes, self.family, start)

    def table(self) -> LayerNames:
        return released_names(self.family)

    def block(self, name: str) -> str:
        return place(name, self.family).block


__all__ = ["LAYOUTS", "MAKERS", "OTHER_PARTS", "UNET", "Layer", "LayerNames", "ReleasedNames", "family_names",
           "layers_of_checkpoint", "released_names"]
