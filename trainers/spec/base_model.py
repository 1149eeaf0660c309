"""A base model as data: what it is, and where each of its components lies."""
from typing import Literal

from pydantic import Field

from .part import Part, number

PredictionType = Literal["epsilon", "v_prediction", "flow"]
"""What the denoiser answers: the noise, v of Salimans & Ho 2022 (arXiv:2202.00512), or the velocity of rectified flow."""


class ComponentSpec(Part):
    """A component of a model ("unet", "vae", "text_encoder_2", …): a file, whose tensors of it begin with `prefix`, or a
    folder in diffusers' layout."""

    name: str
    path: str
    prefix: str = ""


class AssistantSpec(Part):
    """A LoRA that is on while a base is trained, off in previews and not in the result. `fingerprint` changes when the file
    does; `name` is what people see."""

    path: str
    name: str
    fingerprint: str
    strength: float = number(1.0, ge=-4, le=4, step=0.05)


class BaseModelSpec(Part):
    """The model to start from. `fingerprint` changes when a file of it does; `name` is what people see.

    `path` is the checkpoint, the diffusers folder, or the denoiser of a model in separate files; `components` say where
    everything is that is loaded.
    """

    family: str
    path: str
    name: str
    layout: Literal["single_file", "diffusers", "separate_files"]
    prediction_type: PredictionType
    fingerprint: str
    components: tuple[ComponentSpec, ...] = ()
    configs: str = ""
    """Folder with the component configs of a model in files; empty: the family's own."""
    multiple: int = Field(default=8, ge=1)
    """Pixels that the sides of images must be a multiple of."""
    zero_terminal_snr: bool = False
    """The file says that its noise schedule ends in pure noise."""
    storage: str = ""
    """How the file keeps its weights where that is not in full: "fp8", "scaled fp8", "int8", "mxfp8" or
    "nvfp4"."""
    variant: Literal["", "base", "distilled"] = ""
    """What somebody says of a model whose file may be of either; empty: as its header and its name say."""
    assistant: AssistantSpec | None = None


def check_resolution(base: BaseModelSpec, resolution: int):
    """Raise ValueError for a size that the model's family has no latents for."""
    if resolution % base.multiple:
        nearest = max(1, round(resolution / base.multiple)) * base.multiple
        raise ValueError(f"{base.name!r} takes images whose sides are multiples of {base.multiple} pixels, and resolution "
                         f"is {resolution}; the nearest that fits is {nearest}")
