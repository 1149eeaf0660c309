"""Optional settings for the Train nodes, each a small node. A Train node works with none connected."""
from comfy_api.latest import io

from ...trainers.spec import MemorySpec, ObjectiveSpec, OptimizerSpec, ScheduleSpec, checked
from .. import sockets
from ..train.run_training import advanced

CATEGORY = "FineTune/settings"


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneOptimizer",
            display_name="Optimizer",
            category=CATEGORY,
            description="How weights follow gradients. The learning rate is set on the Train node.",
            inputs=[
                io.Combo.Input("optimizer_name",
                               options=["adamw", "adamw_8bit", "lion", "prodigy", "adafactor", "sgd"], default="adamw",
                               tooltip="adamw is what recipes are written for. adamw_8bit and adafactor need less memory. "
                                       "lion wants a rate 3 to 10 times lower. prodigy finds the rate itself: set the "
                                       "learning rate to 1. sgd wants one far higher."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001,
                               tooltip="Pulls weights towards zero; 0.01 is usual, for lion 3 to 10 times as much."),
                io.Float.Input("beta1", default=0.9, min=0.0, max=0.9999, step=0.0001,
                               tooltip="Memory of the gradient's direction; the momentum of sgd. adafactor has none."),
                io.Float.Input("beta2", default=0.999, min=0.0, max=0.99999, step=0.0001,
                               tooltip="Memory of the gradient's size; 0.99 reacts faster in short runs."),
                io.Float.Input("maximum_gradient_norm", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="Larger gradients are scaled down to this norm; 0 switches that off."),
                advanced(io.Float.Input("epsilon", default=1e-8, min=1e-10, max=1e-2, step=1e-9, optional=True,
                                        tooltip="Keeps steps finite where gradients are almost 0. Larger values calm the "
                                                "first steps. Read by adamw, adamw_8bit and prodigy.")),
            ],
            outputs=[sockets.Optimizer.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(cls, optimizer_name, weight_decay, beta1, beta2, maximum_gradient_norm, epsilon=1e-8):
        return io.NodeOutput(checked(
            OptimizerSpec, name=optimizer_name, weight_decay=weight_decay, betas=(beta1, beta2),
            maximum_gradient_norm=maximum_gradient_norm, epsilon=epsilon,
        ))


class ScheduleSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneSchedule",
            display_name="Learning Rate Schedule",
            category=CATEGORY,
            description="How the learning rate changes during the run.",
            inputs=[
                io.Combo.Input("schedule_name",
                               options=["constant", "linear", "cosine", "cosine_with_restarts", "polynomial",
                                        "warmup_stable_decay", "one_cycle"],
                               default="cosine",
                               tooltip="constant keeps the rate; the others lower it towards the end, which settles "
                                       "what was learned. warmup_stable_decay only at the end; one_cycle rises before."),
                io.Int.Input("warmup_steps", default=0, min=0, max=1_000_000,
                             tooltip="Steps in which the rate rises from 0; about 5 to 10 % of the run helps high rates."),
                io.Int.Input("cycles", default=1, min=1, max=100, tooltip="Number of cosine restarts."),
                advanced(io.Float.Input("decay_share", default=0.2, min=0.0, max=1.0, step=0.05, optional=True,
                                        tooltip="warmup_stable_decay: the share of the steps, at the end, in which the rate "
                                                "falls.")),
            ],
            outputs=[sockets.Schedule.Output(display_name="schedule")],
        )

    @classmethod
    def execute(cls, schedule_name, warmup_steps, cycles, decay_share=0.2):
        return io.NodeOutput(checked(ScheduleSpec, name=schedule_name, warmup_steps=warmup_steps, cycles=cycles,
                                     decay_share=decay_share))


class ObjectiveSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneObjective",
            display_name="Training Objective",
            category=CATEGORY,
            description="How noise is added, which noise levels are trained, how errors count, and masks. Epsilon, v or "
                        "flow comes from the base model itself.",
            inputs=[
                io.Float.Input("min_snr_gamma", default=5.0, min=0.0, max=100.0, step=0.5,
                               tooltip="Lets low noise levels count less, so that training converges faster (Hang et "
                                       "al. 2023). 5 is usual; 0 switches it off. Not used by flow models."),
                io.Float.Input("noise_offset", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Lets very dark and very bright images be learned; 0.05 to 0.1 is usual."),
                io.Float.Input("flow_shift", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Flow models only: above 1 trains more at high noise. 0 leaves it to the model's "
                                       "family, which may shift more for larger images."),
                *noise_inputs(),
                *loss_inputs(),
                *noise_level_inputs(),
                *mask_inputs(),
            ],
            outputs=[sockets.Objective.Output(display_name="objective")],
        )

    @classmethod
    def execute(cls, min_snr_gamma, noise_offset, flow_shift, **controls):
        """`controls` are the optional inputs by the names of their fields; those not given keep the field's default."""
        return io.NodeOutput(checked(
            ObjectiveSpec, min_snr_gamma=min_snr_gamma, noise_offset=noise_offset, flow_shift=flow_shift, **controls,
        ))


def noise_inputs() -> list:
    return [
        advanced(io.Int.Input("multires_iterations", default=0, min=0, max=16, optional=True,
                              tooltip="Multi-resolution noise: adds coarse noise to the fine, so that large areas and "
                                      "brightness are learned better. 6 to 10 is usual; 0 switches it off. Use it instead "
                                      "of noise_offset.")),
        advanced(io.Float.Input("multires_discount", default=0.3, min=0.0, max=1.0, step=0.05, optional=True,
                                tooltip="How strong the coarse noise is. 0.3 is usual; 0.8 is strong. Read with "
                                        "multires_iterations above 0.")),
        advanced(io.Float.Input("input_perturbation", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                                tooltip="A little noise that the model is not told of, which makes it forgive the small "
                                        "errors of drawing. 0.1 is usual; 0 switches it off.")),
        advanced(io.Float.Input("image_noise", default=0.0, min=0.0, max=1.0, step=0.01, optional=True,
                                tooltip="Grain on the training images themselves, new in every step, against learning "
                                        "few images by heart. Keep it below 0.05: the grain is learned too. 0 switches it "
                                        "off.")),
    ]


def loss_inputs() -> list:
    return [
        advanced(io.Combo.Input("loss", options=["l2", "l1", "huber"], default="l2", optional=True,
                                tooltip="How an error counts. l2: by its square, the usual choice. l1: by its size. huber: "
                                        "small errors squared, large ones by size, so that odd or damaged images of the "
                                        "dataset disturb less.")),
        advanced(io.Float.Input("huber_c", default=0.1, min=0.001, max=10.0, step=0.01, optional=True,
                                tooltip="Errors above this count by their size. 0.1 is usual. Read with loss: huber.")),
        advanced(io.Combo.Input("huber_schedule", options=["snr", "exponential", "constant"], default="snr", optional=True,
                                tooltip="Where huber_c applies. snr (usual) and exponential: at high noise, and nearly 1 at "
                                        "low noise, where details are learned. constant: everywhere.")),
        advanced(io.Boolean.Input("debiased", default=False, optional=True,
                                  tooltip="Debiased estimation: lets high noise levels count more, which favors "
                                          "composition over detail. Instead of min_snr_gamma, which must then be 0.")),
    ]


def noise_level_inputs() -> list:
    return [
        advanced(io.Boolean.Input("zero_terminal_snr", default=False, optional=True,
                                  tooltip="Trains up to pure noise, so that very dark and very bright images become "
                                          "possible. Only for models that predict v. Draw with ModelSamplingDiscrete: "
                                          "v_prediction, zsnr on.")),
        advanced(io.Float.Input("minimum_timestep", default=0.0, min=0.0, max=0.999, step=0.01, optional=True,
                                tooltip="The lowest noise level that is trained; 0 is the clean image. 0 is usual; 0.3 "
                                        "leaves fine detail as the base has it.")),
        advanced(io.Float.Input("maximum_timestep", default=1.0, min=0.001, max=1.0, step=0.01, optional=True,
                                tooltip="The highest noise level that is trained; 1 is pure noise. 1 is usual; 0.6 leaves "
                                        "composition as the base has it.")),
        advanced(io.Combo.Input("distribution", options=["auto", "uniform", "logit_normal", "mode", "cosine"],
                                default="auto", optional=True,
                                tooltip="How often each noise level is trained. auto: all alike for epsilon and v models, "
                                        "the middle more often (logit_normal) for flow models.")),
        advanced(io.Float.Input("distribution_mean", default=0.0, min=-5.0, max=5.0, step=0.1, optional=True,
                                tooltip="For logit_normal: above 0 trains high noise more, below 0 low noise. 0 is usual.")),
        advanced(io.Float.Input("distribution_spread", default=1.0, min=0.05, max=5.0, step=0.05, optional=True,
                                tooltip="For logit_normal: how widely noise levels spread, 1 is usual. For mode: its scale, "
                                        "1.29 is usual.")),
    ]


def mask_inputs() -> list:
    return [
        advanced(io.Boolean.Input("masked", default=False, optional=True,
                                  tooltip="Learn what the images' masks leave white, and little of the rest. Masks are "
                                          "files beside the images (cat-masklabel.png, cat_mask.png, masks/cat.png) or "
                                          "the images' transparency.")),
        advanced(io.Float.Input("unmasked_weight", default=0.1, min=0.0, max=1.0, step=0.01, optional=True,
                                tooltip="How much the black parts of a mask count. 0.1 is usual; at 0 nothing is learned "
                                        "there, and what is drawn there may drift.")),
    ]


class MemorySettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneMemory",
            display_name="Memory",
            category=CATEGORY,
            description="What is traded for memory and speed: precision, checkpointing, 8-bit storage of what does not "
                        "train, compiling.",
            inputs=[
                io.Combo.Input("precision", options=["auto", "bf16", "fp16", "fp32"], default="auto",
                               tooltip="Precision of what does not train, and of the arithmetic; what trains stays fp32. "
                                       "auto: bf16 where the GPU has it, else fp16; fp32 on the CPU."),
                io.Boolean.Input("gradient_checkpointing", default=False,
                                 tooltip="Needs much less memory and about a quarter more time."),
                io.Combo.Input("frozen_precision", options=["same", "fp8", "int8"], default="same",
                               tooltip="How the weights of a denoiser that does not train are stored: same as precision, or "
                                       "in 8 bits, half of bf16. int8 is a little more exact. Not for full fine-tuning."),
                io.Boolean.Input("compile", default=False,
                                 tooltip="Lets torch compile the denoiser: minutes at the start, faster steps after. Needs "
                                         "a compiler; pays in long runs with one image size."),
                advanced(io.Combo.Input("caption_cache", options=["auto", "always"], default="auto", optional=True,
                                        tooltip="auto: captions are encoded once, before the first step, except those that "
                                                "change from step to step or whose text encoder is trained. always: insist "
                                                "on that, which saves the encoders' memory; such a run is refused.")),
                advanced(io.Int.Input("cache_days", default=30, min=1, max=3650, optional=True,
                                      tooltip="Encoded images and captions that no run has used for so many days are "
                                              "removed from the disk when a run starts. They can always be made again.")),
            ],
            outputs=[sockets.Memory.Output(display_name="memory")],
        )

    @classmethod
    def execute(cls, precision, gradient_checkpointing, frozen_precision, compile, caption_cache="auto", cache_days=30):
        return io.NodeOutput(checked(
            MemorySpec, precision=precision, gradient_checkpointing=gradient_checkpointing,
            frozen_precision=frozen_precision, compile=compile, caption_cache=caption_cache, cache_days=cache_days,
        ))
