"""What is right for a base without anybody looking it up: the size of its images, and starting values for a LoRA."""
from dataclasses import replace

from . import get
from .component_configs import component_config
from .protocol import LoraPreset

SMALL = 160
"""UNets whose first width is below this are no released model but a small one, such as the demo base (64)."""
SMALL_PRESET = LoraPreset(
    learning_rate=2e-4, rank=8, alpha=8, steps=150, resolution=64, min_snr_gamma=0.0, text_encoder_learning_rate=0.0,
    batch_size=16, targets="all with convolutions", preview_every=50,
    source="the mean rate of the cosine schedule in benchmarks/learning.py, at which subjects keep their shapes",
)


def native_resolution(base) -> int:
    """Pixels of the side of the square images that a base was made for."""
    family, config = get(base.family), component_config(base, "unet")
    if base.family == "sd2" and base.objective == "epsilon":
        return 512  # both sizes of SD 2.x have the same shapes; only the one for 768 predicts v
    side = config.get("sample_size")
    return side * family.latent_format(base).downscale if isinstance(side, int) else family.lora_preset.resolution


def recommended(base, images: int) -> LoraPreset:
    """Starting values for a LoRA of this base and this many images."""
    small = component_config(base, "unet")["block_out_channels"][0] < SMALL
    preset = SMALL_PRESET if small else get(base.family).lora_preset
    return replace(preset, resolution=native_resolution(base), batch_size=max(1, min(preset.batch_size, images)))
