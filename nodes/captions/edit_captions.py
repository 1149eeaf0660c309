"""Captions corrected on their way, and written back beside their images."""
import hashlib
import json
from pathlib import Path

from comfy_api.latest import io

from ...trainers.data.captions import sidecars
from ...trainers.data.captions.caption_editing import (
    FRONT,
    PLACES,
    TagEdit,
    caption_lines,
    describe_changes,
    edit_by_hand,
    edit_tags,
    place_trigger,
    tag_list,
)
from ...trainers.data.captions.text_replacement import Replacement, replace_in_captions
from ...trainers.errors import UserError
from ...trainers.words import listed, shown
from .. import host, sockets
from ..widgets import Schema

CATEGORY = "FineTune/captions"
LOOK = "show what would change"


def dataset_input() -> io.Input:
    return sockets.Dataset.Input("dataset", tooltip="Images with captions: Load Image Dataset, or another caption node.")


def outputs() -> list:
    return [
        sockets.Dataset.Output(display_name="edited",
                               tooltip="The dataset with these captions, for the next caption node or a Train node. The "
                                       "files on the disk stay as they are."),
        io.String.Output(display_name="captions", tooltip="All captions as text, one line for each image."),
    ]


def edited(node_id: str, before, after) -> io.NodeOutput:
    """What every editing node gives and shows."""
    lines, report = caption_lines(after), describe_changes(before, after)
    host.NodeProgress(node_id).show(report)
    return io.NodeOutput(after, "\n".join(lines), ui={"text": [report], "captions": lines})


class TriggerWord(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneTriggerWord",
            display_name="Trigger Word in Captions",
            category=CATEGORY,
            search_aliases=("trigger word", "activation word", "token"),
            description="Puts the word that will call up what is trained into every caption that lacks it: in front, at the "
                        "end, or where the caption names the subject's class.",
            inputs=[
                dataset_input(),
                io.String.Input("trigger", default="ohwx",
                                tooltip="A rare word such as 'ohwx' does not disturb others. Captions that hold it already "
                                        "stay as they are."),
                io.Combo.Input("place", options=list(PLACES), default=FRONT,
                               tooltip="front: 'ohwx, a dog'. back: 'a dog, ohwx'. before class word: 'a ohwx dog', the "
                                       "usual one for a subject. instead of class word: 'a ohwx'."),
                io.String.Input("class_word", default="",
                                tooltip="The word that the captions use for the subject, for example dog. Only for the last "
                                        "two places; captions without it get the trigger in front."),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, trigger, place, class_word):
        return edited(cls.hidden.unique_id, dataset, place_trigger(dataset, trigger.strip(), place, class_word.strip()))


class ReplaceInCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneReplaceInCaptions",
            display_name="Replace in Captions",
            category=CATEGORY,
            search_aliases=("find and replace", "regex", "prefix", "suffix"),
            description="Finds words in all captions and puts others in their place, by plain words or by a regular "
                        "expression, and puts text around every caption.",
            inputs=[
                dataset_input(),
                io.String.Input("find", default="", tooltip="The words to look for; empty to replace nothing."),
                io.String.Input("replace", default="",
                                tooltip="What takes their place; empty to leave them out. With regular_expression, \\1 is "
                                        "what the first brackets matched."),
                io.Boolean.Input("regular_expression", default=False,
                                 tooltip="On: find is a pattern, for example \\bcats?\\b. A pattern that takes too long is "
                                         "stopped."),
                io.Boolean.Input("whole_words", default=True,
                                 tooltip="On: 'cat' is not found in 'catalog'. Not read with regular_expression."),
                io.Boolean.Input("match_case", default=False, tooltip="On: 'Cat' is not found by 'cat'."),
                io.String.Input("prefix", default="",
                                tooltip="Put in front of every caption as it stands here, with its blanks and commas. "
                                        "Captions that begin with it stay as they are."),
                io.String.Input("suffix", default="",
                                tooltip="Put behind every caption. Captions that end with it stay as they are."),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, find, replace, regular_expression, whole_words, match_case, prefix, suffix):
        rule = Replacement(find, replace, regular_expression, whole_words, match_case, prefix, suffix)
        return edited(cls.hidden.unique_id, dataset, replace_in_captions(dataset, rule))


class EditTags(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        listing = "Tags with commas between them, or one a line. * stands for anything: *hair finds 'long hair'."
        return Schema(
            node_id="FineTuneEditTags",
            display_name="Edit Tags",
            category=CATEGORY,
            search_aliases=("remove tags", "sort tags", "booru tags"),
            description="For captions that are lists of tags: removes, keeps, sorts and shortens them. A trigger word that "
                        "is the first tag stays the first.",
            inputs=[
                dataset_input(),
                io.String.Input("remove", multiline=True, default="", tooltip=f"Tags that go. {listing}"),
                io.String.Input("keep_only", multiline=True, default="",
                                tooltip=f"If not empty, all other tags go. {listing}"),
                io.String.Input("move_to_front", multiline=True, default="",
                                tooltip=f"Tags that come first, in this order, where a caption has them. {listing}"),
                io.Boolean.Input("deduplicate", default=True, tooltip="A tag that comes twice in a caption stays once."),
                io.Combo.Input("order", options=["as they are", "alphabetical", "most frequent first"],
                               default="as they are",
                               tooltip="Encoders read the front most closely and cut the end. most frequent first counts "
                                       "over the whole dataset."),
                io.Int.Input("maximum_tags", default=0, min=0, max=1000,
                             tooltip="Tags in a caption at the most; 0 for all."),
                io.Int.Input("keep_first", default=0, min=0, max=1000,
                             tooltip="So many tags at the front stay there whatever else is set."),
                io.String.Input("separator", default=",", tooltip="What stands between tags."),
            ],
            outputs=outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, remove, keep_only, move_to_front, deduplicate, order, maximum_tags, keep_first, separator):
        rule = TagEdit(keep_first, tag_list(remove), tag_list(keep_only), deduplicate, order, tag_list(move_to_front),
                       maximum_tags, separator)
        return edited(cls.hidden.unique_id, dataset, edit_tags(dataset, rule))


class EditCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneEditCaptions",
            display_name="Edit Captions by Hand",
            category=CATEGORY,
            search_aliases=("edit captions", "manual captions"),
            description="Captions typed by hand for single images. Queue once, press 'Fill with the captions', correct "
                        "them, and queue again. They travel with the workflow.",
            inputs=[
                dataset_input(),
                io.String.Input("edits", multiline=True, default="",
                                tooltip="One line for each image that gets another caption: 'file name: new caption'. "
                                        "Images without a line keep theirs."),
            ],
            outputs=outputs(),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, edits):
        return edited(cls.hidden.unique_id, dataset, edit_by_hand(dataset, edits))


# ---- on the disk ---------------------------------------------------------------------------------------------------

WRITE, WRITE_MISSING = "write changed captions", "write missing captions only"
UNDO, UNDO_REST = "undo the last write", "undo it, but keep files changed since"


class WriteCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneWriteCaptions",
            display_name="Write Captions",
            category=CATEGORY,
            search_aliases=("save captions", "txt files", "sidecar"),
            description="Writes the captions into .txt files beside the images, for other programs and other graphs. "
                        "Every file that changes is kept in a backup, and Undo Write Captions brings it back.",
            is_output_node=True,
            inputs=[
                dataset_input(),
                io.Combo.Input("action", options=[LOOK, WRITE, WRITE_MISSING], default=LOOK,
                               tooltip="show: nothing is written. write changed: files with another caption, and missing "
                                       "ones. write missing only: no file that is there changes."),
            ],
            outputs=[
                sockets.Dataset.Output(display_name="written",
                                       tooltip="The dataset, with the captions as the files have them where this node "
                                               "wrote them."),
                io.String.Output(display_name="report", tooltip="Which files were written, and where the backup is."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(cls, dataset, action):
        if action not in (LOOK, WRITE, WRITE_MISSING):
            raise UserError(f"action is {action!r}. Choose one of: {LOOK}, {WRITE}, {WRITE_MISSING}.")
        folders = list(dict.fromkeys(host.own_dataset_folder(Path(image.path)) for image in dataset.images))
        edits = upstream(cls.hidden.prompt, cls.hidden.unique_id)
        plan = sidecars.plan_write(dataset, folders, action == WRITE_MISSING, edits)
        backups = [] if action == LOOK else sidecars.write_sidecars(plan, folders, edits)
        report = describe_write(plan, backups, action == LOOK)
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(plan.dataset, report, ui={"text": [report]})


def upstream(prompt: dict | None, node_id: str) -> str:
    """SHA-256 over the widgets of all nodes before this one: what makes the captions, apart from the files."""
    links = [node_id]
    for name in links:  # grows while it is walked
        for value in ((prompt or {}).get(name) or {}).get("inputs", {}).values():
            if isinstance(value, list) and len(value) == 2 and value[0] in prompt and value[0] not in links:
                links.append(value[0])
    nodes = [[name, prompt[name]["class_type"], prompt[name]["inputs"]] for name in links[1:]] if prompt else []
    return hashlib.sha256(json.dumps(nodes, sort_keys=True).encode()).hexdigest() if nodes else ""


def describe_write(plan: sidecars.Plan, backups: list[Path], only_looked: bool, most: int = 8) -> str:
    new = sum(change.old is None for change in plan.changes)
    verb = "would be" if only_looked else "were"
    lines = [f"Caption files that {verb} written: {len(plan.changes)}, new ones among them: {new}, unchanged: "
             f"{plan.unchanged}."]
    lines += [f"Backup: {backup.parent.parent.name}/{backup.parent.name}/{backup.name}." for backup in backups]
    lines += [f"{note[0].upper()}{note[1:]}." for note in plan.notes]
    lines += [f"{shown(change.file.name)}: {'(no file)' if change.old is None else change.old or '(empty)'} → "
              f"{change.new or '(empty)'}" for change in plan.changes[:most]]
    return "\n".join(lines + ([f"… and {len(plan.changes) - most} more"] if len(plan.changes) > most else []))


class UndoWriteCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneUndoWriteCaptions",
            display_name="Undo Write Captions",
            category=CATEGORY,
            search_aliases=("restore captions", "backup"),
            description="Puts the caption files of a folder back as they were before the last Write Captions, byte by byte. "
                        "Queued again, it takes back the write before that.",
            is_output_node=True,
            inputs=[
                io.Combo.Input("folder", options=[each for each in host.dataset_choices() if each.count("/") == 1],
                               tooltip="The folder whose captions were written."),
                io.Combo.Input("action", options=[LOOK, UNDO, UNDO_REST], default=LOOK,
                               tooltip="show: nothing changes. undo: stops where a file was changed after it was written. "
                                       "undo, but keep: leaves those files alone. Each queue takes one more write back."),
            ],
            outputs=[io.String.Output(display_name="report", tooltip="Which files were restored or removed.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        backups = host.dataset_folder(inputs["folder"]) / sidecars.BACKUPS
        return sorted((file.parent.name, file.stat().st_mtime_ns) for file in backups.glob(f"*/{sidecars.JOURNAL}"))

    @classmethod
    def execute(cls, folder, action):
        if action not in (LOOK, UNDO, UNDO_REST):
            raise UserError(f"action is {action!r}. Choose one of: {LOOK}, {UNDO}, {UNDO_REST}.")
        path = host.dataset_folder(folder)
        undo = sidecars.last_write(path) if action == LOOK else sidecars.undo_last_write(path, action == UNDO_REST)
        report = describe_undo(undo, action == LOOK)
        host.NodeProgress(cls.hidden.unique_id).show(report)
        return io.NodeOutput(report, ui={"text": [report]})


def describe_undo(undo: sidecars.Undo | None, only_looked: bool) -> str:
    if undo is None:
        return "Nothing was written into this folder that could be taken back."
    verb = "would be" if only_looked else "were"
    lines = [f"The write of {undo.written}: files that {verb} restored: {len(undo.restored)}, files that it had made and "
             f"that {verb} removed: {len(undo.removed)}."]
    if undo.changed_since:
        lines.append(f"Changed since, and kept: {listed(undo.changed_since, 8)}.")
    return "\n".join(lines + ([f"Earlier writes that can be taken back too: {undo.earlier}."] if undo.earlier else []))
