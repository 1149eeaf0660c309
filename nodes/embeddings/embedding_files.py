"""Learned words after the training: merging them, and libraries that keep many in order."""
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from comfy_api.latest import io

from ...trainers.artifacts.embedding import Embedding, load_embedding, merge, save_embedding
from ...trainers.artifacts.embedding_library import LONGEST, Entry, Library, read_library
from ...trainers.errors import UserError
from ...trainers.spec import checked
from ...trainers.words import counted, listed, one_line
from .. import host, sockets
from ..widgets import Schema, advanced

NONE = "none"
ROWS = 4
CATEGORY = "FineTune/embeddings"


class MergeEmbeddings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        choices, rows = [NONE, *host.embedding_choices()], []
        for row in range(1, ROWS + 1):
            rows += [
                io.Combo.Input(f"embedding_{row}", options=choices, default=NONE,
                               tooltip="A file in models/embeddings. An embedding connected to this row "
                                       "counts instead."),
                io.Float.Input(f"weight_{row}", default=1.0, min=-4.0, max=4.0, step=0.05,
                               tooltip="Its part of the average: the weights are divided by their sum. Below 0 leads away "
                                       "from it."),
            ]
        return Schema(
            node_id="FineTuneMergeEmbeddings",
            display_name="Merge Embeddings",
            category=CATEGORY,
            search_aliases=("textual inversion", "ti", "combine embeddings"),
            description="One embedding from two to four: the weighted average of their vectors, saved as a new file. All "
                        "must be made for the same kind of model and have equally many vectors.",
            is_output_node=True,
            inputs=[
                io.String.Input("name", default="merged_word",
                                tooltip="Names the file in models/embeddings. A name that is taken gets -2, -3, …"),
                *rows,
                *(sockets.Embedding.Input(f"connected_{row}", optional=True,
                                        tooltip=f"An embedding from a Train node or another merge, in row {row}.")
                  for row in range(1, ROWS + 1)),
                advanced(io.Combo.Input("file_precision", options=["fp32", "fp16", "bf16"], default="fp32", optional=True,
                                        tooltip="Precision of the saved file, which is small in any case.")),
            ],
            outputs=[
                sockets.Embedding.Output(display_name="embedding", tooltip="For another merge."),
                io.String.Output(display_name="embedding_name", tooltip="The file's name without its ending."),
                io.String.Output(display_name="prompt", tooltip="embedding:name, as prompts call the word."),
                io.String.Output(display_name="summary", tooltip="What was merged, in which shares."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        paths = [host.embedding_path(inputs.get(f"embedding_{row}") or NONE) for row in range(1, ROWS + 1)]
        return [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path]

    @classmethod
    def execute(cls, name, file_precision="fp32", **rows):
        name, chosen = file_name(name), {}
        for row in range(1, ROWS + 1):
            choice, connected = rows[f"embedding_{row}"], rows.get(f"connected_{row}")
            if connected is not None:
                chosen[row] = (f"connected_{row}", connected)
            elif choice != NONE:
                chosen[row] = (choice, read(existing(choice)))
        if len(chosen) < 2:
            raise UserError("A merge needs at least two embeddings. Choose files in two of the rows, or connect embeddings.")
        names, embeddings = zip(*chosen.values())
        weights = [rows[f"weight_{row}"] for row in chosen]
        tensors, total = merge(embeddings, weights, names), sum(weights)
        shares = [f"{weight / total:.0%} {each}" for each, weight in zip(names, weights)]
        triggers = list(dict.fromkeys(each.trigger for each in embeddings if each.trigger))
        metadata = {"modelspec.title": name, "modelspec.description": f"Merged: {', '.join(shares)}",
                    "modelspec.trigger_phrase": " + ".join(triggers), "ss_sd_model_name": embeddings[0].base}
        if architecture := embeddings[0].metadata.get("modelspec.architecture"):
            metadata["modelspec.architecture"] = architecture
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.safetensors"
            save_embedding(file, tensors, file_precision, {key: value for key, value in metadata.items() if value})
            placed, merged = host.place("embedding", file, name).name, load_embedding(file)
        prompt = host.embedding_prompt(placed)
        lines = [f"{prompt} calls {counted(merged.vectors, 'vector')} for {merged.family}: {', '.join(shares)}."]
        lines += [f"{each}: {note}." for each, embedding in zip(names, embeddings) for note in embedding.notes]
        summary = "\n".join(dict.fromkeys(lines))
        host.NodeProgress(cls.hidden.unique_id).show(summary)
        return io.NodeOutput(merged, prompt.removeprefix("embedding:"), prompt, summary, ui={"text": [summary]})


class SaveEmbeddingLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneSaveEmbeddingLibrary",
            display_name="Save Embedding Library",
            category=CATEGORY,
            search_aliases=("textual inversion", "ti", "embedding list"),
            description="Writes a JSON file that maps names of your own choice to embedding files, with their trigger words "
                        "and bases. It lies in models/embeddings/libraries and can be shared with the files.",
            is_output_node=True,
            inputs=[
                io.String.Input("library_name", default="my_words",
                                tooltip="Names the JSON file. A name that is taken by another library gets -2, -3, …"),
                io.String.Input("embeddings", default="", multiline=True,
                                tooltip="One a line: a file in models/embeddings, or name = file to give it a name of your "
                                        "own. Connect embedding_name of a Train node, or leave empty for all files."),
            ],
            outputs=[
                io.String.Output(display_name="library_name", tooltip="The name it was saved under."),
                io.String.Output(display_name="list", tooltip="The entries, one a line."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.embedding_choices()

    @classmethod
    def execute(cls, library_name, embeddings):
        name, entries, notes, files = file_name(library_name), {}, [], spelled()
        lines = [line.strip() for line in embeddings.splitlines() if line.strip()]
        for line in lines or host.embedding_choices():
            label, _, file = (part.strip() for part in line.rpartition("=")) if lines else ("", "", line)
            try:
                file = existing(file, files)
                label = label or Path(file).stem
                if label in entries:
                    raise UserError(f"Two embeddings are called {label!r}. Write another name in front of one of them, for "
                                    f"example {label}2 = {file}.")
                embedding = read(file)
                entries |= checked(Library, embeddings={label: entry_of(file, embedding)}).embeddings
            except UserError as problem:
                if lines:
                    raise
                notes.append(f"left out: {one_line(line)}: {problem}")  # one file does not keep all others out
            else:
                notes += [f"{label}: {note}." for note in embedding.notes]
        if not entries:
            raise UserError("There are no embeddings yet. Train one, or put files into models/embeddings.")
        library = checked(Library, embeddings=entries)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{name}.json"
            file.write_text(library.text(), encoding="utf-8")
            placed = host.place_library(file, name)
        report = "\n".join([listing(library, entries), *notes])
        host.NodeProgress(cls.hidden.unique_id).show(f"saved as {placed}\n{report}")
        return io.NodeOutput(placed, report, ui={"text": [report]})


class LoadEmbeddingLibrary(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return Schema(
            node_id="FineTuneLoadEmbeddingLibrary",
            display_name="Load Embedding Library",
            category=CATEGORY,
            search_aliases=("textual inversion", "ti", "embedding list"),
            description="Write prompts with the names of a library: they become embedding:file wherever they stand. Lists "
                        "what the library holds and names files that are missing.",
            inputs=[
                io.Combo.Input("library", options=host.library_choices() or [NONE],
                               tooltip="JSON files in models/embeddings/libraries, made by Save Embedding Library."),
                io.String.Input("entry", default="", tooltip="A name of the library; empty for the first."),
                io.String.Input("text", default="{}", multiline=True,
                                tooltip="A prompt. {} becomes the chosen entry; names of other entries, as whole words, "
                                        "become their embeddings too."),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="The text with embedding:file in it, for CLIP Text Encode."),
                sockets.Embedding.Output(display_name="embedding", tooltip="The chosen entry, for Merge Embeddings."),
                io.String.Output(display_name="trigger", tooltip="The word that the chosen entry had in its training."),
                io.String.Output(display_name="all_prompts", is_output_list=True,
                                 tooltip="The text once for every entry whose file is there: what follows runs once for "
                                         "each, which shows the whole library."),
                io.String.Output(display_name="list", tooltip="The entries, one a line, with files that are missing."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return host.library_path(inputs["library"]).stat().st_mtime_ns, host.embedding_choices()

    @classmethod
    def execute(cls, library, entry, text):
        content = read_library(host.library_path(library))
        entries, name = content.embeddings, entry.strip() or next(iter(content.embeddings))
        if name not in entries:
            raise UserError(f"The library {library!r} has no entry {name!r}. It has: {listed(list(entries), 20)}.")
        there = {label: each for label, each in entries.items() if host.embedding_path(each.file)}
        report = listing(content, there)
        host.NodeProgress(cls.hidden.unique_id).show(report)
        if name not in there:
            raise UserError(f"The file {entries[name].file!r} of {name!r} is missing. Put it into models/embeddings, under "
                            "that name, and queue again.")

        filled = content.fill(text, host.embedding_prompt)  # once: what remains is the place of the entry
        prompts = {label: filled.replace("{}", host.embedding_prompt(each.file)) for label, each in there.items()}
        embedding = read(entries[name].file)
        report = "\n".join([report, *(f"{name}: {note}." for note in embedding.notes)])
        return io.NodeOutput(prompts[name], embedding, entries[name].trigger, list(prompts.values()), report,
                             ui={"text": [report]})


def file_name(name: str) -> str:
    """A typed name as that of a file which prompts can call; refused when it could not or would leave its folder."""
    name = name.strip()
    if not re.fullmatch(r"[^\W_][\w.+\-]{0,99}", name) or name.endswith("."):
        raise UserError(f"name is {name!r}; use letters, digits and . _ + - only, and begin with a letter or digit. Prompts "
                        "cannot call a name with spaces.")
    return name


def spelled() -> dict[str, str]:
    """What people may write for a file, with or without its ending → its entry in the host's list."""
    found: dict[str, str] = {}
    for choice in host.embedding_choices():
        for name in (choice, choice.rpartition(".")[0], choice.replace("\\", "/")):
            found.setdefault(name, choice)
    return found


def existing(name: str, files: Mapping[str, str] | None = None) -> str:
    """The entry of the host's list for a file that a person named. `files` is `spelled()`, where it is asked often."""
    files = spelled() if files is None else files
    if name in files:
        return files[name]
    raise UserError(f"The embedding {name!r} is not there. Put the file into models/embeddings, refresh the node list, and "
                    "choose it.")


def read(choice: str) -> Embedding:
    """A file of the host's list. Raises UserError when it is no embedding."""
    path = host.embedding_path(choice)
    if path is None:
        raise UserError(f"{choice!r} is gone, or is none of the files that are read here: .safetensors, .pt and .bin.")
    return load_embedding(path)


def entry_of(file: str, embedding: Embedding) -> Entry:
    """What a library keeps of a file; what the file says about itself may be of any length."""
    base = embedding.base or embedding.family
    return checked(Entry, file=file, trigger=one_line(embedding.trigger)[:LONGEST], base=one_line(base)[:LONGEST],
                   vectors=embedding.vectors)


def listing(library: Library, there: Collection[str]) -> str:
    """The entries as people read them; `there` are the names of those whose files are in their places."""
    lines = []
    for name, entry in library.embeddings.items():
        facts = [host.embedding_prompt(entry.file), counted(entry.vectors, "vector"), entry.base]
        facts += [f"learned as {entry.trigger!r}"] if entry.trigger else []
        missing = "" if name in there else f" · MISSING: put {entry.file} into models/embeddings"
        lines.append(f"{name}: {', '.join(fact for fact in facts if fact)}{missing}")
    return "\n".join(lines)
