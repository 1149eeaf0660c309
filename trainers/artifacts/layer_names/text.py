"""Names of layers of CLIP text encoders: transformers', which every LoRA file follows, and OpenCLIP's in checkpoints."""
import re
from collections.abc import Iterator
from typing import NamedTuple

MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
OPEN_CLIP_PARTS = (
    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
)
"""transformers' → OpenCLIP's; there q, k and v are one tensor, `attn.in_proj`."""
PROJECTION = "text_projection"


class Encoder(NamedTuple):
    """A text encoder by its names in kohya's files ("te1"), diffusers ("text_encoder") and ComfyUI ("clip_l")."""

    kohya: str
    diffusers: str
    native: str
    layers: int
    projection: bool = False

    def names(self, module: str) -> tuple[str, str, str]:
        """(kohya's, diffusers', native name) of a module such as "encoder.layers.0.mlp.fc1", or of the projection."""
        path = module if module == PROJECTION else f"text_model.{module}"
        return (f"lora_{self.kohya}_{path.replace('.', '_')}", f"{self.diffusers}.{path}",
                f"text_encoders.{self.native}.transformer.{path}")

    def modules(self) -> Iterator[str]:
        for number in range(self.layers):
            for module in MODULES:
                yield f"encoder.layers.{number}.{module}"
        if self.projection:
            yield PROJECTION


ENCODERS = {
    "sd1": (Encoder("te", "text_encoder", "clip_l", 12),),
    "sd2": (Encoder("te", "text_encoder", "clip_h", 24),),
    "sdxl": (Encoder("te1", "text_encoder", "clip_l", 12), Encoder("te2", "text_encoder_2", "clip_g", 32, projection=True)),
}
_PLACES = (re.compile(r"cond_stage_model\.(?:transformer|model)\.(?P<rest>.+)"),
           re.compile(r"conditioner\.embedders\.(?P<number>\d)\.(?:transformer|model)\.(?P<rest>.+)"),
           re.compile(r"clip_(?P<letter>[lgh])\.transformer\.(?P<rest>.+)"))
"""Where single files keep them, and ComfyUI's CLIP."""


class Place(NamedTuple):
    """A module of the text encoder `number`; of a fused tensor the rows `part` of `parts`."""

    number: int
    module: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


def places(tensor: str) -> Iterator[Place]:
    """The layers that a checkpoint's weight holds."""
    match = next((match for pattern in _PLACES if (match := pattern.fullmatch(tensor))), None)
    if match is None:
        return
    found = match.groupdict()
    number = int(found.get("number") or found.get("letter") == "g")
    if match["rest"] in (PROJECTION, f"{PROJECTION}.weight"):  # OpenCLIP multiplies with it from the other side
        yield Place(number, PROJECTION, transposed=match["rest"] == PROJECTION)
    hugging = re.fullmatch(r"(?:text_model\.)?(encoder\.layers\.\d+\..+)\.weight", match["rest"])
    if hugging:
        yield Place(number, hugging[1])
        return
    open_clip = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._]weight", match["rest"])
    if not open_clip:
        return
    layer, rest = open_clip.groups()
    if rest == "attn.in_proj":
        for part, letter in enumerate("qkv"):
            yield Place(number, f"encoder.layers.{layer}.self_attn.{letter}_proj", part, 3)
    for transformers, original in OPEN_CLIP_PARTS:
        if rest == original:
            yield Place(number, f"encoder.layers.{layer}.{transformers}")
