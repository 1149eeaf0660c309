"""Which components of a model a file holds, from its header alone: the marks are those of ComfyUI's `comfy.sd`
(`detect_te_model`, `VAE`) and `comfy.model_detection`."""
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..artifacts.layer_names import BROUGHT
from .language_model_recognition import LANGUAGE_TITLES, RELEASED, LanguageKind, language_model_at

Kind = Literal["denoiser", "clip_l", "clip_h", "clip_g", "t5", "other text encoder", "vae", "flux2_vae", "qwen_vae",
               "qwen_21_vae", "other vae"] | LanguageKind
TITLES: Mapping[Kind, str] = {
    "denoiser": "denoiser", "clip_l": "CLIP-L text encoder", "clip_h": "CLIP-H text encoder",
    "clip_g": "CLIP-G text encoder", "t5": "T5 text encoder", "other text encoder": "text encoder of another kind",
    "vae": "VAE", "flux2_vae": "FLUX.2 VAE", "qwen_vae": "Qwen-Image VAE", "qwen_21_vae": "Qwen-Image-2.1 VAE",
    "other vae": "VAE of another kind", **LANGUAGE_TITLES,
}
VAES = frozenset[Kind](("vae", "flux2_vae", "qwen_vae", "qwen_21_vae", "other vae"))
DENOISERS = ("model.diffusion_model.", "diffusion_model.", "net.", "")
"""What may stand before the names of a denoiser."""
CLIP, OPEN_CLIP = "encoder.layers.0.mlp.fc1.weight", "transformer.resblocks.0.mlp.c_fc.weight"
T5 = "encoder.block.0.layer.0.SelfAttention.k.weight"
VAE, WAN_VAE = "decoder.conv_in.weight", "decoder.middle.0.residual.0.gamma"
CLIP_H_LAYERS, CLIP_G_LAYERS = 23, 31
"""CLIP-L has 12 layers, CLIP-H 24, of which the last is often left out, CLIP-G 32."""
T5_VOCABULARY = range(32100, 32129)
"""T5 has 32100 tokens, and tables of up to 32128 rows; multilingual and byte-level relatives have others."""
_FULL = {"F64": "fp64", "F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True)
class FoundComponent:
    """A component of a model in a file, whose tensors there begin with `prefix`."""

    kind: Kind
    prefix: str
    storage: str
    """How its weights are kept: "fp32", "bf16", "fp16", or smaller: "fp8", "scaled fp8", "int8", "mxfp8", "nvfp4"."""
    layout: Literal["original", "diffusers"] = "original"
    """Whose names the layers have. Text encoders in "diffusers" layout are transformers' classes, those in "original"
    OpenCLIP's."""
    family: str = ""
    """Of a denoiser, as specs name it."""
    width: int = 0
    """Channels of a VAE's latents; the width of what a text encoder says, or of what a denoiser reads, where models of its
    family differ in that."""

    @property
    def title(self) -> str:
        """What people call it, for example "VAE with 16 latent channels (fp32)"."""
        name = RELEASED.get((self.kind, self.width), TITLES[self.kind])
        if self.kind in VAES:
            name += f" with {self.width} latent channels"
        return f"{name} ({self.storage})"


def components_of(tensors: Mapping[str, dict]) -> tuple[FoundComponent, ...]:
    """Every component of a file, by the tensors of its header (`tensor_header.read_header`)."""
    return (*_denoisers(tensors), *(found for name in tensors if (found := _component_at(name, tensors))))


def is_full(storage: str) -> bool:
    """Kept in 16 bits a number or more."""
    return storage in _FULL.values()


def storage_of(tensors: Mapping[str, dict], prefix: str = "") -> str:
    """How the weights under a prefix are kept. One that is kept in less than full precision gives all its name, because
    small tensors, as those of norms, seldom are."""
    counts: Counter[str] = Counter()
    for name, facts in tensors.items():
        if name.startswith(prefix) and name.endswith("weight") and len(facts["shape"]) > 1:
            counts[_kept(name, tensors)] += prod(facts["shape"])
    small = {kind: count for kind, count in counts.items() if not is_full(kind)}
    chosen = small or counts
    return max(chosen, key=chosen.__getitem__) if chosen else "fp32"


def _kept(name: str, tensors: Mapping[str, dict]) -> str:
    dtype: str = tensors[name]["dtype"]
    stem = name.removesuffix("weight")
    scale = tensors.get(stem + "weight_scale") or tensors.get(stem + "scale_weight")
    if stem + "weight_scale_2" in tensors:
        return "nvfp4"
    if dtype.startswith("F8_"):
        return "fp8" if scale is None else "mxfp8" if scale["dtype"] in ("U8", "F8_E8M0") else "scaled fp8"
    return {**_FULL, "I8": "int8", "U8": "packed numbers"}.get(dtype, dtype)


# ---- denoisers -----------------------------------------------------------------------------------------------------

def unet_family(tensors: Mapping[str, dict], prefix: str) -> str:
    """The family of Stable Diffusion that a UNet is of; "" where there is none under this prefix."""
    if prefix + "input_blocks.0.0.weight" not in tensors:
        return ""
    context = next((facts["shape"] for name, facts in tensors.items() if name.endswith(".attn2.to_k.weight")), [])
    return "sdxl" if prefix + "label_emb.0.0.weight" in tensors else "sd2" if context[1:2] == [1024] else "sd1"


def _denoisers(tensors: Mapping[str, dict]) -> Iterator[FoundComponent]:
    for prefix in DENOISERS:
        names = {name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
        brought = (each.family for each in BROUGHT.values() if each.owns_model(names))
        family = unet_family(tensors, prefix) or next(brought, "")
        if family:
            shapes = {name: facts["shape"] for name, facts in tensors.items()}
            width = BROUGHT[family].read_width(shapes, prefix) if family in BROUGHT else 0
            yield FoundComponent("denoiser", prefix, storage_of(tensors, prefix), family=family, width=width)
            return


# ---- text encoders and VAEs ----------------------------------------------------------------------------------------

def _component_at(name: str, tensors: Mapping[str, dict]) -> FoundComponent | None:
    """The component whose mark a tensor is."""
    shape = tensors[name]["shape"]
    if len(shape) not in (2, 4, 5):
        return None
    if name.endswith((VAE, WAN_VAE)):
        return _vae(name.removesuffix(VAE).removesuffix(WAN_VAE), tensors)
    if name.endswith((CLIP, OPEN_CLIP)) and not re.search(r"(^|\.)(vision_model|visual)\.", name):
        mark = CLIP if name.endswith(CLIP) else OPEN_CLIP
        start = name.removesuffix(mark)
        return FoundComponent(_clip_kind(name.rpartition("0.mlp.")[0], tensors), start.removesuffix("text_model."),
                              storage_of(tensors, start), "diffusers" if mark == CLIP else "original", width=shape[1])
    if name.endswith(T5):
        start = name.removesuffix(T5)
        return FoundComponent(_t5_kind(start, tensors), start, storage_of(tensors, start), "diffusers", width=shape[1])
    if language := language_model_at(name, tensors):
        return FoundComponent(language.kind or "other text encoder", language.start, storage_of(tensors, language.start),
                              "diffusers", width=language.width)
    return None


def _vae(start: str, tensors: Mapping[str, dict]) -> FoundComponent | None:
    """Video autoencoders have kernels with an axis for time; those of Wan have norms with a gamma."""
    def shape(name: str) -> list[int]:
        return tensors.get(start + name, {}).get("shape", [])
    storage = storage_of(tensors, start)
    if start + WAN_VAE in tensors:
        kind, layout, width = _wan_kind(shape, "encoder.conv1.weight", "decoder.head.2.weight",
                                        "decoder.upsamples.0.upsamples.0.residual.2.weight"), "original", "conv2.weight"
    elif start + "decoder.mid_block.resnets.0.norm1.gamma" in tensors:
        kind, layout, width = _wan_kind(shape, "encoder.conv_in.weight", "decoder.conv_out.weight",
                                        "decoder.up_blocks.0.upsampler.resample.1.weight"), "diffusers", VAE
    else:
        kind: Kind = "flux2_vae" if start + "bn.running_mean" in tensors else "vae"
        diffusers = f"{start}decoder.up_blocks.0.resnets.0.norm1.weight" in tensors
        layout, width = "diffusers" if diffusers else "original", VAE
        if len(shape(VAE)) != 4:
            kind = "other vae"
    return FoundComponent(kind, start, storage, layout, width=[*shape(width), 0, 0][1])


def _wan_kind(shape: Callable[[str], list[int]], first: str, last: str, levels: str) -> Kind:
    """Wan 2.2's have blocks of levels, as Qwen-Image-2.1's, whose kernels see one frame. There are relatives of
    Qwen-Image's with transparency, and with larger images out than in."""
    channels, frames = (shape(first)[1:2], shape(last)[:1]), shape(last)[2:-2]
    if shape(levels):
        return "qwen_21_vae" if frames in ([], [1]) and channels == ([4], [4]) else "other vae"
    return "qwen_vae" if channels == ([3], [3]) else "other vae"


def _clip_kind(layers: str, tensors: Mapping[str, dict]) -> Kind:
    numbers = {int(match[1]) for name in tensors
               if name.startswith(layers) and (match := re.match(r"(\d{1,3})\.", name.removeprefix(layers)))}
    return "clip_g" if len(numbers) >= CLIP_G_LAYERS else "clip_h" if len(numbers) >= CLIP_H_LAYERS else "clip_l"


def _t5_kind(start: str, tensors: Mapping[str, dict]) -> Kind:
    """T5 1.1 has a gated layer where T5 has none, and other vocabularies are of other models."""
    words = next((tensors[each]["shape"] for each in (f"{start}shared.weight", f"{start}encoder.embed_tokens.weight")
                  if each in tensors), [0])
    gated = f"{start}encoder.block.0.layer.1.DenseReluDense.wi_1.weight" in tensors
    return "t5" if gated and words and words[0] in T5_VOCABULARY else "other text encoder"
