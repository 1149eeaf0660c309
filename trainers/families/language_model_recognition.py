"""Which language model a file holds, from its header alone: the marks are those of ComfyUI's `comfy.sd.detect_te_model`."""
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

LanguageKind = Literal["qwen3", "qwen25_vl", "qwen3_vl", "mistral"]
LANGUAGE_TITLES: Mapping[LanguageKind, str] = {
    "qwen3": "Qwen3 text encoder", "qwen25_vl": "Qwen2.5-VL text encoder", "qwen3_vl": "Qwen3-VL text encoder",
    "mistral": "Mistral text encoder",
}
RELEASED: Mapping[tuple[str, int], str] = {
    ("qwen3", 1024): "Qwen3 0.6B text encoder", ("qwen3", 2560): "Qwen3 4B text encoder",
    ("qwen3", 4096): "Qwen3 8B text encoder", ("qwen25_vl", 3584): "Qwen2.5-VL 7B text encoder",
    ("qwen3_vl", 2560): "Qwen3-VL 4B text encoder", ("qwen3_vl", 4096): "Qwen3-VL 8B text encoder",
    ("mistral", 5120): "Mistral Small 3 text encoder", ("t5", 4096): "T5-XXL text encoder",
}
"""Kind and width → what people call it."""
MISTRAL_WIDTH = 5120
MARK = re.compile(r"(?:^|\.)((?:model\.language_model|language_model\.model|language_model|model)\.)"
                  r"layers\.0\.self_attn\.k_proj\.weight$")
OTHERS = re.compile(r"layers\.0\.(pre_feedforward_layernorm\.weight|self_attn\.sinks|mlp\.experts\..+)$")
"""What Gemma and mixtures of experts have."""


class FoundLanguageModel(NamedTuple):
    kind: LanguageKind | None
    """None for those that no family reads."""
    start: str
    """What stands before the names of its tensors in the file."""
    width: int


def language_model_at(name: str, tensors: Mapping[str, dict]) -> FoundLanguageModel | None:
    """The language model whose mark a tensor is."""
    found = MARK.search(name)
    if found is None:
        return None
    start, layers = name[:found.start(1)], name[:found.end(1)]
    width = next((tensors[each]["shape"][0] for each in (
        f"{layers}layers.0.post_attention_layernorm.weight", f"{layers}layers.0.input_layernorm.weight")
        if each in tensors and tensors[each]["shape"]), tensors[name]["shape"][1])
    return FoundLanguageModel(_kind(start, layers, width, tensors), start, width)


def _kind(start: str, layers: str, width: int, tensors: Mapping[str, dict]) -> LanguageKind | None:
    own = [name.removeprefix(start) for name in tensors if name.startswith(start)]
    if any(OTHERS.search(name) for name in own):
        return None
    if f"{layers}layers.0.self_attn.k_proj.bias" in tensors:
        return "qwen25_vl"
    if f"{layers}layers.0.self_attn.q_norm.weight" in tensors:
        return "qwen3_vl" if any("visual.deepstack_merger_list." in name for name in own) else "qwen3"
    return "mistral" if width == MISTRAL_WIDTH or "tekken_model" in own else None
