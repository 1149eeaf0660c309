"""A stack of LoRAs onto the host's MODEL and CLIP, as clones with patches, like its own loaders make them."""
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import comfy.lora
import comfy.lora_convert
import comfy.utils
import comfy.weight_adapter
import torch

from ...trainers.artifacts.adapters.dora import dora_scale
from ...trainers.artifacts.changes import shape_of, with_scale
from ...trainers.artifacts.layer_names import Layer, LayerNames, in_denoiser, is_text, other_spellings, place, split_key
from ...trainers.artifacts.layer_names.blocks import ATTENTION, BLOCKS
from ...trainers.artifacts.layer_names.family import TITLES
from ...trainers.artifacts.layer_names.parts import DORA, DOWN, LOHA, LOKR, MID, UP
from ...trainers.errors import UserError
from ...trainers.stacking.block_weights import shown
from ...trainers.stacking.cards import family_of
from ...trainers.stacking.rows import LoraEntry
from .host_families import TEXT_ALONE, family_of_model
from .lora_files import LoraFile, read_lora
from .stack_patch import StackPatch

ADDITIVE = ("loha", "lokr")
"""Adapters of the host that, without DoRA, add a change which does not depend on the weight: they commute with sums."""
FACTORS = {"diff", DOWN, UP, MID, *LOHA, *LOKR}
"""Parts whose change has a shape that can be told from theirs."""
NO_CLIP, NO_MODEL = "no CLIP is connected", "no MODEL is connected"
UNKNOWN_PART, NO_LAYER = "no reader of LoRA files knows this kind of tensor", "the model has no such layer"
EMBEDDING = "an embedding packed into the file; save it as a file of its own"


@dataclass
class FileReport:
    """What became of one file: `matched` of `total` tensors, and reasons for the others with an example each."""

    entry: LoraEntry
    total: int
    matched: int = 0
    off: int = 0
    left: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def leave(self, reason: str, keys: Iterable[str]):
        self.left.setdefault(reason, []).extend(keys)

    def lines(self) -> list[str]:
        name, model, text = self.entry
        weighted = "" if self.entry.row.plain else ", with block weights"
        lines = [f"{name}: model {model:g}, text {text:g}{weighted}: {self.matched} of {self.total} keys matched."]
        if self.off:
            lines.append(f"  {self.off} keys have strength 0.")
        lines += [f"  Note: {shown(note, 300)}." for note in self.notes]
        return lines + [f"  {len(keys)} keys not loaded, because {reason}: for example {shown(keys[0], 120)}."
                        for reason, keys in self.left.items()]


class Targets:
    """Which weights a MODEL and a CLIP have, by every name that LoRA files use for their layers."""

    def __init__(self, model, clip):
        self.family, self.title = model_family(model)
        self.has_model, self.has_text = model is not None, clip is not None
        self.shapes: dict[str, torch.Size] = {}
        names: dict = {}
        if model is not None:
            names = comfy.lora.model_lora_keys_unet(model.model, names)
            self.shapes |= {name: tensor.shape for name, tensor in model.model.state_dict().items()}
        if clip is not None:
            names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
            self.shapes |= {name: tensor.shape for name, tensor in clip.cond_stage_model.state_dict().items()}
        self.exact, self.flat = names, {name.replace(".", "_"): target for name, target in names.items()}

    @cached_property
    def names(self) -> LayerNames | None:
        """The model's layers, if its family has a table."""
        if self.has_model and self.family not in BLOCKS:
            return None
        return LayerNames.of_comfyui(self.shapes, self.family if self.has_model else "")

    def find(self, layer: str):
        """The host's target of a layer: a weight's name or (name, offset, …); None when the model has none."""
        if layer in self.exact:
            return self.exact[layer]
        if self.names and (found := self.names.find(layer)):
            return self._target(found)
        return next((self.flat[name] for name in other_spellings(layer) if name in self.flat), None)

    def _target(self, layer: Layer):
        """The host's target of a layer, which may be some rows of a weight or all of them in another order."""
        weight = self.exact.get(layer.native)
        if layer.split is None or weight is None:
            return weight
        shape = self.shapes[weight]
        rows = layer.split.rows(*shape[:2])
        if not isinstance(rows, slice):
            return weight, None, comfy.utils.swap_scale_shift
        count = rows.stop - rows.start
        return weight if count == shape[0] else (weight, (0, rows.start, count))

    def shape(self, target) -> torch.Size | None:
        offset = None if isinstance(target, str) else target[1]
        shape = self.shapes.get(weight_of(target))
        if shape is None or offset is None:
            return shape
        return torch.Size([*shape[:offset[0]], offset[2], *shape[offset[0] + 1:]])


def weight_of(target) -> str:
    """The weight's name in one of the host's targets."""
    return target if isinstance(target, str) else target[0]


def model_family(model) -> tuple[str, str]:
    """(its family, or "" for what has no block names here; what people call it)."""
    if model is None:
        return TEXT_ALONE, "the text encoders"
    family = family_of_model(model.model)
    return family, TITLES.get(family, type(model.model).__name__)


# ---- one file ------------------------------------------------------------------------------------------------------

def layers_of(file: LoraFile, report: FileReport) -> dict[str, dict[str, tuple[str, torch.Tensor]]]:
    """Layer → part → (key, tensor), parts by the host's names; alphas from metadata are added."""
    layers: dict[str, dict] = {}
    for key, tensor in comfy.lora_convert.convert_lora(dict(file.tensors)).items():
        split = split_key(key)
        if split is None and (key.startswith("bundle_emb.") or key.startswith("emb_params")):
            report.leave(EMBEDDING, [key])
        elif split is None:
            report.leave(UNKNOWN_PART, [key])
        else:
            layers.setdefault(split.layer, {})[split.part] = (key, tensor)
    for layer, parts in layers.items() if file.peft.fields else ():
        tensors = {part: tensor for part, (_, tensor) in parts.items()}
        keys = {part: key for part, (key, _) in parts.items()}
        scaled = with_scale(tensors, file.scale(layer, tensors))
        layers[layer] = {part: (keys.get(part, ""), tensor) for part, tensor in scaled.items()}
    return layers


def patches_of(layer: str, parts: dict[str, tuple[str, torch.Tensor]], target, dimensions: int) -> dict:
    """Target → ("joined", (up, down, scale)), ("host", patch) or ("dora", patch, magnitudes)."""
    tensors = {f"{layer}.{part}": tensor for part, (_, tensor) in parts.items()}
    magnitudes = tensors.get(f"{layer}.dora_scale")
    if magnitudes is not None:
        size = tensors.get(f"{layer}.lora_up.weight", magnitudes)
        magnitudes = tensors[f"{layer}.dora_scale"] = dora_scale(magnitudes, size, dimensions)
        # Where the output axis has the magnitudes, the host would take the wrong norm.
        if len(magnitudes) > 1 and magnitudes[0].numel() == 1:
            del tensors[f"{layer}.dora_scale"]
        else:
            magnitudes = None
    found = {}
    for place_of, patch in comfy.lora.load_lora(tensors, {layer: target}, log_missing=False).items():
        if magnitudes is not None and isinstance(patch, comfy.weight_adapter.WeightAdapterBase):
            found[place_of] = ("dora", patch, magnitudes)
        elif _is_plain(patch) and (isinstance(target, str) or len(target) < 3):
            up, down, alpha, *_ = patch.weights
            found[place_of] = ("joined", (up, down, 1.0 if alpha is None else alpha / len(down)))
        else:
            found[place_of] = ("host", patch)
    return found


def _is_plain(patch) -> bool:
    """Low-rank factors and nothing else: no Tucker core, no DoRA, no reshaping."""
    return type(patch) is comfy.weight_adapter.LoRAAdapter and all(part is None for part in patch.weights[3:6])


def shape_fits(parts: dict[str, tuple[str, torch.Tensor]], shape: torch.Size) -> bool:
    """Whether the change that the parts make together has a weight's shape, in its own form or flat. Kinds that change a
    weight otherwise (OFT, GLoRA, norms, …) are left to the host."""
    shapes = {part: tensor.shape for part, (_, tensor) in parts.items()}
    if DORA in parts and shapes[DORA].numel() not in shape[:2]:
        return False
    if "reshape_weight" in parts or not shapes.keys() & FACTORS:
        return True
    change = shape_of(shapes)
    if "diff" in parts:
        return change == tuple(shape)
    return change is not None and change[0] == shape[0] and prod(change) == shape.numel()


# ---- the stack -----------------------------------------------------------------------------------------------------

class Plan:
    """Steps per weight, collected file by file, joined where sums commute."""

    def __init__(self, targets: Targets):
        self.targets = targets
        self.steps: dict = {}

    def add(self, entry: LoraEntry, file: LoraFile) -> FileReport:
        report = FileReport(entry, len(file.tensors), notes=file.peft.notes)
        try:
            strength_of = entry.strengths(self.targets.family)
        except UserError as problem:
            raise UserError(f"{entry[0]}: {problem}") from None
        misfits: Counter[str] = Counter()
        for layer, parts in layers_of(file, report).items():
            self._add_layer(layer, parts, entry, strength_of, report, misfits)
        self._refuse_other_families(entry, file, misfits)
        return report

    def _add_layer(self, layer, parts, entry, strength_of: Callable[[str], float], report, misfits):
        keys = [key for key, _ in parts.values() if key]
        target = self.targets.find(layer)
        shape = None if target is None else self.targets.shape(target)
        text = is_text(layer) if target is None else not in_denoiser(weight_of(target))
        if entry[2 if text else 1] == 0:
            report.off += len(keys)
            return
        if shape is None:
            connected = self.targets.has_text if text else self.targets.has_model
            report.leave(NO_LAYER if connected else NO_CLIP if text else NO_MODEL, keys)
            misfits["missing"] += not text
            return
        if not shape_fits(parts, shape):
            report.leave(f"the model's weight has another shape, {list(shape)}", keys)
            misfits["missing"] += not text
            misfits["attention"] += not text and place(layer).kind == ATTENTION
            return
        try:
            patches = patches_of(layer, parts, target, len(shape))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError):  # what the host's adapters say to odd tensors
            patches = {}
        if not patches:
            report.leave("its tensors are incomplete", keys)
            return
        report.matched += len(keys)
        misfits["fitting"] += not text
        for place_of, patch in patches.items():
            self._add_step(place_of, patch, strength_of(weight_of(place_of)))

    def _add_step(self, target, patch, strength: float):
        kind, content, *rest = patch
        if strength == 0:
            return
        steps = self.steps.setdefault(target, [])
        if kind != "joined":
            steps.append((kind, content, *rest, strength))
            return
        up, down, scale = content
        # Sums commute: the factors join the last sum that no step which depends on the weight has come after.
        for index in range(len(steps) - 1, -1, -1):
            if steps[index][0] == "joined":
                steps[index] = ("joined", (*steps[index][1], (up, down, scale * strength)))
                return
            if not (steps[index][0] == "host" and getattr(steps[index][1], "name", "") in ADDITIVE
                    and _has_no_dora(steps[index][1])):
                break
        steps.append(("joined", ((up, down, scale * strength),)))

    def _refuse_other_families(self, entry, file, misfits):
        if not self.targets.has_model or misfits["missing"] == 0:
            return
        if misfits["fitting"] > misfits["missing"] and not misfits["attention"]:
            return
        header = {key: {"shape": list(tensor.shape)} for key, tensor in file.tensors.items()}
        family = TITLES.get(family_of(header, file.metadata), "")
        made_for = f"is made for {family}" if family and family != self.targets.title else "does not fit"
        raise UserError(
            f"The LoRA {shown(entry[0], 200)} {made_for}, but the model is {self.targets.title}: only {misfits['fitting']} "
            f"of its {misfits['fitting'] + misfits['missing']} layers fit. Switch its row off, or load the model it was "
            "made for.")

    def patches(self) -> dict:
        """Target → the one patch to add with strength 1."""
        return {target: StackPatch(set(), tuple(steps)) for target, steps in self.steps.items()}


def _has_no_dora(patch) -> bool:
    return patch.weights[{"loha": 7, "lokr": 8}[patch.name]] is None


def apply_stack(model, clip, entries: Iterable[LoraEntry]):
    """(MODEL, CLIP, [FileReport …]): clones with patches; the given ones where nothing is to be done.

    Raises UserError for a missing or damaged file and for a LoRA of another family.
    """
    entries = [entry for entry in entries if entry[1] != 0 or entry[2] != 0]
    if not entries:
        return model, clip, []
    targets = Targets(model, clip)
    plan = Plan(targets)
    reports = [plan.add(entry, read_lora(entry[0])) for entry in entries]
    patches = plan.patches()
    return _patched(model, patches), _patched(clip, patches), reports


def _patched(patchable, patches: dict):
    if patchable is None:
        return None
    patched = patchable.clone()
    patched.add_patches(patches)
    return patched


def inspect_lora(model, clip, name: str) -> tuple[FileReport | str, dict[str, str]]:
    """(what a file's tensors meet in a model, or the sentence that refuses it; layer → name of the weight it changes).

    Nothing is patched.
    """
    targets, file = Targets(model, clip), read_lora(name)
    try:
        report = Plan(targets).add(LoraEntry(name), file)
    except UserError as problem:
        report = str(problem)
    found = {split.layer: targets.find(split.layer) for key in file.tensors if (split := split_key(key))}
    return report, {layer: weight_of(target) for layer, target in found.items() if target}
