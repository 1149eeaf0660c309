"""Run as a script with a folder of ComfyUI and one for results: what the pack makes of files beside what ComfyUI does.

    python tests/host/file_content_effects.py COMFYUI RESULTS

Ids of T5's tokenizer, the kinds of text encoders, and numbers of quantized layers where this ComfyUI has them. A process of
its own, because ComfyUI's modules would stay in the tests' process.
"""
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack  # noqa: E402

become_host(Path(sys.argv[1]))
load_pack()
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from comfy.text_encoders.sd3_clip import T5XXLTokenizer  # noqa: E402
from finetune.trainers import families  # noqa: E402
from finetune.trainers.artifacts.quantized import without_scales  # noqa: E402
from finetune.trainers.artifacts.tensor_files import NAMES, entry_of  # noqa: E402
from finetune.trainers.families.component_recognition import components_of  # noqa: E402
from finetune.trainers.families.text.t5 import t5_tokenizer  # noqa: E402
from finetune.trainers.spec import BaseModelSpec, ComponentSpec  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from support import tiny_flow  # noqa: E402

torch.set_grad_enabled(False)
TEXTS = ["", " ", "a cat", "a cat " * 300, "  two   spaces,\n\nlines ", "</s> <pad> <extra_id_7>text", "été — “quotes”…",
         "猫の写真 кот γάτα 🐱 ½ ﬁ", "tab\there\u00a0\u200b"]
KINDS = {"CLIP_L": "clip_l", "CLIP_H": "clip_h", "CLIP_G": "clip_g", "T5_XXL": "t5", "T5_XL": "t5", "QWEN3_4B": "qwen3"}
"""ComfyUI's names of text encoders → ours; all others are of another kind."""


def clip(layers: int, width: int) -> dict:
    return {f"text_model.encoder.layers.{number}.mlp.fc1.weight": (4 * width, width) for number in range(layers)}


def t5(width: int, inner: int, words: int, gated: bool) -> dict:
    layer = f"layer.1.DenseReluDense.wi{'_1' * gated}.weight"
    layers = {f"encoder.block.{number}.{layer}": (inner, width) for number in range(24)}
    return layers | {"shared.weight": (words, width), "encoder.block.0.layer.0.SelfAttention.k.weight": (4096, width)}


ENCODERS = {"L": clip(12, 768), "H": clip(24, 1024), "H, short": clip(23, 1024), "G": clip(32, 1280),
            "XXL": t5(4096, 10240, 32128, True), "XL": t5(2048, 5120, 32128, True),
            "T5 1.0": t5(1024, 65536, 32128, False),
            "Qwen": {"model.layers.0.self_attn.k_proj.weight": (1024, 2560),
                     "model.layers.0.self_attn.q_norm.weight": (128,),
                     "model.layers.0.post_attention_layernorm.weight": (2560,)}}


def encoder_kinds() -> dict:
    """What ComfyUI and the pack call each; where they differ there is work."""
    found = {}
    for name, shapes in ENCODERS.items():
        tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        header = {key: {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape)} for key, tensor in tensors.items()}
        theirs = comfy.sd.detect_te_model(tensors)
        found[name] = KINDS.get(theirs.name, "other text encoder"), [each.kind for each in components_of(header)]
    return found


def token_ids() -> list[str]:
    host, own = T5XXLTokenizer(min_length=0), t5_tokenizer()
    return [text for text in TEXTS if [pair[0] for part in host.tokenize_with_weights(text) for pair in part] !=
            own(text).input_ids]


def quantized_layers() -> dict:
    """Largest error of our numbers in units of the largest number, by layout, for layers of several tiles of block
    scales. Older ComfyUIs have nothing but fp8, in another form."""
    try:
        from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
    except ImportError:
        return {}
    if "nvfp4" not in QUANT_ALGOS:
        return {}
    found = {}
    for layout, options in (("float8_e4m3fn", {"scale": "recalculate"}), ("int8_tensorwise", {"per_channel": True}),
                            ("int8_tensorwise", {"per_channel": True, "convrot": True}), ("mxfp8", {}), ("nvfp4", {})):
        weight = torch.randn(384, 1024)
        stored = QuantizedTensor.from_float(weight, QUANT_ALGOS[layout]["comfy_tensor_layout"], **options)
        note = torch.tensor(list(json.dumps({"format": layout, **options}).encode()), dtype=torch.uint8)
        tensors = {**stored.state_dict("a.weight"), "a.comfy_quant": note}
        entries = without_scales({name: entry_of(name, [tensor]) for name, tensor in tensors.items()}, {}, "a")
        error = (entries["a.weight"].tensor() - stored.dequantize()).abs().max() / weight.abs().max()
        found[layout + ", rotated" * ("convrot" in options)] = float(error)
    return found


def quantized_denoisers() -> dict:
    """The same for all weights of a tiny Qwen-Image in files of ComfyUI's making, read as the family reads them."""
    try:
        from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
    except ImportError:
        return {}
    if "nvfp4" not in QUANT_ALGOS:
        return {}
    found, model = {}, tiny_flow.make_transformer("qwen_image").state_dict()
    for layout, options in (("float8_e4m3fn", {"scale": "recalculate"}),
                            ("int8_tensorwise", {"per_channel": True, "convrot": True, "convrot_groupsize": 64})):
        note = torch.tensor(list(json.dumps({"format": layout, **options}).encode()), dtype=torch.uint8)
        tensors, meant = {}, {}
        for name, tensor in model.items():
            tensors[name] = meant[name] = tensor
            if tensor.ndim == 2 and tensor.shape[1] % 64 == 0:
                stored = QuantizedTensor.from_float(tensor, QUANT_ALGOS[layout]["comfy_tensor_layout"], **options)
                del tensors[name]
                tensors |= stored.state_dict(name) | {f"{name.removesuffix('weight')}comfy_quant": note.clone()}
                meant[name] = stored.dequantize()
        file = Path(sys.argv[2]) / f"{layout}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        part = ComponentSpec(name="transformer", path=str(file))
        base = BaseModelSpec(family="qwen_image", path=str(file), name="tiny", layout="separate_files",
                             prediction_type="flow", fingerprint="", components=(part,))
        read = families.get("qwen_image").load_denoiser(base, torch.float32).state_dict()
        assert read.keys() == meant.keys() and len(tensors) > len(meant) + 50
        found[layout + ", rotated" * ("convrot" in options)] = max(
            float((read[name] - tensor).abs().max() / tensor.abs().max()) for name, tensor in meant.items())
    return found


(Path(sys.argv[2]) / "results.json").write_text(json.dumps({
    "token_ids": token_ids(), "encoders": encoder_kinds(), "quantized": quantized_layers(),
    "quantized denoisers": quantized_denoisers()}), encoding="utf-8")
