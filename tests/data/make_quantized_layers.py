"""Makes quantized_layers.safetensors: one layer in each of ComfyUI's quantized layouts, and what ComfyUI reads of it.

    python tests/data/make_quantized_layers.py COMFYUI      (the folder of one with comfy-kitchen; made with 0.33.0)

Keys are `<variant>/<key in a checkpoint>`, and `<variant>/effective` for ROWS of the weight as float32.
"""
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import comfy.cli_args

comfy.cli_args.args.cpu = True
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

ROWS = [0, 1, 15]
TILES = [0, 33, 64, 127, 128, 143]
VARIANTS = {
    "fp8": ("float8_e4m3fn", (16, 16), {}), "fp8 e5m2": ("float8_e5m2", (16, 16), {}),
    "int8": ("int8_tensorwise", (16, 16), {}), "int8 rows": ("int8_tensorwise", (16, 16), {"per_channel": True}),
    "int8 rotated": ("int8_tensorwise", (16, 512), {"per_channel": True, "convrot": True}),
    "int8 rotated, small groups": ("int8_tensorwise", (16, 48), {
        "per_channel": True, "convrot": True, "convrot_groupsize": 16}),
    "mxfp8": ("mxfp8", (32, 160), {}), "nvfp4": ("nvfp4", (144, 80), {}),
}

torch.manual_seed(0)
operations = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32)
tensors = {}
for name, (layout, shape, options) in VARIANTS.items():
    weight = torch.randn(shape) * torch.rand(shape[0], 1) * (1 + 20 * (torch.rand(shape) > 0.97))
    if "scale" not in options and layout.startswith("float8"):
        options = {"scale": "recalculate"}
    layer = operations.Linear(shape[1], shape[0], bias=False, device="cpu", dtype=torch.float32)
    quantized = QuantizedTensor.from_float(weight, QUANT_ALGOS[layout]["comfy_tensor_layout"], **options)
    layer.weight = torch.nn.Parameter(quantized, requires_grad=False)
    layer.quant_format = layout
    stored = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
    read = operations.Linear(shape[1], shape[0], bias=False, device="cpu", dtype=torch.float32)
    read.load_state_dict(dict(stored))
    effective = read.weight.dequantize()
    tensors |= {f"{name}/layer.{key}": tensor for key, tensor in stored.items()}
    tensors[f"{name}/effective"] = effective[TILES if shape[0] > 128 else ROWS].clone()
save_file(tensors, Path(__file__).with_name("quantized_layers.safetensors"))
