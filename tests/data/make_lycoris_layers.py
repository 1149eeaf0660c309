"""Makes lycoris_layers.safetensors: one adapted layer by each of LyCORIS' methods, and its effective weight.

    python tests/data/make_lycoris_layers.py       (needs lycoris-lora; made with 4.1.3)

Keys are `<variant>/<key in a LoRA file>`, `<variant>/effective` [64, 64], and `base` [64, 64].
"""
from pathlib import Path

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file

LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
VARIANTS = {
    "LoHa": (LohaModule, {}),
    "LoKr": (LokrModule, {"factor": 8}), "LoKr full": (LokrModule, {"factor": 8, "full_matrix": True}),
    "DoRA output": (LoConModule, {"weight_decompose": True, "wd_on_out": True}),
    "DoRA input": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
}

torch.manual_seed(0)
base = torch.nn.Linear(64, 64, bias=False)
tensors = {"base": base.weight.data.clone()}
for name, (module_class, options) in VARIANTS.items():
    module = module_class(LAYER, base, 1.0, lora_dim=2, alpha=1.0, **options)
    for parameter_name, parameter in module.named_parameters():
        if "dora" in parameter_name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif parameter.ndim:
            parameter.data = torch.randn_like(parameter) * 0.2
    # What training computes. LyCORIS' own get_merged_weight scales LoHa and LoKr by alpha / rank twice.
    module.apply_to()
    effective = base(torch.eye(64)).T.detach()
    module.restore()
    content = {key: tensor for key, tensor in module.state_dict().items() if not key.startswith("org_")}
    tensors |= {f"{name}/{LAYER}.{key}": tensor.detach().clone().contiguous() for key, tensor in content.items()}
    tensors[f"{name}/effective"] = effective.clone().contiguous()
save_file(tensors, Path(__file__).with_name("lycoris_layers.safetensors"))
