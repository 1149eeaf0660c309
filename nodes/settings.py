"""Optional settings for the Train nodes, each a small node. A Train node works with none connected."""
from comfy_api.latest import io

from ..trainers.spec import ObjectiveSpec, OptimizerSpec, ScheduleSpec, checked
from . import types

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
                io.Combo.Input("optimizer_name", options=["adamw"], default="adamw", tooltip="AdamW in float32."),
                io.Float.Input("weight_decay", default=0.01, min=0.0, max=1.0, step=0.001,
                               tooltip="Pulls weights towards zero; 0.01 is usual."),
                io.Float.Input("beta1", default=0.9, min=0.0, max=0.9999, step=0.0001,
                               tooltip="Memory of the gradient's direction."),
                io.Float.Input("beta2", default=0.999, min=0.0, max=0.99999, step=0.0001,
                               tooltip="Memory of the gradient's size; 0.99 reacts faster in short runs."),
                io.Float.Input("maximum_gradient_norm", default=1.0, min=0.0, max=1000.0, step=0.1,
                               tooltip="Larger gradients are scaled down to this norm; 0 switches that off."),
            ],
            outputs=[types.Optimizer.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(cls, optimizer_name, weight_decay, beta1, beta2, maximum_gradient_norm):
        return io.NodeOutput(checked(
            OptimizerSpec, name=optimizer_name, weight_decay=weight_decay, betas=(beta1, beta2),
            maximum_gradient_norm=maximum_gradient_norm,
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
                               options=["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"],
                               default="cosine",
                               tooltip="constant keeps the rate; the others lower it towards the end, which settles "
                                       "what was learnt."),
                io.Int.Input("warmup_steps", default=0, min=0, max=1_000_000,
                             tooltip="Steps in which the rate rises from 0; about 5 to 10 % of the run helps high rates."),
                io.Int.Input("cycles", default=1, min=1, max=100, tooltip="Number of cosine restarts."),
            ],
            outputs=[types.Schedule.Output(display_name="schedule")],
        )

    @classmethod
    def execute(cls, schedule_name, warmup_steps, cycles):
        return io.NodeOutput(checked(ScheduleSpec, name=schedule_name, warmup_steps=warmup_steps, cycles=cycles))


class ObjectiveSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="FineTuneObjective",
            display_name="Training Objective",
            category=CATEGORY,
            description="How noise is added and how much each noise level counts. Epsilon, v or flow comes from the base "
                        "model itself.",
            inputs=[
                io.Float.Input("min_snr_gamma", default=5.0, min=0.0, max=100.0, step=0.5,
                               tooltip="Lets low noise levels count less, so that training converges faster (Hang et "
                                       "al. 2023). 5 is usual; 0 switches it off. Not used by flow models."),
                io.Float.Input("noise_offset", default=0.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Lets very dark and very bright pictures be learnt; 0.05 to 0.1 is usual."),
                io.Float.Input("flow_shift", default=1.0, min=0.1, max=100.0, step=0.1,
                               tooltip="Flow models only: above 1 trains more at high noise."),
            ],
            outputs=[types.Objective.Output(display_name="objective")],
        )

    @classmethod
    def execute(cls, min_snr_gamma, noise_offset, flow_shift):
        return io.NodeOutput(checked(
            ObjectiveSpec, min_snr_gamma=min_snr_gamma, noise_offset=noise_offset, flow_shift=flow_shift,
        ))
