"""The configs of a model's components, checked: what lies in a folder was written by anybody.

Every field that the pack uses itself has a known type and a size that a real model may have, so that a config can make no
reader stumble and no library reserve memory for a model that does not exist.
"""
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from ..spec import BaseModelSpec

CONFIGS = Path(__file__).parent / "configs"
LONGEST = 1_000_000
"""Bytes of a config; real ones have some 2000."""


def config_folder(base: BaseModelSpec) -> Path:
    """The folder whose sub-folders hold the component configs of a base model."""
    if base.layout == "diffusers":
        return Path(base.path)
    return Path(base.configs) if base.configs else CONFIGS / base.family


def component_config(base: BaseModelSpec, component: str) -> dict:
    """The diffusers or transformers config of a component ("unet", "vae", "text_encoder", "scheduler", …)."""
    return read_config(config_folder(base), component, base.name)


def config_file(component: str) -> str:
    return "scheduler_config.json" if component == "scheduler" else "config.json"


def read_config(folder: Path, component: str, title: str) -> dict:
    """The config of a component in a model's folder, with every field of `FIELDS` as it says, or of
    `CLASS_FIELDS` where its class is there. UserError names the field."""
    name = f"{component}/{config_file(component)}"
    content = read_object(folder / component / config_file(component))
    if content is None:
        raise UserError(f"{title!r} lacks {name}, or it is damaged. Download the model again.")
    kind = content.get("_class_name")
    rules = CLASS_FIELDS.get(kind) if isinstance(kind, str) else None
    for field, (required, is_right, words) in (rules or FIELDS[re.sub(r"_\d$", "", component)]).items():
        value = content.get(field)
        if value is None and not required:
            content.pop(field, None)
        elif not is_right(value):
            raise UserError(f"{title!r} is damaged, or of a kind that is not read: {field} in {name} must be {words}. "
                            "Download the model again, or choose another one.")
    return content


def read_object(path: Path, longest: int = LONGEST) -> dict | None:
    """The JSON object in a file; None when it is not there, damaged, longer than so many bytes, or something else."""
    content = read_json(path, longest)
    return content if isinstance(content, dict) else None


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high


def _list(is_right: Callable[[Any], bool], longest: int = 8) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and 1 <= len(value) <= longest and all(map(is_right, value))


def _either(*rules: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(rule(value) for rule in rules)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100 and value.isprintable()


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


_WIDTH, _LAYERS = _whole(1, 8192), _whole(1, 16)
Rules = Mapping[str, tuple[bool, Callable[[Any], bool], str]]
FIELDS: Mapping[str, Rules] = {
    "unet": {
        "in_channels": (False, _whole(1, 64), "a number of channels"),
        "out_channels": (False, _whole(1, 64), "a number of channels"),
        "block_out_channels": (True, _list(_WIDTH), "a list of up to 8 widths"),
        "down_block_types": (True, _list(_text), "a list of up to 8 names"),
        "up_block_types": (True, _list(_text), "a list of up to 8 names"),
        "layers_per_block": (True, _LAYERS, "a number of up to 16 layers"),
        "cross_attention_dim": (True, _WIDTH, "a width of up to 8192"),
        "attention_head_dim": (False, _either(_WIDTH, _list(_WIDTH)), "a number or a list of numbers"),
        "norm_num_groups": (False, _WIDTH, "a number of groups"),
        "transformer_layers_per_block": (False, _either(_LAYERS, _list(_LAYERS)), "a number or a list of numbers up to 16"),
        "use_linear_projection": (False, _truth, "true or false"),
        "addition_embed_type": (False, _text, "a name"),
        "addition_time_embed_dim": (False, _WIDTH, "a width of up to 8192"),
        "projection_class_embeddings_input_dim": (False, _WIDTH, "a width of up to 8192"),
    },
    "vae": {
        "latent_channels": (True, _whole(1, 64), "a number of channels"),
        "block_out_channels": (True, _list(_WIDTH), "a list of up to 8 widths"),
        "layers_per_block": (False, _LAYERS, "a number of up to 16 layers"),
        "norm_num_groups": (False, _WIDTH, "a number of groups"),
        "scaling_factor": (False, _number(1e-4, 1e4), "a number above 0"),
        "shift_factor": (False, _number(-1e4, 1e4), "a number"),
    },
    "text_encoder": {
        "hidden_size": (False, _WIDTH, "a width of up to 8192"),
        "intermediate_size": (False, _whole(1, 65536), "a width of up to 65536"),
        "num_hidden_layers": (False, _whole(1, 128), "a number of up to 128 layers"),
        "num_attention_heads": (False, _whole(1, 256), "a number of up to 256 heads"),
        "projection_dim": (False, _WIDTH, "a width of up to 8192"),
        "max_position_embeddings": (False, _whole(1, 8192), "a length of up to 8192"),
        "vocab_size": (False, _whole(1, 1_000_000), "a number of up to 1000000 tokens"),
        "hidden_act": (False, _text, "a name"),
        "d_model": (False, _WIDTH, "a width of up to 8192"),  # from here on of T5
        "d_kv": (False, _WIDTH, "a width of up to 8192"),
        "d_ff": (False, _whole(1, 65536), "a width of up to 65536"),
        "num_layers": (False, _whole(1, 128), "a number of up to 128 layers"),
        "num_heads": (False, _whole(1, 256), "a number of up to 256 heads"),
        "relative_attention_num_buckets": (False, _whole(1, 1024), "a number of up to 1024 buckets"),
        "feed_forward_proj": (False, _text, "a name"),
    },
    "scheduler": {
        "_class_name": (False, _text, "a name"),
        "prediction_type": (False, _text, "a name"),
        "timestep_type": (False, _text, "a name"),
        "num_train_timesteps": (False, _whole(2, 100_000), "a number of up to 100000 steps"),
        "beta_start": (False, _number(0, 1), "a number from 0 to 1"),
        "beta_end": (False, _number(0, 1), "a number from 0 to 1"),
        "beta_schedule": (False, _text, "a name"),
        "rescale_betas_zero_snr": (False, _truth, "true or false"),
    },
}
"""Component → field → (whether it must be there, what it must be, the same in words)."""
_KL: Rules = FIELDS["vae"]
_WAN: Rules = {
    "base_dim": (True, _WIDTH, "a width of up to 8192"),
    "z_dim": (True, _whole(1, 64), "a number of channels"),
    "dim_mult": (True, _list(_whole(1, 16)), "a list of up to 8 factors"),
    "num_res_blocks": (True, _LAYERS, "a number of up to 16 layers"),
    "attn_scales": (False, lambda value: value == [], "empty"),
    "temperal_downsample": (True, _list(_truth), "a list of up to 8 times true or false"),
    "latents_mean": (True, _list(_number(-1e4, 1e4), 64), "a list of up to 64 numbers"),
    "latents_std": (True, _list(_number(1e-4, 1e4), 64), "a list of up to 64 numbers above 0"),
}
CLASS_FIELDS: Mapping[str, Rules] = {
    "AutoencoderKLFlux2": {
        **_KL,
        "decoder_block_out_channels": (False, _list(_WIDTH), "a list of up to 8 widths"),
        "batch_norm_eps": (False, _number(0, 1), "a number from 0 to 1"),
        "patch_size": (False, lambda value: value == [2, 2], "[2, 2]"),
    },
    "AutoencoderKLQwenImage": {**_WAN, "input_channels": (False, _whole(3, 3), "3")},
    "AutoencoderKLQwenImage21": {
        **_WAN,
        "decoder_base_dim": (False, _WIDTH, "a width of up to 8192"),
        "is_residual": (False, lambda value: value is True, "true"),
        "in_channels": (False, _whole(4, 4), "4"),
        "out_channels": (False, _whole(4, 4), "4"),
        "patch_size": (False, lambda value: value is None, "null"),
        "scale_factor_spatial": (False, _whole(1, 64), "a factor of up to 64"),
    },
}
"""The same of autoencoders of other kinds than AutoencoderKL, by diffusers' class."""
