"""The registry of training methods. A new method is one file and one line here."""
from importlib import import_module

from ..errors import UserError
from ..families.protocol import Family
from ..spec import MethodSpec
from .protocol import Method

WHERE = {
    "lora": ("lora", "Lora"),
    "full": ("full", "Full"),
    "textual_inversion": ("textual_inversion", "TextualInversion"),
    "hypernetwork": ("hypernetwork", "Hypernetwork"),
    "pivotal": ("pivotal", "Pivotal"),
}
KINDS = tuple(WHERE)
LACKING = {
    "hypernetwork": "hypernetworks act on the keys and values of cross-attention, which {family} does not have: its text "
                    "and image attend together, and ComfyUI's HypernetworkLoader finds nothing to act on. Train a LoRA "
                    "instead (Train LoRA)",
    "textual_inversion": "a new word needs a text encoder of CLIP, which {family} does not have. Train a LoRA instead "
                         "(Train LoRA)",
    "text_encoder": "the text encoder of {family} is a language model, which is left as it is: the denoiser was trained on "
                    "what it says, and no two programs agree on names for its LoRAs. Set text_encoder_learning_rate to 0",
}
"""Why a family that lacks a capability cannot be trained so, and what to do."""


def make(spec: MethodSpec, learning_rate: float, family: Family) -> Method:
    """The method that a spec's `method` part describes, if the family supports it."""
    module, name = WHERE[spec.kind]
    method = getattr(import_module(f".{module}", __name__), name)(spec, learning_rate)
    missing = sorted(method.requires - family.capabilities)
    if missing:
        why = LACKING.get(missing[0], "{family} does not support it").format(family=family.title)
        raise UserError(f"{spec.kind.replace('_', ' ').capitalize()} cannot be trained on this base: {why}.")
    return method
