"""Tiny real models of the families of flow transformers: a new family is a file here and its name in a line."""
from .anima import ANIMA
from .chroma import CHROMA
from .flow_model import FlowModel
from .flux import FLUX
from .flux2 import FLUX2
from .flux3 import FLUX3
from .krea2 import KREA2
from .qwen_image import QWEN_IMAGE
from .qwen_image_21 import QWEN_IMAGE_21
from .sd3 import SD3
from .z_image import Z_IMAGE

FLOW_MODELS: dict[str, FlowModel] = {
    each.name: each for each in (SD3, FLUX, FLUX2, FLUX3, Z_IMAGE, QWEN_IMAGE, QWEN_IMAGE_21, KREA2, ANIMA, CHROMA)}
