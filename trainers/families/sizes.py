"""Checkpoints of other sizes than the released ones. A single file does not say all of its sizes (heads and norm groups
leave no trace in shapes), so this pack writes the model's configs into the metadata of small checkpoints, and reads them."""
import getpass
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..artifacts.tensor_header import read_header
from ..errors import UserError
from ..files import read_json, write_json
from .component_configs import CONFIGS, config_file, read_object

METADATA = "finetune.configs"
"""JSON: component → its diffusers or transformers config."""
LARGEST = 100_000
"""Bytes of such metadata that are read; a model's configs take about five thousand."""
COMPONENTS = {name: config_file(name) for name in ("unet", "transformer", "vae", "text_encoder", "text_encoder_2",
                                                   "text_encoder_3", "scheduler")}
WIDTHS = (("unet", "block_out_channels"), ("unet", "layers_per_block"), ("unet", "cross_attention_dim"),
          ("vae", "block_out_channels"), ("vae", "layers_per_block"), ("vae", "base_dim"), ("text_encoder", "hidden_size"),
          ("text_encoder", "d_model"))
"""What tells a model of another size from the released one of its family."""
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TOKENS = ("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
          "cond_stage_model.transformer.embeddings.token_embedding.weight", "cond_stage_model.model.token_embedding.weight",
          "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
          "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight")


def unet_shape(unet: Mapping[str, Any]) -> tuple[int, list[bool]]:
    """What the original names of a UNet's layers depend on: layers per block, and which up blocks have attentions."""
    return unet["layers_per_block"], ["CrossAttn" in block for block in unet["up_block_types"]]


def read_configs(folder: Path) -> dict[str, dict]:
    """The component configs of a diffusers folder, without what libraries note for themselves (`_name_or_path` may be a
    path of this disk, and files get shared), and without those of models that see images, which nothing asks."""
    configs = {name: read_object(folder / name / file) for name, file in COMPONENTS.items()}
    return {name: {key: value for key, value in config.items() if not key.startswith("_") or key == "_class_name"}
            for name, config in configs.items() if config is not None and "vision_config" not in config}


def stated_sizes(folder: Path, family: str) -> dict[str, str]:
    """The metadata for a checkpoint made of a model with these configs: empty where it has its family's released size,
    which every program knows."""
    own, released = read_configs(folder), read_configs(CONFIGS / family)
    if all(own.get(part, {}).get(field) == released.get(part, {}).get(field) for part, field in WIDTHS):
        return {}
    return {METADATA: json.dumps(own, sort_keys=True)}


def unpacked_configs(metadata: Mapping[str, str]) -> str:
    """The folder with the configs that a checkpoint's metadata holds; "" where it holds none that can be read. The folder
    is named after its content and belongs to this user, so it is written once and may be deleted at any time."""
    text = metadata.get(METADATA, "")
    if not isinstance(text, str) or not 0 < len(text) <= LARGEST:
        return ""
    try:
        configs = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(configs, dict) or not all(isinstance(config, dict) for config in configs.values()) \
            or not {"vae", "scheduler"} <= configs.keys() <= COMPONENTS.keys() \
            or not _are_sizes(configs):
        return ""
    user = re.sub(r"\W", "_", _user())
    folder = Path(tempfile.gettempdir()) / f"finetune-configs-{user}" / hashlib.sha256(text.encode()).hexdigest()[:32]
    for name, config in configs.items():
        path = folder / name / COMPONENTS[name]
        if not path.is_file() or read_json(path) != config:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_json(path, config)
    return str(folder)


def _are_sizes(configs: Mapping[str, dict]) -> bool:
    """Whether every part that has a width says it."""
    stated = [(part, field) for part, field in WIDTHS if field in configs.get(part, {})]
    return {part for part, _ in WIDTHS} & configs.keys() == {part for part, _ in stated} \
        and all(_plain(configs[part][field]) for part, field in stated)


def _plain(value: Any) -> bool:
    """Whether it is a size, or a size for each of some levels."""
    values = value if isinstance(value, list) else [value]
    return 0 < len(values) <= 16 and all(type(each) is int and 0 < each <= 1 << 16 for each in values)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no entry for the user, as in some containers
        return str(os.getuid()) if hasattr(os, "getuid") else "user"


def check_sizes(path: Path, name: str, family: str, configs: str):
    """Raise UserError when a single file's shapes are not those of its configs ("": of the family's released size)."""
    tensors, config = read_header(path)[0], read_configs(Path(configs) if configs else CONFIGS / family)
    for what, found, wanted in _measures(tensors, config):
        if found is not None and found != wanted:
            raise UserError(
                f"{name!r} has another size than the released models of its family: {what} is {found}, not {wanted}, "
                "and the file does not say what else differs. ComfyUI's Load Checkpoint does not load it either. Choose "
                "the diffusers folder that it was made of; checkpoints that this pack trains from such a folder can be "
                "used, because they hold their sizes.")


def _measures(tensors: Mapping[str, dict], config: Mapping[str, dict]) -> Iterator[tuple[str, int | None, int]]:
    """(what, number in the file or None, number in the configs). A transformer says all of its sizes itself."""
    token = next((key for key in TOKENS if key in tensors), "")

    def size(key: str, axis: int) -> int | None:
        shape = tensors.get(key, {}).get("shape", ())
        return shape[axis] if len(shape) > axis else None

    if "unet" in config:
        unet = config["unet"]
        levels, layers = len(unet["block_out_channels"]), unet["layers_per_block"]
        layers = [layers] * levels if isinstance(layers, int) else layers
        blocks = {match[1] for key in tensors if (match := re.match(re.escape(UNET) + r"input_blocks\.(\d+)\.", key))}
        context = next((key for key in tensors if key.startswith(UNET) and key.endswith(".attn2.to_k.weight")), "")
        yield "the width of its UNet", size(UNET + "input_blocks.0.0.weight", 0), unet["block_out_channels"][0]
        yield "the number of input blocks of its UNet", len(blocks) or None, sum(layers) + levels
        yield "the width of the text that its UNet sees", size(context, 1), unet["cross_attention_dim"]
    if "block_out_channels" in config["vae"]:
        for prefix in (VAE, "vae."):
            yield "the width of its VAE", size(prefix + "encoder.conv_in.weight", 0), config["vae"]["block_out_channels"][0]
    if "hidden_size" in config.get("text_encoder", {}):  # T5 says its width otherwise
        yield "the width of its text encoder", size(token, 1), config["text_encoder"]["hidden_size"]
