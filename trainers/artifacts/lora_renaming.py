"""Files of different makers under the names of one: equal layers meet, whoever spelled them, and whole files are written."""
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..errors import UserError
from . import lora_rows
from .layer_names import MAKERS, Layer, LayerNames, family_names, family_of_lora, is_text, other_spellings, released_names
from .layer_names.blocks import LIKE_SMALLEST, SMALLEST
from .layer_names.family import TITLES, is_numbered, is_unet_layer
from .layer_names.spelling import underscored
from .layer_names.table import LAYOUTS
from .lora_file import FileLayer, LoraFile

LAYERS_PER_LEVEL = (2, 1, 3, 4)
"""Layers per level of UNets: 2 in all full-size models, others in smaller ones. The first that explains most is taken."""


@dataclass(frozen=True)
class Renamed:
    """A file's layers by new names. Where the file spells one layer in several ways, `again` has the further ones."""

    file: LoraFile
    again: tuple[LoraFile, ...] = ()

    def all(self) -> tuple[LoraFile, ...]:
        return (self.file, *self.again)


def family_of(file: LoraFile) -> str:
    """One of `TITLES`, or "" for what has no names here. SD 1.x and 2.x have the same UNet by name: what tells them in no
    way is taken for 1.x."""
    return family_of_lora(file.shapes(), file.metadata) or (SMALLEST if _like_stable_diffusion(file) else "")


def _like_stable_diffusion(file: LoraFile) -> bool:
    return any(map(is_unet_layer, file.layers)) or all(map(is_text, file.layers))


def maker_of(keys: Iterable[str]) -> str:
    """Whose names layers carry: one of `MAKERS`, by what most of them look like."""
    counts = Counter(
        "comfyui" if key.startswith(("diffusion_model.", "text_encoders.")) else
        "kohya" if "." not in key or key.startswith(("lora_unet.", "lora_te")) else "diffusers" for key in keys)
    return counts.most_common(1)[0][0]


def describe(file: LoraFile) -> str:
    """What a file looks like, for a sentence: "a LoRA for Stable Diffusion XL with kohya's names"."""
    family = family_of_lora(file.shapes(), file.metadata)
    example = next((key for key in file.layers if not is_text(key)), next(iter(file.layers)))
    if family:
        made_for = f"a LoRA for {TITLES[family]}"
    elif any(map(is_unet_layer, file.layers)):
        made_for = "a LoRA for a UNet of Stable Diffusion"
    elif any(map(is_numbered, file.layers)):
        made_for = "a LoRA for a family whose names are not known here"
    else:
        return f"no LoRA for a family that is known here: its layers have names such as {example[:120]}"
    return f"{made_for}, with {MAKERS[maker_of(file.layers)]} names such as {example[:120]}"


def names_for(files: Sequence[LoraFile]) -> LayerNames | None:
    """The table that files for one model family share; None for families without a table. Raises UserError for files of
    different families, and for those whose names belong nowhere."""
    told = {family for file in files if (family := family_of_lora(file.shapes(), file.metadata))}
    family = next((family for family in reversed(LAYOUTS) if family in told), next(iter(told), ""))
    alike = {_like_stable_diffusion(file) for file in files if not all(map(is_text, file.layers))} or {True}
    if not family and True in alike:
        family = SMALLEST
    if len({SMALLEST if family in LIKE_SMALLEST else family for family in told}) > 1 or len(alike) > 1:
        listed = "; ".join(f"{file.name!r} is {describe(file)}" for file in files[:6])
        raise UserError(f"The LoRAs are for different model families and cannot be merged: {listed}.")
    for file in files:
        if not family and not any(map(is_numbered, file.layers)):
            raise UserError(f"{file.name!r} is {describe(file)}. Choose a LoRA for SD 1.x, SD 2.x, SDXL or a transformer.")
    return table_for(family, [key for file in files for key in file.layers])


def table_for(family: str, keys: Sequence[str]) -> LayerNames | None:
    """The table of a family in which most of these layers are; None for families whose names are read from the model
    itself."""
    if family not in LAYOUTS:
        return family_names(family)
    tables = [released_names(family, count) for count in LAYERS_PER_LEVEL]
    return max(tables, key=lambda table: sum(table.find(key) is not None for key in keys))


def renamed(file: LoraFile, names: LayerNames, maker: str = "kohya", model: str = "", added: bool = False) -> Renamed:
    """The file under one maker's names. `model` is the title of the model that the names are of; empty: its family's.

    Where makers cut a layer otherwise, plain LoRA layers are joined and cut, exactly (`lora_rows`). Other kinds of rows keep
    diffusers' names, unless their changes are to be `added` to others: then each is a full difference. Layers that the model
    does not have are left out, and notes say so. Raises UserError when they are most of the file, or when the maker has no
    names for the model's layers.
    """
    places = {key: place for key in file.layers if (place := names.find(key))}
    missing = [key for key in file.layers if key not in places]
    require_most(file, list(places), missing, model)
    notes = [f"{len(missing)} layers of {file.name}, for example {missing[0]}, are not in {model or TITLES[names.family]}; "
             "they were left out"] if missing else []
    nameless = next((key for key, place in places.items() if not place.name(maker) and not place.splits), None)
    if nameless:
        raise UserError(f"{MAKERS[maker]} names for models of this family cut layers otherwise ({nameless}). Choose other "
                        "names.")
    layers = {key: replace(layer, kernel=_kernel(places[key].kernel, layer)) for key, layer in file.layers.items()
              if key in places}
    if maker == "diffusers":
        named = [pair for key, place in places.items() for pair in _as_diffusers_has(place, layers[key])]
        return _gathered(replace(file, notes=[*file.notes, *notes]), named)
    named, rows, kept = [], {}, []
    for key, place in places.items():
        if place.split is None:
            named.append((place.name(maker), layers[key]))
        elif layers[key].is_low_rank:
            rows.setdefault(place.key, []).append((place, layers[key]))
        elif added:
            named.append((place.name(maker), lora_rows.as_difference(place, (layers[key], place.split))))
        else:
            named.append((place.diffusers or key, layers[key]))
            kept.append(key)
    for parts in rows.values():
        place = parts[0][0]
        named.append((place.name(maker), lora_rows.joined(place, [(layer, each.split) for each, layer in parts])))
    if kept:
        notes.append(f"{len(kept)} layers of {file.name}, for example {kept[0]}, are some rows of a layer that the model "
                     "has joined, and no plain LoRA layers; they keep diffusers' names, by which ComfyUI finds those rows")
    return _gathered(replace(file, notes=[*file.notes, *notes]), named)


def _as_diffusers_has(place: Layer, layer: FileLayer) -> Iterable[tuple[str, FileLayer]]:
    """A layer under the names of those that diffusers has in its place; whole where it is no plain LoRA layer."""
    if (place.split and place.diffusers) or not place.splits or not layer.is_low_rank:
        return [(place.diffusers or layer.key, layer)]
    return lora_rows.cut(place, lora_rows.joined(place, [(layer, place.split)]) if place.split else layer).items()


def _kernel(kernel: tuple[int, ...] | None, layer: FileLayer) -> tuple[int, ...] | None:
    """What flat factors are unfolded to. A plain LoRA's say themselves whether a layer is linear or a 1×1 convolution."""
    return None if kernel == (1, 1) and layer.is_low_rank else kernel


def require_most(file: LoraFile, found: Sequence[str], missing: Sequence[str], model: str = ""):
    """Raise UserError when a model lacks more of a file's layers than it has; of files that change the denoiser its layers
    count, as text encoders may be missing or left out."""
    found, missing = ([[key for key in keys if not is_text(key)] for keys in (found, missing)]
                      if not all(map(is_text, file.layers)) else (found, missing))
    if len(missing) >= max(1, len(found)):
        where = model or "a model of that family"
        raise UserError(f"{len(missing)} of {len(found) + len(missing)} layers of {file.name!r}, for example {missing[0]}, "
                        f"are not in {where}. The file is {describe(file)}. Choose the model that it was made for.")


def _gathered(file: LoraFile, layers: Sequence[tuple[str, FileLayer]]) -> Renamed:
    """(name, layer) as files in which every name stands once."""
    parts: list[dict[str, FileLayer]] = [{}]
    for name, layer in layers:
        target = next((part for part in parts if name not in part), None)
        if target is None:
            parts.append(target := {})
        target[name] = replace(layer, key=name)
    first, *rest = (replace(file, layers=part) for part in parts)
    return Renamed(replace(first, layers=parts[0]), tuple(replace(each, unknown=[], notes=[]) for each in rest))


def with_equal_names(files: Sequence[LoraFile]) -> list[Renamed]:
    """Files of a family without a table: layers that ComfyUI may know by a common name get that of the first file."""
    known: dict[str, str] = {}
    found = []
    for file in files:
        layers = []
        for key, layer in file.layers.items():
            flat = underscored(key)
            name = known.get(flat) or next((known[each] for each in other_spellings(key) if each in known), key)
            for each in (flat, *other_spellings(key)):
                known.setdefault(each, name)
            layers.append((name, layer))
        found.append(_gathered(file, layers))
    return found


def under_one_makers_names(files: Sequence[LoraFile]) -> list[Renamed]:
    """Several files that are to be added under kohya's names, or of families without a table under those of the first."""
    names = names_for(files)
    return with_equal_names(files) if names is None else [renamed(file, names, added=True) for file in files]
