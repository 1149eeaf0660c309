"""The registry of model families. A new family is one file and one line here.

Importing this package is light: diffusers and transformers are imported when a model is loaded.
"""
from ..artifacts import layer_names
from ..errors import UserError
from .anima import ANIMA
from .chroma import CHROMA
from .flux import FLUX
from .flux2 import FLUX2
from .flux3 import FLUX3
from .krea2 import KREA2
from .protocol import Family
from .qwen_image import QWEN_IMAGE
from .qwen_image_21 import QWEN_IMAGE_21
from .sd3 import SD3
from .sdxl import SDXL
from .stable_diffusion import SD1, SD2
from .z_image import Z_IMAGE

FAMILIES: dict[str, Family] = {}
"""Every family that can be trained, by its name in specs."""


def register(family: Family):
    """Make a family known, with the names of its layers."""
    FAMILIES[family.name] = family
    layer_names.register(family.layer_names)


def unregister(name: str):
    FAMILIES.pop(name, None)
    layer_names.unregister(name)


def get(name: str) -> Family:
    """The family of that name."""
    if name not in FAMILIES:
        raise UserError(f"The model family {name!r} is unknown. Known families: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


for _family in (SD1, SD2, SDXL, SD3, FLUX, FLUX2, FLUX3, Z_IMAGE, QWEN_IMAGE, QWEN_IMAGE_21, KREA2, ANIMA, CHROMA):
    register(_family)
NAMES = tuple(FAMILIES)
"""Those that come with the pack."""
