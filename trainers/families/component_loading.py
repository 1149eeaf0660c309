"""Loads denoisers, VAEs and noise schedules from wherever a model's parts lie, offline, by diffusers.

diffusers and transformers are imported where they are needed: the nodes read a family's title and presets inside
ComfyUI's process, which should neither wait for these libraries nor carry them.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from ..artifacts.tensor_files import require_finite
from ..errors import UserError, reason_of
from ..memory.placement import Place, assign, settle
from ..spec import BaseModelSpec
from .component_configs import component_config, config_folder
from .model_parts import ModelParts
from .sizes import UNET, VAE, check_sizes
from .weight_files import weight_files

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

Model = TypeVar("Model", bound=nn.Module)
Scheduler = TypeVar("Scheduler")
SINGLE_FILE_PREFIXES = {"unet": UNET, "vae": VAE}
"""By which diffusers knows a component of the original layout."""


@contextmanager
def explained(part: str, base: BaseModelSpec) -> Iterator[None]:
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


def load_model(model_class: type[Model], base: BaseModelSpec, component: str, dtype: torch.dtype) -> Model:
    """A diffusers model (a denoiser or a VAE), frozen, in evaluation mode, on the CPU."""
    part = ModelParts.of(base)[component]
    loader: Any = model_class  # diffusers has no one type for all that can be loaded both ways
    with explained(component, base):
        if part.is_folder:
            model = loader.from_pretrained(
                part.path.parent, subfolder=part.path.name, torch_dtype=dtype, local_files_only=True, use_safetensors=True,
                variant=weight_files(part.path.parent, part.path.name, base.name).variant,
            )
            for name, tensor in model.state_dict().items():
                require_finite(tensor, name, f"{base.name}/{component}")
        else:
            if base.layout == "single_file":
                check_sizes(part.path, base.name, base.family, base.configs)
            model = loader.from_single_file(
                {SINGLE_FILE_PREFIXES.get(component, "") + name: tensor for name, tensor in part.tensors(dtype).items()},
                config=str(config_folder(base)), subfolder=component, torch_dtype=dtype, local_files_only=True,
            )
    return model.requires_grad_(False).eval()


def load_into(model: Model, base: BaseModelSpec, component: str, dtype: torch.dtype, place: Place = assign) -> Model:
    """A module of the family's own, which has the names of its file, frozen, in evaluation mode, on the CPU."""
    with explained(component.replace("_", " "), base):
        model.load_state_dict(ModelParts.of(base)[component].tensors(dtype))
    model = model.to(dtype).requires_grad_(False).eval()
    settle(model, place)
    return model


def load_vae(base: BaseModelSpec) -> "AutoencoderKL":
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return load_model(AutoencoderKL, base, "vae", torch.float32)


def load_unet(base: BaseModelSpec, dtype: torch.dtype) -> "UNet2DConditionModel":
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return load_model(UNet2DConditionModel, base, "unet", dtype)


def load_alphas_cumprod(base: BaseModelSpec) -> torch.Tensor:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return _scheduler(DDPMScheduler, base).alphas_cumprod


def load_sampler(base: BaseModelSpec, zero_terminal_snr: bool = False) -> "DPMSolverMultistepScheduler":
    """DPM++ 2M (Lu et al. 2022, arXiv:2211.01095) for previews. With zero terminal SNR it must start at the last timestep
    (Lin et al. 2023, arXiv:2305.08891, section 3.3)."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    rescaled = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing") if zero_terminal_snr else {}
    return _scheduler(DPMSolverMultistepScheduler, base, algorithm_type="dpmsolver++", solver_order=2,
                      prediction_type=base.prediction_type, **rescaled)


def _scheduler(kind: type[Scheduler], base: BaseModelSpec, **changes: Any) -> Scheduler:
    """A scheduler of diffusers with the base's config."""
    maker: Any = kind  # to diffusers' types it may make a tuple
    with explained("noise schedule", base):
        return maker.from_config(component_config(base, "scheduler"), **changes)
