"""Many LoRAs at once: a stack of rows, and its effect on a model."""
from collections.abc import Sequence

from comfy_api.latest import io

from ...trainers.errors import UserError
from ...trainers.stacking import LoraEntry, entries_from, parse_rows
from ...trainers.stacking.cards import plain
from .. import host, sockets
from ..widgets import Schema

CATEGORY = "FineTune/lora stack"


class LoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoraStack",
            display_name="LoRA Stack",
            category=CATEGORY,
            search_aliases=("lora loader", "multi lora", "block weight", "lbw", "power lora loader"),
            description="Any number of LoRAs in an order, each with its strengths, block weights and factors for attention, "
                        "feed-forward and convolution weights. Other packs' nodes read the stack too: names and strengths.",
            inputs=[
                io.String.Input("rows", multiline=True, default="",
                                tooltip="The rows as JSON text, which the stack editor writes. By hand, for example: "
                                        '[{"lora": "name.safetensors", "model": 0.8, "text": 0.6, "blocks": "OUTD"}]'),
                sockets.LoraStack.Input("lora_stack", optional=True,
                                      tooltip="A stack that these rows go behind: another LoRA Stack, or any pack's."),
            ],
            outputs=[
                sockets.LoraStack.Output(display_name="lora_stack",
                                       tooltip="For Apply LoRA Stack, and for every node that takes a LORA_STACK."),
                io.String.Output(display_name="summary", tooltip="The rows in words, one a line."),
                trigger_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, rows):
        if rows is None:
            return True  # linked: known only when it runs
        try:
            for row in parse_rows(rows):
                if not row.empty:
                    host.find_row(row)
        except UserError as problem:
            return str(problem)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        rows = [row for row in parse_rows(inputs.get("rows") or "") if not row.empty]
        return [inputs.get("rows"), host.signature([host.find_row(row)[0] for row in rows])]

    @classmethod
    def execute(cls, rows, lora_stack=None):
        entries, lines = entries_from(lora_stack), []
        if entries:
            lines.append(f"{len(entries)} LoRA{'s' * (len(entries) > 1)} from the connected stack, then:")
        parsed = parse_rows(rows)
        for row in parsed:
            if not row.empty:
                name, note = host.find_row(row)
                entries.append(LoraEntry(name, row.model, row.text, row))
                lines.append(describe(entries[-1]) + (f" Note: {note}." if note else ""))
        idle = sum(row.empty for row in parsed)
        if idle:
            lines.append(f"{idle} row{'s' * (idle > 1)} off, without a file or with strengths of 0.")
        summary = "\n".join(lines) or "The stack is empty: the model stays as it is."
        host.NodeProgress(cls.hidden.unique_id).show(summary)
        return io.NodeOutput(entries, summary, trigger_words(entries), ui={"text": [summary]})


def trigger_output():
    return io.String.Output(display_name="trigger_words",
                            tooltip="The words that call up the stack's LoRAs, as their files state them, with commas "
                                    "between.")


def trigger_words(entries: Sequence[LoraEntry]) -> str:
    cards = [host.quick_card(entry[0]) or {} for entry in entries]
    return ", ".join(dict.fromkeys(plain(word, 100) for card in cards for word in card.get("triggers", ())))


def describe(entry: LoraEntry) -> str:
    """One entry in words."""
    name, model, text = entry
    row = entry.row
    factors = [f"{title} × {value:g}" for title, value in (
        ("attention", row.attention), ("feed-forward", row.feed_forward), ("convolution", row.convolution)) if value != 1]
    blocks = [f"blocks {' '.join(row.blocks.split())}"] if row.blocks.strip() else []
    return ", ".join([f"{name}: model {model:g}, text {text:g}", *blocks, *factors]) + "."


class ApplyLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneApplyLoraStack",
            display_name="Apply LoRA Stack",
            category=CATEGORY,
            search_aliases=("lora loader", "multi lora"),
            description="Puts a stack of LoRAs on a model, many for about the time of one, with the same result as a chain "
                        "of LoRA loaders. Reads every format that ComfyUI reads and some that it leaves unloaded, and says "
                        "per file what matched and what did not.",
            inputs=[
                io.Model.Input("model", tooltip="From a checkpoint loader, or Load Demo Base."),
                sockets.LoraStack.Input("lora_stack", tooltip="From LoRA Stack, Train LoRA, or any pack's stack node."),
                io.Clip.Input("clip", optional=True,
                              tooltip="The text encoder. Without it the LoRAs' text parts are left out."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler."),
                io.Clip.Output(display_name="clip", tooltip="For CLIP Text Encode; empty when no clip is connected."),
                io.String.Output(display_name="report", tooltip="Per file: how many keys matched, what did not, and why."),
                trigger_output(),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, lora_stack, clip=None):
        entries = entries_from(lora_stack)
        model, clip, reports = host.apply_stack(model, clip, entries)
        lines = [line for report in reports for line in report.lines()]
        report = "\n".join(lines) or "The stack is empty: model and clip are as they came."
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(model, clip, report, trigger_words(entries), ui={"text": [report]})
