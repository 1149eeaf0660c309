"""What the Train nodes share: their widgets, what a preset puts in place of them, and the spec that comes out."""
from collections.abc import Mapping
from dataclasses import dataclass

from comfy_api.latest import io

from ...trainers import families
from ...trainers.errors import UserError
from ...trainers.families.presets import has_goal, recommended, resolution_note
from ...trainers.families.protocol import GOALS
from ...trainers.spec import (
    BaseModelSpec,
    CheckpointSpec,
    DatasetSpec,
    LoraSpec,
    MemorySpec,
    MethodSpec,
    ObjectiveSpec,
    OptimizerSpec,
    PreviewSpec,
    PriorSpec,
    RunSpec,
    ScheduleSpec,
    TrainingSpec,
    ValidationSpec,
    checked,
)
from .. import host, sockets
from ..widgets import fields_of, widget

RECOMMENDED, CUSTOM = "recommended for the base", "custom"
FOR_GOALS = {f"recommended for a {goal}": goal for goal in GOALS}
PREVIEWS = 5
"""Previews of a run for which nobody said how many steps lie between them."""


# ---- widgets -------------------------------------------------------------------------------------------------------

def data_inputs(file: str, name: str, goals: bool = False) -> list:
    """Base, dataset, name and preset, with presets for `goals` too. `file` says in words where the result goes."""
    more = " recommended for a style, a subject or a quick try: the same, where recipes for the base differ by that."
    return [
        sockets.Base.Input("base", tooltip="The model to train on: Load Base to Train or Load Demo Base."),
        sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset."),
        io.String.Input("name", default=name,
                        tooltip=f"Names the run and the {file}. A name that is taken by another run gets -2, -3, …"),
        io.Combo.Input("preset", options=[RECOMMENDED, CUSTOM, *(FOR_GOALS if goals else ())], default=RECOMMENDED,
                       tooltip="recommended for the base: steps, learning rates, batch size, resolution and what else is "
                               "gray here come from published recipes for the base, and the node says which. custom: the "
                               f"widgets below count.{more if goals else ''}"),
    ]


def length_inputs(steps: int, steps_help: str, rate: float, rate_help: str, step: float = 1e-6) -> list:
    """Steps and learning rate; `step` is how far an arrow moves the rate."""
    return [
        widget(TrainingSpec, "steps", default=steps, preset=True, tooltip=f"Optimizer steps. {steps_help}"),
        widget(OptimizerSpec, "learning_rate", default=rate, step=step, preset=True, tooltip=rate_help),
    ]


def text_encoder_input(tooltip: str, **options):
    return widget(LoraSpec, "text_encoder_learning_rate", preset=True, tooltip=tooltip, **options)


def lora_inputs(rank: int, rank_help: str, expert: bool = False) -> list:
    """Size and place of a LoRA; the rest is on LoRA Settings."""
    return [
        widget(LoraSpec, "rank", default=rank, preset=True, tooltip=rank_help),
        widget(LoraSpec, "alpha", default=float(rank), preset=True, expert=expert,
               tooltip="The LoRA acts with alpha ÷ rank. Keep it equal to the rank, or half of it."),
        widget(LoraSpec, "targets", preset=True, expert=expert,
               tooltip="Which layers of the denoiser get an adapter. More layers learn more and make larger files. pattern: "
                       "those that the pattern on LoRA Settings finds."),
    ]


def run_inputs(expert_seed: bool = False) -> list:
    """Batch, resolution, prompts and seed."""
    return [
        widget(TrainingSpec, "batch_size", preset=True,
               tooltip="Images at once. Larger is steadier and needs more memory."),
        widget(TrainingSpec, "resolution", preset=True,
               tooltip="Pixels of a square image's side; other shapes get about the same area. SD 1.x 512, SD 2.x 768, "
                       "SDXL 1024, demo base 64."),
        io.String.Input("preview_prompts", default="", multiline=True,
                        tooltip="One prompt a line. Images of each are generated five times during the run and shown here; "
                                "Training Previews & Checkpoints sets how often and how."),
        # Not "seed": frontends put a randomize control beside that, and every queue would be a new run.
        widget(TrainingSpec, "seed", name="training_seed", expert=expert_seed,
               tooltip="Another seed is another run, with other noise and another order of images."),
    ]


def setting_inputs() -> list:
    """Inputs for the settings nodes. A Train node works with none connected, as if their defaults were."""
    return [
        sockets.Optimizer.Input("optimizer", optional=True,
                                tooltip="Training Optimizer. Unconnected: AdamW, weight decay 0.01, or what the preset "
                                        "names."),
        sockets.Schedule.Input("schedule", optional=True,
                               tooltip="Learning Rate Schedule. Unconnected: constant, no warm-up."),
        sockets.Objective.Input("objective", optional=True,
                                tooltip="Training Objective. Unconnected: min-SNR as the preset recommends, no noise "
                                        "offset."),
        sockets.Memory.Input("memory", optional=True,
                             tooltip="Training Memory: precision, gradient checkpointing, 8-bit weights. Unconnected: "
                                     "automatic precision."),
        sockets.Monitoring.Input("previews_and_checkpoints", optional=True,
                                 tooltip="Training Previews & Checkpoints: how often, negative prompt, validation loss, "
                                         "early stopping. Unconnected: five previews, a checkpoint every 250 steps."),
    ]


def batch_inputs() -> list:
    return [
        widget(TrainingSpec, "accumulation", name="gradient_accumulation", expert=True,
               tooltip="Micro-batches per step: the effect of a larger batch without its memory."),
        widget(TrainingSpec, "caption_dropout", expert=True,
               tooltip="Fraction of captions left out; 0.05 to 0.1 lets what is learned act without its trigger too."),
        widget(TrainingSpec, "buckets", name="aspect_ratio_buckets", expert=True,
               tooltip="Keep the images' shapes. Off: every image is cropped square."),
        widget(TrainingSpec, "clip_skip", expert=True,
               tooltip="Which layer of the text encoder is read, counted from the end; 0 is the model's own. Generate with "
                       "CLIP Set Last Layer at the same number, negative."),
        widget(TrainingSpec, "ema_decay", expert=True,
               tooltip="Above 0 the exponential moving average of the weights is saved, which is steadier: 0.99 for "
                       "hundreds of steps, 0.999 for thousands. Needs memory for another copy."),
    ]


def prior_inputs() -> list:
    """Class images turn fine-tuning into DreamBooth, with prior preservation."""
    return [
        sockets.Dataset.Input("class_images", optional=True,
                              tooltip="Images of the subject's class (dogs, for one dog), trained along so that the class "
                                      "is not forgotten: Load Image Dataset, or Regularization Images, which lets the base "
                                      "generate them."),
        widget(PriorSpec, "weight", name="prior_weight", expert=True,
               tooltip="How much the class images count, compared with the subject's. 1 is usual."),
        widget(PriorSpec, "ratio", name="prior_ratio", expert=True,
               tooltip="Class images trained for every image of the subject. 1 is usual; less is faster."),
    ]


def flow_inputs() -> list:
    """What transformers with T5 and distilled guidance read; last, because they came last."""
    return [
        widget(TrainingSpec, "guidance", name="training_guidance", expert=True,
               tooltip="Only for models with distilled guidance (Flux.1 [dev]): what they are told while they train. 1 is "
                       "usual; 3.5 learns weakly. Previews have a guidance of their own."),
        widget(TrainingSpec, "text_length", default="auto", expert=True,
               tooltip="Only for models with a T5 text encoder (SD3, Flux.1): how many tokens captions are padded or cut "
                       "to. auto: as ComfyUI encodes prompts. 512 is for long captions; more takes longer."),
    ]


def lora_settings_input():
    return sockets.Lora.Input("lora_settings", optional=True,
                              tooltip="LoRA Settings: DoRA, LoHa and LoKr, dropout, convolution and block ranks, LoRA+, "
                                      "file precision. Unconnected: a plain LoRA in fp16.")


# ---- the preset ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Choice:
    """The widgets that count, those among them that the preset set, and what to say of them."""

    widgets: dict
    preset: Mapping[str, float | str]
    lines: list[str]

    @property
    def for_page(self) -> dict:
        """Part of a node's `ui`: the numbers for the widgets that were not read."""
        return {"finetune_used": [dict(self.preset)]} if self.preset else {}


def choose(method: str, base: BaseModelSpec, dataset: DatasetSpec, widgets: Mapping) -> Choice:
    """Put what the preset recommends for a kind of method in place of the widgets."""
    widgets = dict(widgets)
    used, lines, chosen = {}, [], widgets.pop("preset")
    if chosen != CUSTOM:
        if chosen != RECOMMENDED and chosen not in FOR_GOALS:  # older hosts do not look
            raise UserError(f"There is no preset {chosen!r}. Choose one of the list in the field preset, or {CUSTOM!r}.")
        goal = FOR_GOALS.get(chosen, "")
        preset = recommended(base, method, len(dataset.images), widgets.get("class_images") is not None, goal)
        used, gamma = as_factors(preset.widgets, widgets.get("optimizer")), preset.min_snr_gamma
        widgets |= {**used, "objective": with_min_snr(widgets.get("objective"), gamma)}
        told = dict(used)
        if preset.optimizer and widgets.get("optimizer") is None:
            told["optimizer"] = preset.optimizer
            widgets["optimizer"] = checked(OptimizerSpec, name=preset.optimizer)
        if base.prediction_type != "flow":
            told["min-SNR"] = widgets["objective"].min_snr_gamma
        numbers = ", ".join(f"{name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:g}'}"
                            for name, value in told.items())
        lines.append(f"Recommended for this base and used instead of the gray widgets: {numbers}. Source: {preset.source}.")
        if goal and not has_goal(base, goal):
            lines.append(f"Note: no recipe for a {goal} on {families.get(base.family).title} differs from the usual one, so "
                         "that is used.")
    elif note := resolution_note(base, widgets["resolution"]):
        lines.append(f"Note: {note}.")
    return Choice(widgets, used, lines)


def as_factors(values: dict, optimizer: OptimizerSpec | None) -> dict:
    """Prodigy finds the rate itself; rates are factors of it there, all of them 1 in diffusers' examples."""
    if optimizer is None or optimizer.name != "prodigy":
        return values
    return {name: 1.0 if name.endswith("learning_rate") and value else value for name, value in values.items()}


def with_min_snr(objective: ObjectiveSpec | None, gamma: float) -> ObjectiveSpec:
    """The objective with the recommended min-SNR where the person has set none, nor the weighting that excludes it."""
    if objective is None:
        return ObjectiveSpec(min_snr_gamma=gamma)
    if "min_snr_gamma" in objective.model_fields_set or objective.debiased:
        return objective
    return objective.model_copy(update={"min_snr_gamma": gamma})


# ---- the spec ------------------------------------------------------------------------------------------------------

TRAINING_FIELDS = {"training_seed": "seed", "gradient_accumulation": "accumulation", "aspect_ratio_buckets": "buckets",
                   "training_guidance": "guidance"}
PRIOR_FIELDS = {"prior_weight": "weight", "prior_ratio": "ratio"}
"""Widget → field of the spec, where their names differ."""


def make_spec(base: BaseModelSpec, dataset: DatasetSpec, name: str, method: MethodSpec, *, steps: int, learning_rate: float,
              preview_prompts: str, optimizer=None, schedule=None, objective=None, memory=None,
              previews_and_checkpoints=None, class_images=None, **widgets) -> RunSpec:
    """The widgets as a checked spec. Raises UserError that names every wrong field."""
    prompts = tuple(line.strip() for line in preview_prompts.splitlines() if line.strip())
    monitoring = previews_and_checkpoints or sockets.Monitored(PreviewSpec(), CheckpointSpec(), ValidationSpec())
    every = (monitoring.previews.every or max(1, round(steps / PREVIEWS))) if prompts else 0
    weighing = {field: widgets.pop(name) for name, field in PRIOR_FIELDS.items() if name in widgets}
    prior = class_images and checked(PriorSpec, dataset=class_images, **weighing)
    return checked(
        RunSpec, name=name.strip(), base=base, dataset=dataset, method=method, prior=prior or None,
        optimizer=checked(OptimizerSpec, **{**dict(optimizer or OptimizerSpec()), "learning_rate": learning_rate}),
        schedule=schedule or ScheduleSpec(),
        objective=objective or ObjectiveSpec(),
        training=checked(TrainingSpec, steps=steps, **fields_of(widgets, TRAINING_FIELDS)),
        memory=memory or MemorySpec(),
        previews=checked(PreviewSpec, **{**dict(monitoring.previews), "prompts": prompts, "every": every}),
        checkpoints=monitoring.checkpoints,
        validation=monitoring.validation,
        folders=host.run_folders(),
        device=host.training_device(),
    )


def lora_spec(lora_settings: LoraSpec | None, **fields) -> LoraSpec:
    """The Train node's `fields` and the rest from LoRA Settings."""
    return checked(LoraSpec, **{**dict(lora_settings or LoraSpec()), **fields})
