"""How it is trained: optimizer, schedule, objective, memory, and what is shown and kept on the way."""
from math import pi
from typing import Literal

from pydantic import Field, field_validator, model_validator

from .part import MAXIMUM_SEED, Part, number

MAXIMUM_MODE_SCALE = 2 / (pi - 2)
"""Up to here the map of "mode" (Esser et al. 2024, eq. 20) stays monotonic."""


TEXT_LENGTHS = 77, 154, 256, 512
"""Those of CLIP, of two of its chunks, and of Flux.1 [schnell] and [dev]."""


class OptimizerSpec(Part):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with the defaults of the diffusers training examples, and the
    alternatives that published recipes use. Prodigy finds its rate itself: learning rates are factors there, usually 1.
    """

    # The betas of lion are momenta for the direction and for what is remembered; sgd reads the first as its momentum,
    # adafactor none. lion, adafactor and sgd have no epsilon to set.
    name: Literal["adamw", "adamw_8bit", "lion", "prodigy", "adafactor", "sgd"] = "adamw"
    learning_rate: float = number(1e-4, ge=1e-9, le=10, step=1e-6)
    weight_decay: float = number(1e-2, ge=0, le=1, step=0.001)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = number(1e-8, ge=1e-10, le=1e-2, step=1e-9)
    maximum_gradient_norm: float = number(1.0, ge=0, le=1000, step=0.1)
    """0 switches clipping off."""

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both betas must be at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _rate_is_no_factor(self):
        if self.learning_rate > 0.1 and self.name not in ("prodigy", "sgd"):
            raise ValueError(f"the learning rate {self.learning_rate:g} is too high for {self.name}; use 0.1 or less "
                             "(about 1 is for prodigy only)")
        return self


class ScheduleSpec(Part):
    """`decay_fraction` is the fraction of the steps in which warmup_stable_decay comes down at the end."""

    name: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "warmup_stable_decay",
                  "one_cycle"] = "constant"
    warmup_steps: int = Field(default=0, ge=0, le=1_000_000)
    cycles: int = Field(default=1, ge=1, le=100)
    decay_fraction: float = number(0.2, ge=0, le=1, step=0.05)

    @model_validator(mode="after")
    def _one_cycle_rises_itself(self):
        if self.name == "one_cycle" and self.warmup_steps:
            raise ValueError("one_cycle begins with a warm-up of its own; set warmup_steps to 0")
        return self


class ObjectiveSpec(Part):
    """How noise is added, and how an error counts.

    `min_snr_gamma` 0 switches the weighting off (Hang et al. 2023, arXiv:2303.09556; 5 in the paper). `debiased` weighs
    by 1 / √SNR (Yu et al. 2023, arXiv:2310.08442). `noise_offset` adds one random value per channel to the noise, so that
    overall brightness can be learned; about 0.05 to 0.1 (kohya's documentation). `multires_*` add noise of lower
    resolutions (kohya: 6 to 10 iterations, discount 0.3). `input_perturbation` adds noise that the target does not know
    (Ning et al. 2023, arXiv:2301.11706; 0.1 in the paper). `flow_shift` moves flow timesteps towards noise (Esser et al.
    2024, eq. 23); 0 leaves it to the family, whose shift may depend on the resolution. `flow_weighting` weighs flow models
    by their sigma. Timesteps are fractions of the noise schedule, 0 clean, 1 noise; a density is squeezed into their range.
    """

    min_snr_gamma: float = number(0.0, ge=0, le=100, step=0.5)
    debiased: bool = False
    noise_offset: float = number(0.0, ge=0, le=1, step=0.01)
    multires_iterations: int = Field(default=0, ge=0, le=16)
    multires_discount: float = number(0.3, ge=0, le=1, step=0.05)
    input_perturbation: float = number(0.0, ge=0, le=1, step=0.01)
    image_noise: float = number(0.0, ge=0, le=1, step=0.01)
    """Standard deviation of noise on the clean latents, in their own unit: an augmentation."""
    loss: Literal["l2", "l1", "huber"] = "l2"
    huber_c: float = number(0.1, ge=0.001, le=10, step=0.01)
    """Where the Huber loss turns from square to straight; 0.1 (kohya)."""
    huber_schedule: Literal["snr", "exponential", "constant"] = "snr"
    zero_terminal_snr: bool = False
    """Rescale the noise schedule so that its end is pure noise (Lin et al. 2023, arXiv:2305.08891). Needs v-prediction."""
    minimum_timestep: float = number(0.0, ge=0, le=0.999, step=0.01)
    maximum_timestep: float = number(1.0, ge=0.001, le=1, step=0.01)
    distribution: Literal["auto", "uniform", "logit_normal", "mode", "cosine", "sigmoid"] = "auto"
    """Density of timesteps (Esser et al. 2024, arXiv:2403.03206, eqs. 19 to 21); auto: uniform for epsilon and v,
    logit_normal for flow. sigmoid is what kohya's trainers and ai-toolkit call logit_normal with the mean 0."""
    distribution_mean: float = number(0.0, ge=-5, le=5, step=0.1)
    """Of logit_normal, before the sigmoid; above 0 means more noise."""
    distribution_spread: float = number(1.0, ge=0.05, le=5, step=0.05)
    """Standard deviation of logit_normal and sigmoid, before the sigmoid (kohya's sigmoid_scale); scale of mode (1.29 in
    the paper)."""
    flow_shift: float = number(0.0, ge=0, le=100, step=0.1)
    masked: bool = False
    """Let the error count where the images' masks are white; needs masks in the dataset."""
    unmasked_weight: float = number(0.1, ge=0, le=1, step=0.01)
    """How much the error counts where masks are black."""
    flow_shift_mode: Literal["auto", "constant", "resolution", "dynamic"] = "auto"
    """What the shift follows. auto: `flow_shift`, or the family's own. constant: the same, but the family's own is that of
    its own resolution at all sizes. resolution: that times √(m / n) for images of m pixels, n at the family's own resolution
    (Esser et al. 2024, eq. 23). dynamic: e^mu with mu on a line over the tokens, FLUX.1's or the family's."""
    flow_weighting: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    """By sigma, as diffusers' `compute_loss_weighting_for_sd3` does. sigma_sqrt: σ⁻². cosmap: Esser et al. 2024, eq. 21."""

    @model_validator(mode="after")
    def _ranges_fit(self):
        if self.minimum_timestep >= self.maximum_timestep:
            raise ValueError(f"minimum_timestep {self.minimum_timestep:g} must be below maximum_timestep "
                             f"{self.maximum_timestep:g}")
        if self.min_snr_gamma and self.debiased:
            raise ValueError("min_snr_gamma and debiased_estimation are two weightings of the same thing; use one of them: "
                             "set min_snr_gamma to 0, or switch debiased_estimation off")
        if self.distribution == "mode" and self.distribution_spread > MAXIMUM_MODE_SCALE:
            raise ValueError(f"timestep_distribution_spread {self.distribution_spread:g} is too large for the distribution "
                             f"mode, which folds over above {MAXIMUM_MODE_SCALE:.2f}; 1.29 is usual")
        return self


class TrainingSpec(Part):
    steps: int = Field(default=1500, ge=1, le=1_000_000)
    batch_size: int = Field(default=1, ge=1, le=1024)
    """Images in one forward pass, over all processes together."""
    accumulation: int = Field(default=1, ge=1, le=1024)
    resolution: int = Field(default=512, ge=64, le=4096, json_schema_extra={"step": 8})
    buckets: bool = True
    caption_dropout: float = number(0.0, ge=0, le=1, step=0.05)
    """Fraction of captions replaced by the empty caption, which keeps classifier-free guidance working."""
    clip_skip: int = Field(default=0, ge=0, le=12)
    """Which of the text encoder's layers is read, counted from the end; 0: the family's own."""
    ema_decay: float = number(0.0, ge=0, le=0.99999, step=0.0001)
    """Keep a running mean of the weights with this decay (0.999 and more) and save that; 0: off."""
    seed: int = Field(default=0, ge=0, le=MAXIMUM_SEED)
    guidance: float = number(1.0, ge=0, le=30, step=0.1)
    """What models with distilled guidance are told while they train and are validated; 1, in kohya's and diffusers' scripts,
    lets them learn images as they are. Previews have their own."""
    text_length: int = Field(default=0, json_schema_extra={"options": ["auto", *map(str, TEXT_LENGTHS)]})
    """Tokens of T5, one of TEXT_LENGTHS; 0 (auto): as ComfyUI encodes."""

    @field_validator("text_length", mode="before")
    @classmethod
    def _text_length_is_offered(cls, length: int | str) -> int:
        if str(length) not in ("0", "auto", *map(str, TEXT_LENGTHS)):
            raise ValueError(f"text_length is {length!r}; choose auto or one of {', '.join(map(str, TEXT_LENGTHS))}")
        return 0 if length == "auto" else int(length)


class MemorySpec(Part):
    """Precision and what is traded for memory."""

    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    frozen_precision: Literal["same", "fp8", "int8"] = "same"
    """How the frozen denoiser's weights are stored; they are computed with in `precision`."""
    compile: bool = False
    caption_cache: Literal["auto", "always"] = "auto"
    """Encode captions beforehand where they stay as they are, or insist that all of them can be."""
    cache_days: int = Field(default=30, ge=1, le=3650)
    """Encoded images and captions that no run has used for so many days are removed."""
    swapped_blocks: int = Field(default=0, ge=0, le=1000)
    """Blocks of the frozen denoiser that come to the device only when they are needed; all of them where it has fewer."""
    offload_activations: bool = False
    """What the backward pass needs waits in main memory."""
    text_precision: Literal["same", "fp8", "int8"] = "same"
    """How the weights of text encoders are stored whose captions are encoded beforehand."""


class PreviewSpec(Part):
    """Images generated during training by the family's sampler. `every` 0 switches them off."""

    prompts: tuple[str, ...] = ()
    negative: str = ""
    every: int = Field(default=0, ge=0, le=1_000_000)
    sampler_steps: int = Field(default=0, ge=0, le=200)
    guidance: float = number(0.0, ge=0, le=30, step=0.5)
    """0: what is usual for the base, of the steps too."""
    seed: int = Field(default=0, ge=0, le=MAXIMUM_SEED)
    images: int = Field(default=1, ge=1, le=16)
    """Images of every prompt, each from noise of its own."""
    from_ema: bool = True
    """With EMA: generate with the averaged weights that will be saved."""


class CheckpointSpec(Part):
    """`every` 0 and `minutes` 0 save only at the end and on cancel. The newest `keep` checkpoints stay on disk."""

    every: int = Field(default=250, ge=0, le=1_000_000)
    minutes: float = number(0.0, ge=0, le=10_000, step=1)
    keep: int = Field(default=2, ge=1, le=1000)


class ValidationSpec(Part):
    """The loss on images that are not trained, at noise and timesteps that never change. `fraction` 0 switches it off."""

    fraction: float = number(0.0, ge=0, le=0.5, step=0.05)
    every: int = Field(default=50, ge=1, le=1_000_000)
    patience: int = Field(default=0, ge=0, le=1000)
    """Stop early when this many validations in a row brought no new best; 0: never."""
    tensorboard: bool = False
