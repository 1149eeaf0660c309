"""A LoRA that is on while a base is trained, and in nothing else."""
from comfy_api.latest import io

from ...trainers import families
from ...trainers.errors import UserError
from ...trainers.families.recognition import fingerprint_of
from ...trainers.spec import AssistantSpec, checked
from ...trainers.training.assistant import Assistant
from .. import host, sockets
from ..widgets import Schema, widget


class AssistantLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneAssistantLora",
            display_name="Assistant LoRA",
            category="FineTune/base model",
            search_aliases=("training adapter", "de-distill", "turbo training", "schnell training adapter"),
            description="Puts a LoRA on a base for the time of its training. It is on while training, off in previews, and "
                        "not in the result. Distilled bases (Turbo, schnell) keep their few steps that way: take the "
                        "training adapter that is published for the base.",
            inputs=[
                sockets.Base.Input("base", tooltip="From a base model node: the distilled model that you generate with."),
                io.Combo.Input("lora", options=host.lora_choices(),
                               tooltip="A plain LoRA for this base, of any maker, in models/loras."),
                widget(AssistantSpec, "strength", tooltip="1 is what training adapters are made for. Below 1 the result "
                                                          "undoes a part of the distillation itself."),
            ],
            outputs=[
                sockets.Base.Output(display_name="base", tooltip="For the Train nodes."),
                io.String.Output(display_name="description", tooltip="What is put on the base."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return fingerprint_of(host.chosen_lora(inputs["lora"]))

    @classmethod
    def execute(cls, base, lora, strength):
        if base.assistant:
            raise UserError(f"The base has an assistant LoRA already, {base.assistant.name!r}. Use one node Assistant LoRA "
                            "for a base.")
        path = host.chosen_lora(lora)
        spec = checked(AssistantSpec, path=str(path), name=lora, fingerprint=fingerprint_of(path), strength=strength)
        base = base.model_copy(update={"assistant": spec})
        family = families.get(base.family)
        text = "\n".join(f"{note[0].upper()}{note[1:]}." for note in Assistant(base, family).notes)
        host.NodeProgress(cls.hidden.unique_id).show(text)
        return io.NodeOutput(base, text, ui={"text": [text]})
