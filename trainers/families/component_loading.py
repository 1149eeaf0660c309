"""Loads the parts of latent-diffusion models from a single file or a diffusers folder, offline, by diffusers.

diffusers and transformers are imported where they are needed: the nodes read a family's title and presets inside
ComfyUI's process, which should neither wait for these libraries nor carry them.
"""
from contextlib import contextmanager
from pathlib import Path
from typing import Mapping

import torch
from torch import nn

from ..artifacts.ldm_layout import transformers_clip_tensors
from ..artifacts.tensor_files import require_finite
from ..artifacts.weights import Weights
from ..errors import UserError, reason_of
from ..words import whole_word
from .component_configs import CONFIGS, component_config, config_folder
from .protocol import TextEncoders
from .recognition import UNET
from .sizes import check_sizes
from .weight_files import weight_files

TOKENIZER = CONFIGS / "clip_tokenizer"
"""CLIP's vocabulary is the same for every encoder of these families; only the padding token differs."""
SINGLE_FILE_PREFIXES = {"unet": UNET, "vae": "first_stage_model."}
LONGEST_VOCABULARY = 50_000_000
"""Bytes of a file of a tokenizer; CLIP's has one million."""


@contextmanager
def explained(part: str, base):
    """Turn whatever a loader throws at a damaged or unusual file into a sentence."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as problem:
        raise UserError(
            f"The {part} of {base.name!r} cannot be loaded. The file may be incomplete or of another model family "
            f"than {base.family}: {reason_of(problem)}"
        ) from problem


def component_files(base, component: str) -> list[Path]:
    """The weight files that a component of a diffusers folder is loaded from."""
    return weight_files(Path(base.path), component, base.name).files


def load_model(model_class, base, component: str, dtype: torch.dtype) -> nn.Module:
    """A diffusers model (UNet or VAE), frozen, in evaluation mode, on the CPU."""
    with explained(component, base):
        if base.layout == "diffusers":
            model = model_class.from_pretrained(
                base.path, subfolder=component, torch_dtype=dtype, local_files_only=True, use_safetensors=True,
                variant=weight_files(Path(base.path), component, base.name).variant,
            )
            for name, tensor in model.state_dict().items():
                require_finite(tensor, name, f"{base.name}/{component}")
        else:
            check_sizes(Path(base.path), base.name, base.family, base.configs)
            model = model_class.from_single_file(
                read_tensors(base.path, SINGLE_FILE_PREFIXES[component], dtype), config=str(config_folder(base)),
                subfolder=component, torch_dtype=dtype, local_files_only=True,
            )
    return model.requires_grad_(False).eval()


def read_tensors(path: str, prefix: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The tensors of one part of a single file, scales worked in, converted to `dtype` while they are read, so that
    the model can take them over. Raises UserError where a value is not finite."""
    weights, tensors = Weights.of_file(Path(path)), {}
    for name, entry in weights.entries.items():
        if name.startswith(prefix):
            tensor = require_finite(entry.tensor(), name, weights.title)
            tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors


def load_vae(base) -> nn.Module:
    from diffusers import AutoencoderKL

    return load_model(AutoencoderKL, base, "vae", torch.float32)


def load_unet(base, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return load_model(UNet2DConditionModel, base, "unet", dtype)


def load_text_encoder(base, component: str, dtype: torch.dtype, prefix: str, projection: bool = False) -> nn.Module:
    """A CLIP text encoder, frozen, in evaluation mode, on the CPU.

    `prefix` is where a single file keeps it: "….transformer." in transformers' layout, "….model." in OpenCLIP's.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    model_class = CLIPTextModelWithProjection if projection else CLIPTextModel
    with explained(component.replace("_", " "), base):
        model = model_class(CLIPTextConfig.from_dict(component_config(base, component)))
        if base.layout == "diffusers":
            weights = {name: tensor for file in component_files(base, component)
                       for name, tensor in read_tensors(str(file), "").items()}
        else:
            weights = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(base.path, prefix).items()}
            if prefix.endswith(".model."):
                weights = transformers_clip_tensors(weights, model.config.num_hidden_layers)
        _fill_text_encoder(model, weights, base.name)
    return model.to(dtype).requires_grad_(False).eval()


def _fill_text_encoder(model: nn.Module, weights: Mapping[str, torch.Tensor], title: str):
    wanted = model.state_dict()
    # Old files lack the text_model. prefix, and so do the modules of CLIPTextModel since transformers 5.6.
    bare = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    found = {name: bare[name.removeprefix("text_model.")] for name in wanted if name.removeprefix("text_model.") in bare}
    missing = [name for name in wanted if name not in found and not name.endswith("position_ids")]
    if missing:
        raise UserError(f"{title!r} holds no complete text encoder: {missing[0]} and {len(missing) - 1} more "
                        "weights are missing. Use a full checkpoint, not one with the denoiser alone.")
    model.load_state_dict(found, strict=False)


def load_tokenizer(base, component: str, pad_token: str):
    """A CLIPTokenizer: the folder's own, or CLIP's vocabulary with the padding of this encoder."""
    from transformers import CLIPTokenizer

    folder = Path(base.path) / component
    if base.layout == "diffusers" and (folder / "vocab.json").exists():
        large = [file.name for file in folder.iterdir() if file.stat().st_size > LONGEST_VOCABULARY]
        if large:
            raise UserError(f"{base.name!r} is damaged: {component}/{large[0]} is no file of a tokenizer. Download the "
                            "model again.")
        with explained("tokenizer", base):
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return clip_tokenizer(pad_token)


def clip_tokenizer(pad_token: str = "<|endoftext|>"):
    """A CLIPTokenizer, without any base model."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(TOKENIZER, pad_token=pad_token, local_files_only=True)


def load_alphas_cumprod(base) -> torch.Tensor:
    from diffusers import DDPMScheduler

    with explained("noise schedule", base):
        return DDPMScheduler.from_config(component_config(base, "scheduler")).alphas_cumprod


def load_sampler(base, zero_terminal_snr: bool = False):
    """DPM++ 2M (Lu et al. 2022, arXiv:2211.01095) for previews. With zero terminal SNR it must start at the last timestep
    (Lin et al. 2023, arXiv:2305.08891, section 3.3)."""
    from diffusers import DPMSolverMultistepScheduler

    rescaled = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing") if zero_terminal_snr else {}
    with explained("noise schedule", base):
        return DPMSolverMultistepScheduler.from_config(
            component_config(base, "scheduler"), algorithm_type="dpmsolver++", solver_order=2,
            prediction_type=base.objective, **rescaled,
        )


def tokenize(text: TextEncoders, encoder: str, captions) -> torch.Tensor:
    """Token ids, int64 [batch, 77], cut at the encoder's length, on the encoder's device."""
    tokenizer, module = text.tokenizers[encoder], text.encoders[encoder]
    for word, replacement in text.aliases.items():
        captions = [whole_word(word).sub(replacement, caption) for caption in captions]
    batch = tokenizer(list(captions), padding="max_length", max_length=module.config.max_position_embeddings,
                      truncation=True, return_tensors="pt")
    return batch.input_ids.to(next(module.parameters()).device)
