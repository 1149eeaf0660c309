"""What is right for a base without anybody looking it up: the size of its images, and starting values for every method."""
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..spec import BaseModelSpec
from . import get
from .protocol import LoraPreset

FITTING = 0.75, 1.5
"""A resolution is right from so many times the native one to so many."""


@dataclass(frozen=True)
class Preset:
    """Starting values that published recipes agree on, for a method on a base."""

    steps: int
    learning_rate: float
    source: str
    batch_size: int = 1
    resolution: int = 0
    """Pixels; 0 in the tables: the base's own."""
    min_snr_gamma: float = 0.0
    optimizer: str = ""
    """Used where nobody has chosen one; empty: the usual."""
    method: Mapping[str, float | str] = field(default_factory=dict)
    """Fields of the method's spec."""

    @property
    def widgets(self) -> dict[str, float | str]:
        """The values by the names that all Train nodes give them."""
        return {"steps": self.steps, "learning_rate": self.learning_rate, **self.method, "batch_size": self.batch_size,
                "resolution": self.resolution}


PRESETS = {
    "full": Preset(
        steps=400, learning_rate=5e-6, method={"text_encoder_learning_rate": 0.0},
        source="diffusers' DreamBooth README: 5e-6, 400 steps, 800 with class images"),
    "textual_inversion": Preset(
        steps=1500, learning_rate=5e-4,
        source="diffusers' README and examples: 5e-4, 500 (SDXL) to 3000 steps (SD)"),
    "pivotal": Preset(
        steps=1000, learning_rate=1e-4, min_snr_gamma=5.0,
        method={"embedding_learning_rate": 5e-4, "rank": 8, "alpha": 8.0, "targets": "attention",
                "text_encoder_learning_rate": 0.0},
        source="cloneofsimo's lora: 1e-4, and 5e-4 for the word; diffusers' advanced examples: rank 8, 1000 steps"),
    "hypernetwork": Preset(
        steps=2000, learning_rate=1e-4,
        source="A1111's recipes have 1e-5 for 10 000 steps and more; here ten times that rate in a fifth of the steps"),
}
"""By kind of method. LoRA's stand with the families."""
FLOW_PRESETS = {
    "full": Preset(
        steps=500, learning_rate=5e-6, optimizer="adafactor", method={"text_encoder_learning_rate": 0.0},
        source="kohya's documentation for SD3 and FLUX.1: 4e-6 to 1e-5 with Adafactor; diffusers' DreamBooth READMEs: 500 "
               "steps"),
    "textual_inversion": Preset(
        steps=1500, learning_rate=5e-4,
        source="diffusers' README and examples for SD and SDXL: 5e-4, 500 to 3000 steps; none is published for flow models"),
    "pivotal": Preset(
        steps=700, learning_rate=1e-4,
        method={"embedding_learning_rate": 5e-4, "rank": 8, "alpha": 8.0, "targets": "attention",
                "text_encoder_learning_rate": 0.0},
        source="diffusers' advanced DreamBooth example for FLUX.1: rank 8, 700 steps, the word for half of them; "
               "cloneofsimo's rates in place of prodigy"),
}
"""The same for flow models, where theirs are others."""

_OURS = "the mean rate of the cosine schedule in the example workflow, at which subjects keep their shapes"
SMALL_PRESETS = {
    "lora": Preset(
        steps=150, learning_rate=2e-4, batch_size=16,
        method={"rank": 8, "alpha": 8.0, "targets": "all with convolutions", "text_encoder_learning_rate": 0.0},
        source="the mean rate of the cosine schedule in benchmarks/learning.py, at which subjects keep their shapes"),
    "full": replace(PRESETS["full"], steps=80, learning_rate=8e-5, batch_size=16, source=_OURS),
    "textual_inversion": Preset(steps=100, learning_rate=1.5e-3, batch_size=16, source=_OURS),
    "pivotal": Preset(
        steps=120, learning_rate=3e-4, batch_size=16,
        method={"embedding_learning_rate": 1.5e-3, "rank": 4, "alpha": 4.0, "targets": "all with convolutions",
                "text_encoder_learning_rate": 0.0},
        source=_OURS),
    "hypernetwork": Preset(steps=60, learning_rate=3e-4, batch_size=16, source=_OURS),
}
_OURS_FLOW = "the mean rates of the cosine schedules in benchmarks/methods.py on the demo flow base"
SMALL_FLOW_PRESETS = {
    "lora": replace(SMALL_PRESETS["lora"], steps=100, learning_rate=5e-4, source=_OURS_FLOW),
    "full": replace(SMALL_PRESETS["full"], steps=80, learning_rate=1e-4, source=_OURS_FLOW),
    "textual_inversion": replace(SMALL_PRESETS["textual_inversion"], steps=80, learning_rate=2.5e-3, source=_OURS_FLOW),
}


def native_resolution(base: BaseModelSpec) -> int:
    """Pixels of the side of the square images that a base was made for."""
    return get(base.family).native_resolution(base)


def resolution_note(base: BaseModelSpec, resolution: int) -> str:
    """What to know of a resolution that does not fit the base; empty where it does."""
    native = native_resolution(base)
    if FITTING[0] <= resolution / native <= FITTING[1]:
        return ""
    return (f"{base.name} is {get(base.family).title} for images of {native} pixels, and this run trains at {resolution}; "
            f"at such a size it learns shapes that it does not make otherwise. A resolution of {native} fits")


def has_goal(base: BaseModelSpec, goal: str) -> bool:
    """Whether recipes for LoRAs of this base have values of their own for one of GOALS."""
    family = get(base.family)
    return goal in family.lora_goals and not family.is_small(base)


def recommended(base: BaseModelSpec, method: str, images: int, class_images: bool = False, goal: str = "") -> Preset:
    """Starting values for a kind of method on this base with this many images; for a LoRA, for a goal."""
    family, resolution = get(base.family), native_resolution(base)
    if family.is_small(base):
        preset = (SMALL_PRESETS | SMALL_FLOW_PRESETS if base.prediction_type == "flow" else SMALL_PRESETS)[method]
    elif method == "lora":
        preset = _lora(family.lora_goals.get(goal, family.lora_preset))
        if has_goal(base, goal):
            resolution = min(resolution, family.lora_goals[goal].resolution)
    else:
        preset = (PRESETS | FLOW_PRESETS if base.prediction_type == "flow" else PRESETS)[method]
    steps = 2 * preset.steps if method == "full" and class_images else preset.steps
    batch_size = max(1, min(preset.batch_size, images))
    return replace(preset, steps=steps, resolution=resolution, batch_size=batch_size)


def _lora(preset: LoraPreset) -> Preset:
    """A family's values for LoRA."""
    return Preset(steps=preset.steps, learning_rate=preset.learning_rate, source=preset.source, batch_size=preset.batch_size,
                  min_snr_gamma=preset.min_snr_gamma,
                  method={"rank": preset.rank, "alpha": float(preset.alpha), "targets": preset.targets,
                          "text_encoder_learning_rate": preset.text_encoder_learning_rate})
