"""Names of layers of text encoders: transformers', which every LoRA file follows, and OpenCLIP's in checkpoints."""
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

CLIP_LAYER = tuple(f"encoder.layers.{{}}.{part}" for part in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"))
T5_LAYER = tuple(f"encoder.block.{{}}.layer.{part}" for part in (
    *(f"0.SelfAttention.{letter}" for letter in "qkvo"), *(f"1.DenseReluDense.{each}" for each in ("wi_0", "wi_1", "wo"))))
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
    kind: tuple[str, ...] = CLIP_LAYER
    """The modules of each of its layers."""

    def names(self, module: str) -> tuple[str, str, str]:
        """(kohya's, diffusers', native name) of a module such as "encoder.layers.0.mlp.fc1", or of the projection."""
        path = f"text_model.{module}" if module.startswith("encoder.layers.") else module
        return (f"lora_{self.kohya}_{path.replace('.', '_')}", f"{self.diffusers}.{path}",
                f"text_encoders.{self.native}.transformer.{path}")

    def modules(self) -> Iterator[str]:
        for number in range(self.layers):
            for module in self.kind:
                yield module.format(number)
        if self.projection:
            yield PROJECTION


def clip_l(kohya: str, projection: bool = False) -> Encoder:
    return Encoder(kohya, "text_encoder", "clip_l", 12, projection)


def clip_g(kohya: str) -> Encoder:
    return Encoder(kohya, "text_encoder_2", "clip_g", 32, projection=True)


def t5(kohya: str, diffusers: str) -> Encoder:
    """T5-XXL's encoder. In LoRA files its number differs from program to program; its modules' names are nobody else's."""
    return Encoder(kohya, diffusers, "t5xxl", 24, kind=T5_LAYER)


ENCODERS = {
    "sd1": (clip_l("te"),),
    "sd2": (Encoder("te", "text_encoder", "clip_h", 24),),
    "sdxl": (clip_l("te1"), clip_g("te2")),
}
_PLACES = (re.compile(r"cond_stage_model\.(?:transformer|model)\.(?P<rest>.+)"),
           re.compile(r"conditioner\.embedders\.(?P<number>\d)\.(?:transformer|model)\.(?P<rest>.+)"),
           re.compile(r"(?:text_encoders\.)?(?P<native>clip_[lgh]|t5xxl)\.transformer\.(?P<rest>.+)"))
"""Where single files keep them, and ComfyUI's CLIP."""
_OWN = re.compile(r"(?:text_model\.)?"
                  r"(encoder\.(?:layers\.\d+|block\.\d+\.layer\.\d)\.(?!.+\.relative_attention_bias).+)\.weight")


class Place(NamedTuple):
    """A module of a text encoder, which is told by its native name or else its `number`; of a fused tensor the rows `part`
    of `parts`."""

    native: str
    number: int
    module: str
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def encoder(self, encoders: Sequence[Encoder]) -> Encoder | None:
        named = next((each for each in encoders if self.native and each.native == self.native), None)
        return named or (encoders[self.number] if self.number < len(encoders) else None)


def places(tensor: str) -> Iterator[Place]:
    """The layers that a checkpoint's weight holds."""
    match = next((match for pattern in _PLACES if (match := pattern.fullmatch(tensor))), None)
    if match is None:
        return
    found, rest = match.groupdict(), match["rest"]
    native = found.get("native") or ""
    where = native, int(found.get("number") or native == "clip_g")
    if rest in (PROJECTION, f"{PROJECTION}.weight"):  # OpenCLIP multiplies with it from the other side
        yield Place(*where, PROJECTION, transposed=rest == PROJECTION)
    if own := _OWN.fullmatch(rest):
        yield Place(*where, own[1])
        return
    open_clip = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._]weight", rest)
    if not open_clip:
        return
    layer, rest = open_clip.groups()
    if rest == "attn.in_proj":
        for part, letter in enumerate("qkv"):
            yield Place(*where, f"encoder.layers.{layer}.self_attn.{letter}_proj", part, 3)
    for transformers, original in OPEN_CLIP_PARTS:
        if rest == original:
            yield Place(*where, f"encoder.layers.{layer}.{transformers}")
