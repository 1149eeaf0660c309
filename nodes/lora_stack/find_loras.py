"""LoRAs out of prompts, and a look inside a LoRA file."""
from pathlib import PurePosixPath

import numpy as np
import torch
from comfy_api.latest import io, ui

from ...trainers.artifacts.layer_names.family import TITLES
from ...trainers.errors import UserError
from ...trainers.stacking import LoraEntry, entries_from
from ...trainers.stacking.cards import family_of, method_of, plain, ranks_of, triggers_of
from ...trainers.stacking.inspection import draw_norms, layers_of, norms_by_block
from ...trainers.stacking.prompts import MODEL_FIRST, TEXT_FIRST, Keyword, parse_keyword_map, read_prompt, resolve, rows_of
from ...trainers.stacking.rows import StackRow
from ...trainers.words import counted, holds
from .. import host, sockets
from ..widgets import Schema
from .lora_stack import CATEGORY, describe


class PromptLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTunePromptLoras",
            display_name="LoRAs from Prompt",
            category=CATEGORY,
            search_aliases=("lora tags", "a1111 lora syntax", "lora loader"),
            description="Takes <lora:name:0.8> tags out of a prompt and makes a stack of them. Names are looked up in all "
                        "loras folders, with or without folder and suffix, whatever the case.",
            inputs=[
                io.String.Input("prompt", multiline=True, default="",
                                tooltip="Tags are <lora:name>, <lora:name:0.8>, <lora:name:0.8:0.6>, "
                                        "<lora:name:unet=0.8:te=0.6>, <lora:name:0.8:lbw=OUTD>."),
                io.Combo.Input("number_order", options=[MODEL_FIRST, TEXT_FIRST], default=MODEL_FIRST,
                               tooltip="What the two numbers of <lora:name:0.8:0.6> are. ComfyUI's packs write the model's "
                                       "strength first, Automatic1111 the text encoder's."),
                io.Boolean.Input("skip_unknown", default=False,
                                 tooltip="On: names that no file has are reported and passed over. Off: they stop the run."),
                sockets.LoraStack.Input("lora_stack", optional=True, tooltip="A stack that the prompt's LoRAs go behind."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The prompt without its tags, for CLIP Text Encode."),
                sockets.LoraStack.Output(display_name="lora_stack", tooltip="For Apply LoRA Stack."),
                io.String.Output(display_name="report", tooltip="What was found, and what was not."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return [inputs.get(name) for name in ("prompt", "number_order", "skip_unknown")] + host.signature(host.lora_names())

    @classmethod
    def execute(cls, prompt, number_order, skip_unknown, lora_stack=None):
        if number_order not in (MODEL_FIRST, TEXT_FIRST):
            raise UserError(f"number_order is {number_order!r}. Choose {MODEL_FIRST!r} or {TEXT_FIRST!r}.")
        clean, mentions = read_prompt(prompt, number_order)
        rows, unknown = rows_of(mentions, host.lora_names())
        if unknown and not skip_unknown:
            raise UserError("\n".join(unknown) + "\nCorrect the prompt, or switch skip_unknown on.")
        found = [LoraEntry(row.lora, row.model, row.text, row) for row in rows]
        lines = [describe(entry) for entry in found] + unknown
        lines += [f"Note: {note}." for mention in mentions for note in mention.notes]
        report = "\n".join(lines) or "The prompt names no LoRAs."
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(clean, entries_from(lora_stack) + found, report, ui={"text": [report]})


class KeywordLoras(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneKeywordLoras",
            display_name="LoRAs by Keyword",
            category=CATEGORY,
            search_aliases=("trigger words", "automatic lora"),
            description="Adds the LoRAs whose trigger words occur in the prompt. Words come from the files' own metadata, "
                        "from a map that you write, or from both.",
            inputs=[
                io.String.Input("prompt", multiline=True, default="",
                                tooltip="The prompt that is searched; it stays as it is."),
                io.Combo.Input("keyword_source", options=["metadata and map", "map only", "metadata only"],
                               default="metadata and map",
                               tooltip="metadata: modelspec.trigger_phrase and the class tokens that trainers write into "
                                       "the file. map: the text below."),
                io.String.Input("folder", default="",
                                tooltip="Only LoRAs in this folder of the loras folders are searched for metadata; empty "
                                        "for all. Example: characters"),
                io.Float.Input("model_strength", default=1.0, min=-100.0, max=100.0, step=0.05,
                               tooltip="Strength on the model, where the map gives none."),
                io.Float.Input("text_strength", default=1.0, min=-100.0, max=100.0, step=0.05,
                               tooltip="Strength on the text encoder, where the map gives none."),
                io.Int.Input("maximum_loras", default=5, min=1, max=100,
                             tooltip="LoRAs that are added at the most, so that a common word does not load a whole "
                                     "library."),
                io.String.Input("keyword_map", multiline=True, default="", optional=True,
                                tooltip='JSON: {"my_lora": ["ohwx", "ink drawing"], "other": {"words": ["sks"], "model": '
                                        '0.8, "text": 0.5}}. For a LoRA in it the file\'s own words are not read.'),
                sockets.LoraStack.Input("lora_stack", optional=True,
                                      tooltip="A stack that they go behind. A LoRA that is in it already is not added "
                                              "again."),
            ],
            outputs=[
                sockets.LoraStack.Output(display_name="lora_stack", tooltip="For Apply LoRA Stack."),
                io.String.Output(display_name="report", tooltip="Which word called which LoRA."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        kept = [repr(value) for name, value in sorted(inputs.items()) if name != "lora_stack"]
        return kept + host.signature(host.lora_names())

    @classmethod
    def execute(cls, prompt, keyword_source, folder, model_strength, text_strength, maximum_loras, keyword_map="",
                lora_stack=None):
        names, entries, lines = host.lora_names(), entries_from(lora_stack), []
        keywords = parse_keyword_map(keyword_map) if keyword_source != "metadata only" else []
        mapped, unknown = {}, []
        for keyword in keywords:
            file = resolve(keyword.name, names)
            unknown += [] if file else [keyword.name]
            if file:
                mapped[file] = keyword
        if unknown:
            raise UserError(f"keyword_map names LoRAs that are not in the loras folders: {', '.join(map(repr, unknown))}.")
        present = {entry[0] for entry in entries}
        added = 0
        for name, keyword in {**mapped, **cls._from_metadata(names, mapped, keyword_source, folder)}.items():
            word = next((word for word in keyword.words if holds(prompt, word)), None)
            if word is None or name in present:
                continue
            if added == maximum_loras:
                lines.append(f"More LoRAs fit the prompt, but maximum_loras is {maximum_loras}.")
                break
            model = model_strength if keyword.model is None else keyword.model
            text = text_strength if keyword.text is None else keyword.text
            entries.append(LoraEntry(name, model, text, StackRow(lora=name, model=model, text=text)))
            lines.append(f"{word!r} calls {describe(entries[-1])}")
            added += 1
        report = "\n".join(lines) or "No trigger word occurs in the prompt."
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(entries, report, ui={"text": [report]})

    @classmethod
    def _from_metadata(cls, names, mapped, keyword_source: str, folder: str) -> dict[str, Keyword]:
        if keyword_source == "map only":
            return {}
        wanted, found = folder.strip().replace("\\", "/").strip("/").lower(), {}
        for name in names:
            parent = str(PurePosixPath(name.replace("\\", "/")).parent).lower()
            if name not in mapped and (not wanted or parent == wanted or parent.startswith(wanted + "/")):
                facts = host.quick_card(name)
                if facts and facts["triggers"]:
                    found[name] = Keyword(name, tuple(facts["triggers"]))
        return found


class InspectLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneInspectLora",
            display_name="LoRA Inspector",
            category=CATEGORY,
            search_aliases=("lora info", "metadata", "lora key not loaded"),
            description="Shows what is in a LoRA file: the size of its change in every block as an image, ranks, method, "
                        "base model, trigger words, metadata; with a model connected also what would not load, and why.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("lora_name", options=host.lora_names(), tooltip="A file in the loras folders."),
                io.Model.Input("model", optional=True, tooltip="To see what of the file this model takes."),
                io.Clip.Input("clip", optional=True, tooltip="To see what of the file this text encoder takes."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The size of the change in every block."),
                io.String.Output(display_name="report",
                                 tooltip="Method, ranks, base model, words, metadata, what would not load."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.signature([inputs.get("lora_name") or ""])

    @classmethod
    def execute(cls, lora_name, model=None, clip=None):
        file = host.read_lora(lora_name)
        loading, weights = [], {}
        if model is not None or clip is not None:
            report, weights = host.inspect_lora(model, clip, lora_name)
            loading = [report] if isinstance(report, str) else report.lines()
        facts = describe_tensors(file, weights)
        tensors = counted(len(file.tensors), "tensor")
        lines = [f"{facts['method']}, {facts['ranks']}, {counted(facts['layers'], 'layer')}, {tensors}, "
                 f"made for {facts['family_title']}."]
        if triggers := triggers_of(file.metadata):
            lines.append(f"Trigger words: {', '.join(plain(word, 100) for word in triggers[:10])}.")
        lines += loading
        image = draw_norms(facts["norms"], plain(lora_name, 100), lines)
        metadata = [f"{plain(key, 100)}: {plain(value, 400)}" for key, value in sorted(file.metadata.items())[:200]]
        report = "\n".join([*lines, *(["Metadata:", *metadata] if metadata else ["The file has no metadata."])])
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]
        return io.NodeOutput(pixels, report, ui={**ui.PreviewImage(pixels, cls=cls).as_dict(), "text": [report]})


def describe_tensors(file, weights: dict[str, str]) -> dict:
    """What the tensors say: method, ranks, layers, family, and the norm of the change per block. `weights` has a model's
    names for the file's layers, as far as one is known."""
    header = {key: {"shape": list(tensor.shape)} for key, tensor in file.tensors.items()}
    family = family_of(header, file.metadata)
    ranks, layers = ranks_of(header), layers_of(file.tensors)
    scales = {layer: file.scale(layer, parts) for layer, parts in layers.items()}
    spread = ", ".join(f"{rank} ({counted(count, 'layer')})" for rank, count in ranks.most_common(3))
    return {
        "method": method_of(header), "ranks": f"rank {spread}" if ranks else "no rank", "layers": len(layers),
        "family_title": TITLES.get(family, "a family that it does not tell"),
        "norms": norms_by_block(file.tensors, family, scales, weights),
    }
