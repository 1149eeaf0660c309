"""Optional settings for the Train nodes, each a small node. One with its defaults changes nothing."""
from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.families.memory_presets import SIZES, SOURCE, fitting_memory, in_words
from ...trainers.spec import MemorySpec, ObjectiveSpec, OptimizerSpec, ScheduleSpec, checked
from .. import host, sockets
from ..widgets import Schema, fields_of, widget

CATEGORY = "FineTune/settings"
AUTOMATIC = -1.0
"""min_snr_gamma: what the preset recommends."""
AS_SET = "as set"
FITTED = "gradient_checkpointing", "frozen_precision", "swapped_blocks", "text_precision"
"""What fit_into decides."""


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        first, second = OptimizerSpec().betas
        return Schema(
            node_id="FineTuneOptimizer",
            display_name="Training Optimizer",
            category=CATEGORY,
            search_aliases=("adamw", "prodigy", "lion", "adafactor", "weight decay", "gradient clipping"),
            description="How weights follow gradients. The learning rate is set on the Train node.",
            inputs=[
                widget(OptimizerSpec, "name", name="optimizer_name",
                       tooltip="adamw is what recipes are written for. adamw_8bit and adafactor need less memory. lion "
                               "wants a rate 3 to 10 times lower. prodigy finds the rate itself: set the learning rate to "
                               "1. sgd wants one far higher."),
                widget(OptimizerSpec, "weight_decay",
                       tooltip="Pulls weights towards zero; 0.01 is usual, for lion 3 to 10 times as much."),
                io.Float.Input("beta1", default=first, min=0.0, max=0.9999, step=0.0001,
                               tooltip="Memory of the gradient's direction; the momentum of sgd. adafactor has none."),
                io.Float.Input("beta2", default=second, min=0.0, max=0.99999, step=0.0001,
                               tooltip="Memory of the gradient's size; 0.99 reacts faster in short runs."),
                widget(OptimizerSpec, "maximum_gradient_norm",
                       tooltip="Gradient clipping: larger gradients are scaled down to this norm; 0 switches that off."),
                widget(OptimizerSpec, "epsilon", expert=True,
                       tooltip="Keeps steps finite where gradients are almost 0. Larger values calm the first steps. Read "
                               "by adamw, adamw_8bit and prodigy."),
            ],
            outputs=[sockets.Optimizer.Output(display_name="optimizer", tooltip="For optimizer on any Train node.")],
        )

    @classmethod
    def execute(cls, optimizer_name, beta1, beta2, **widgets):
        return io.NodeOutput(checked(OptimizerSpec, name=optimizer_name, betas=(beta1, beta2), **widgets))


class ScheduleSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneSchedule",
            display_name="Learning Rate Schedule",
            category=CATEGORY,
            search_aliases=("scheduler", "lr scheduler", "cosine", "warmup", "learning rate decay"),
            description="How the learning rate changes during the run.",
            inputs=[
                widget(ScheduleSpec, "name", name="schedule_name",
                       tooltip="constant keeps the rate; the others lower it towards the end, which settles what was "
                               "learned: cosine is usual. warmup_stable_decay only at the end; one_cycle rises before."),
                widget(ScheduleSpec, "warmup_steps",
                       tooltip="Steps in which the rate rises from 0; about 5 to 10 % of the run helps high rates."),
                widget(ScheduleSpec, "cycles", tooltip="Number of cosine restarts."),
                widget(ScheduleSpec, "decay_fraction", expert=True,
                       tooltip="warmup_stable_decay: the fraction of the steps, at the end, in which the rate falls."),
            ],
            outputs=[sockets.Schedule.Output(display_name="schedule", tooltip="For schedule on any Train node.")],
        )

    @classmethod
    def execute(cls, **widgets):
        return io.NodeOutput(checked(ScheduleSpec, **fields_of(widgets, {"schedule_name": "name"})))


class ObjectiveSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneObjective",
            display_name="Training Objective",
            category=CATEGORY,
            search_aliases=("loss", "min snr", "noise offset", "timestep", "huber", "masked training", "flow shift"),
            description="How noise is added, which noise levels are trained, how errors count, and masks. Epsilon, v or "
                        "flow comes from the base model itself.",
            inputs=[
                widget(ObjectiveSpec, "min_snr_gamma", default=AUTOMATIC, lowest=AUTOMATIC,
                       tooltip="Lets low noise levels count less, so that training converges faster (Hang et al. 2023). -1: "
                               "what the preset recommends, off with custom. 5 is usual; 0 switches it off. Not used by "
                               "flow models."),
                widget(ObjectiveSpec, "noise_offset",
                       tooltip="Lets very dark and very bright images be learned; 0.05 to 0.1 is usual."),
                widget(ObjectiveSpec, "flow_shift",
                       tooltip="Flow models only: above 1 trains more at high noise, and 3 is usual for large images. 0 "
                               "leaves it to the model's family, which may shift more for larger images."),
                *noise_inputs(),
                *loss_inputs(),
                *noise_level_inputs(),
                *mask_inputs(),
                *flow_inputs(),
            ],
            outputs=[sockets.Objective.Output(display_name="objective", tooltip="For objective on any Train node.")],
        )

    @classmethod
    def execute(cls, **widgets):
        if widgets["min_snr_gamma"] < 0:
            del widgets["min_snr_gamma"]  # a field that was not set is what the preset may set
        return io.NodeOutput(checked(ObjectiveSpec, **fields_of(widgets, FIELDS)))


FIELDS = {"multires_noise_iterations": "multires_iterations", "multires_noise_discount": "multires_discount",
          "latent_noise": "image_noise", "debiased_estimation": "debiased", "timestep_distribution": "distribution",
          "timestep_distribution_mean": "distribution_mean", "timestep_distribution_spread": "distribution_spread",
          "masked_loss": "masked"}
"""Widget → field of the spec, where their names differ."""


def control(name: str, tooltip: str):
    return widget(ObjectiveSpec, FIELDS.get(name, name), name=name, expert=True, tooltip=tooltip)


def noise_inputs() -> list:
    return [
        control("multires_noise_iterations",
                "Multi-resolution noise: adds coarse noise to the fine, so that large areas and brightness are learned "
                "better. 6 to 10 is usual; 0 switches it off. Use it instead of noise_offset."),
        control("multires_noise_discount",
                "How strong the coarse noise is. 0.3 is usual; 0.8 is strong. Read with multires_noise_iterations above 0."),
        control("input_perturbation",
                "A little noise that the model is not told of, which makes it forgive the small errors of sampling. 0.1 is "
                "usual; 0 switches it off."),
        control("latent_noise",
                "Grain on the training images themselves, as latents, new in every step, against learning few images by "
                "heart. Keep it below 0.05: the grain is learned too. 0 switches it off."),
    ]


def loss_inputs() -> list:
    return [
        control("loss",
                "How an error counts. l2: by its square, the usual choice. l1: by its size. huber: small errors squared, "
                "large ones by size, so that odd or damaged images of the dataset disturb less."),
        control("huber_c", "Errors above this count by their size. 0.1 is usual. Read with loss: huber."),
        control("huber_schedule",
                "Where huber_c applies. snr (usual) and exponential: at high noise, and nearly 1 at low noise, where "
                "details are learned. constant: everywhere."),
        control("debiased_estimation",
                "Lets high noise levels count more, which favors composition over detail. Instead of min_snr_gamma, which "
                "must then be 0 or -1."),
    ]


def noise_level_inputs() -> list:
    return [
        control("zero_terminal_snr",
                "Trains up to pure noise, so that very dark and very bright images become possible. Only for models that "
                "predict v. Generate with ModelSamplingDiscrete: v_prediction, zsnr on."),
        control("minimum_timestep",
                "The lowest noise level that is trained; 0 is the clean image. 0 is usual; 0.3 leaves fine detail as the "
                "base has it."),
        control("maximum_timestep",
                "The highest noise level that is trained; 1 is pure noise. 1 is usual; 0.6 leaves composition as the base "
                "has it."),
        control("timestep_distribution",
                "How often each noise level is trained. auto: all alike for epsilon and v models, the middle more often "
                "(logit_normal) for flow models. sigmoid: the same as other trainers call it, without a mean."),
        control("timestep_distribution_mean",
                "For logit_normal: above 0 trains high noise more, below 0 low noise. 0 is usual."),
        control("timestep_distribution_spread",
                "For logit_normal and sigmoid: how widely noise levels spread, 1 is usual. For mode: its scale, 1.29 is "
                "usual."),
    ]


def mask_inputs() -> list:
    return [
        control("masked_loss",
                "Learn what the images' masks leave white, and little of the rest. Masks are files beside the images "
                "(cat-masklabel.png, cat_mask.png, masks/cat.png) or the images' transparency."),
        control("unmasked_weight",
                "How much the black parts of a mask count. 0.1 is usual; at 0 nothing is learned there, and what is "
                "generated there may drift."),
    ]


def flow_inputs() -> list:
    return [
        control("flow_shift_mode",
                "Flow models only: what the shift follows. auto: flow_shift, or at 0 what the model was made with. "
                "constant: the same for all sizes. resolution: more for larger images, by the square root of their pixels. "
                "dynamic: as Flux.1 [dev] shifts, by the number of tokens."),
        control("flow_weighting",
                "Flow models only: how much each noise level counts. none is usual. cosmap: the middle up to twice as much. "
                "sigma_sqrt: low noise far more, for fine detail; needs a lower learning rate."),
    ]


class MemorySettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneMemory",
            display_name="Training Memory",
            category=CATEGORY,
            search_aliases=("vram", "low memory", "gradient checkpointing", "fp8", "int8", "mixed precision",
                            "block swap", "blocks to swap", "offload", "torch compile"),
            description="What is traded for memory and speed: precision, checkpointing, 8-bit storage of what does not "
                        "train, blocks that come when they are needed, compiling.",
            inputs=[
                widget(MemorySpec, "precision",
                       tooltip="Precision of what does not train, and of the arithmetic; what trains stays fp32. auto: bf16 "
                               "where the GPU has it, else fp16; fp32 on the CPU."),
                widget(MemorySpec, "gradient_checkpointing",
                       tooltip="Needs much less memory and about a quarter more time."),
                widget(MemorySpec, "frozen_precision",
                       tooltip="How the weights of a denoiser that does not train are stored: same as precision, or in 8 "
                               "bits, half of bf16. int8 is a little more exact. Not for full fine-tuning."),
                widget(MemorySpec, "compile",
                       tooltip="Lets torch compile the denoiser: minutes at the start, faster steps after. Needs a "
                               "compiler; pays in long runs with one image size."),
                widget(MemorySpec, "caption_cache", expert=True,
                       tooltip="auto: captions are encoded once, before the first step, except those that change from step "
                               "to step or whose text encoder is trained. always: insist on that, which saves the encoders' "
                               "memory; such a run is refused."),
                widget(MemorySpec, "cache_days", expert=True,
                       tooltip="Encoded images and captions that no run has used for so many days are removed from the disk "
                               "when a run starts. They can always be made again."),
                widget(MemorySpec, "swapped_blocks", expert=True,
                       tooltip="So many blocks of a denoiser that does not train wait in main memory and come to the GPU "
                               "just in time. Two of them are there at once, so 1 and 2 save nothing. On the CPU they wait "
                               "on the disk. Results stay the same."),
                widget(MemorySpec, "offload_activations", expert=True,
                       tooltip="What gradient_checkpointing remembers waits in main memory. Saves about 1.5 GB with Flux at "
                               "1024 pixels. Results stay the same. Only on a GPU."),
                widget(MemorySpec, "text_precision", expert=True,
                       tooltip="How the weights of text encoders are stored while captions are encoded beforehand: same as "
                               "precision, or in 8 bits, which halves the 9.5 GB of T5."),
                io.Combo.Input("fit_into", options=[AS_SET, *(f"{size} GB" for size in SIZES)], default=AS_SET,
                               optional=True,
                               tooltip="A GPU's memory: sets checkpointing, 8 bits and swapped blocks so that a LoRA of the "
                                       "connected base fits, and says how. The widgets for these are not read then. as set: "
                                       "they count."),
                sockets.Base.Input("base", optional=True, tooltip="For fit_into: the base of the Train node."),
            ],
            outputs=[sockets.Memory.Output(display_name="memory", tooltip="For memory on any Train node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, fit_into=AS_SET, base=None, **widgets):
        if fit_into == AS_SET:
            return io.NodeOutput(checked(MemorySpec, **widgets))
        if base is None:
            raise UserError(f"fit_into is {fit_into}, and what fits depends on the base: connect the base of the Train node "
                            "to base on Training Memory, or set fit_into to as set.")
        fitting = fitting_memory(base, int(fit_into.split()[0]))
        text = f"For {base.name} on {fit_into}: {', '.join(in_words(fitting)) or 'nothing is needed'}. Source: {SOURCE}."
        host.NodeProgress(cls.hidden.unique_id).show(text)
        chosen = {field: getattr(fitting, field) for field in FITTED}
        return io.NodeOutput(checked(MemorySpec, **(widgets | chosen)), ui={"text": [text]})
