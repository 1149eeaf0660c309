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


def make(spec: MethodSpec, learning_rate: float, family: Family) -> Method:
    """The method that a spec's `method` part describes, if the family supports it."""
    module, name = WHERE[spec.kind]
    method = getattr(import_module(f".{module}", __name__), name)(spec, learning_rate)
    missing = method.requires - family.capabilities
    if missing:
        raise UserError(f"{family.title} does not support the method {spec.kind!r} (missing: {', '.join(sorted(missing))}).")
    return method
