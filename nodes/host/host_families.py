"""What the host calls the model families of the pack: the only table of that kind.

A family without a line here trains all the same; what needs the host's own classes (proofs that files load, models of
unusual size) is left out for it.
"""
from collections.abc import Callable
from dataclasses import dataclass

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip


@dataclass(frozen=True)
class HostFamily:
    model_class: str
    """In `comfy.supported_models`, for UNets that are built from configs."""
    kinds: tuple[str, ...]
    """How names of the host's descriptions of such models begin."""
    text_model: Callable
    embedding: str = ""
    """What its tokenizer looks for in embedding files; empty: each of several tokenizers for a name of its own."""
    any_size: bool = False
    """Whether models of other sizes than the released ones are built here, as native objects."""


HOST_FAMILIES = {
    "sd1": HostFamily("SD15", ("SD15",), comfy.sd1_clip.SD1ClipModel, "clip_l", any_size=True),
    "sd2": HostFamily("SD20", ("SD2",), comfy.text_encoders.sd2_clip.SD2ClipModel, "clip_h"),
    "sdxl": HostFamily("SDXL", ("SDXL", "SSD1B", "Segmind"), comfy.sdxl_clip.SDXLClipModel),
}
TEXT_ALONE = SMALL = "sd1"
"""Of which family a CLIP without a model counts as, and small models are that are built here."""
CLIP_TYPES = {"sd3": "SD3", "flux": "FLUX", "flux2": "FLUX2", "z_image": "LUMINA2", "qwen_image": "QWEN_IMAGE",
              "chroma": "CHROMA", "krea2": "KREA2"}
"""What the host's Load CLIP calls text encoders of a family; all others are of the kind STABLE_DIFFUSION."""
TRANSFORMERS = {"SD3": "sd3", "Flux": "flux", "FluxInpaint": "flux", "FluxSchnell": "flux", "Flux2": "flux2",
                "ZImage": "z_image", "QwenImage": "qwen_image", "Chroma": "chroma", "Krea2": "krea2",
                "Anima": "anima"}
"""The host's descriptions of models whose LoRAs are stacked, and no more. Relatives of them have descriptions of their own,
and classes that are made of theirs."""


def family_of_model(model) -> str:
    """The family of a MODEL's inner model; "" for one that has no block names here."""
    described = type(model.model_config).__name__
    return TRANSFORMERS.get(described) or next(
        (name for name, each in HOST_FAMILIES.items() if described.startswith(each.kinds)), "")
