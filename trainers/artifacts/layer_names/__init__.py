"""Layer names: THE authority on how programs call the layers of a model in LoRA files, for reading and for writing.

    parts      which part of a layer a tensor of a file is: lora_down.weight, hada_w1_a, alpha, …
    spelling   any program's spelling of a layer, taken apart
    unet       names of UNets, diffusers' and original ones; text: names of CLIP text encoders
    key_map    names of transformers as rules, read both ways; transformer: the layers of a family by its rules
    table      a model's layers under all their names, of a family or of a checkpoint
    blocks     the block and the kind of a layer
    family     which family a checkpoint or a LoRA file is of
    brought    names that a family brings with it
"""
from .blocks import BLOCKS, place
from .brought import BROUGHT, FamilyNames
from .family import TITLES, family_of_lora, family_of_model
from .parts import split_key
from .spelling import in_denoiser, is_text, other_spellings, underscored
from .table import MAKERS, Layer, LayerNames, ReleasedNames, family_names, layers_of_checkpoint, released_names

__all__ = ["MAKERS", "FamilyNames", "Layer", "LayerNames", "ReleasedNames", "family_names", "family_of_lora",
           "family_of_model", "in_denoiser", "is_text", "layers_of_checkpoint", "other_spellings", "place", "register",
           "released_names", "split_key", "underscored", "unregister"]


def register(names: FamilyNames):
    """Make the names of a family known to everybody."""
    if not isinstance(names, ReleasedNames):
        BROUGHT[names.family], TITLES[names.family], BLOCKS[names.family] = names, names.title, names.blocks
        place.cache_clear()


def unregister(family: str):
    for each in (BROUGHT, TITLES, BLOCKS):
        each.pop(family, None)
    place.cache_clear()
