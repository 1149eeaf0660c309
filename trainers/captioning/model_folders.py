"""Folders of caption models: which kind they are, and whether they are complete. Reads small files only."""
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..artifacts.tensor_header import read_header
from ..errors import UserError
from ..families.component_configs import read_object
from ..families.recognition import fingerprint
from ..spec.captioning import CaptionerFolderSpec


@dataclass(frozen=True)
class Kind:
    title: str
    models: str
    """Where people find some, in words."""


KINDS = {
    "blip": Kind("BLIP", "Salesforce/blip-image-captioning-base or -large"),
    "blip2": Kind("BLIP-2", "Salesforce/blip2-opt-2.7b or blip2-flan-t5-xl"),
    "git": Kind("GIT", "microsoft/git-base-coco or git-large-coco"),
    "florence2": Kind("Florence-2", "florence-community/Florence-2-base-ft or -large-ft"),
    "vision_language": Kind("vision-language", "Qwen/Qwen2.5-VL-3B-Instruct or HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    "tagger": Kind("tagger", "SmilingWolf/wd-eva02-large-tagger-v3 or wd-vit-tagger-v3"),
}
MODEL_TYPES = {"blip": "blip", "blip-2": "blip2", "git": "git", "florence2": "florence2"}
OTHER_TASKS = ("QuestionAnswering", "ImageTextRetrieval", "VisionModel", "QFormerModel")
"""Ends of the names of BLIP's and BLIP-2's classes that write no captions."""
TAG_FILES = ("selected_tags.csv", "tags.txt")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "chat_templates")
LONGEST = 50_000_000
"""Bytes of a config or of an index of shards."""
SUFFIXES = frozenset({".json", ".safetensors", ".bin", ".onnx", ".csv", ".txt", ".model", ".jinja"})


def where_to_put(kind: str) -> str:
    """The sentence for whoever has no model of a kind yet."""
    files = ("model.onnx and selected_tags.csv" if kind == "tagger" else
             "its .json, .txt, .jinja, .model and .safetensors files")
    return (f"Make a folder in ComfyUI's models/captioners, put all files of a {KINDS[kind].title} model from "
            f"huggingface.co into it ({files}; for example of {KINDS[kind].models}), and refresh the node list.")


def kind_of(folder: Path) -> str | None:
    """Which captioner reads a folder; None when none does. For lists: a look at names and at config.json."""
    config = folder / "config.json"
    try:
        if onnx_file(folder) and any((folder / name).is_file() for name in TAG_FILES):
            return "tagger"
        return _kind_of_config(str(config), config.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1000)
def _kind_of_config(path: str, modified: int) -> str | None:
    """The time is an argument so that a changed file is read again."""
    config = read_config(Path(path))
    if config is None:
        return None
    names = config.get("architectures")
    kind, classes = MODEL_TYPES.get(str(config.get("model_type"))), [str(each) for each in names] if (
        isinstance(names, list)) else []
    if kind:
        return None if any(each.endswith(OTHER_TASKS) for each in classes) else kind
    sees = any(word in key for key in config for word in ("vision", "image", "visual"))
    return "vision_language" if sees and any("Generation" in each or "CausalLM" in each for each in classes) else None


def read_config(path: Path) -> dict | None:
    return read_object(path, LONGEST)


def onnx_file(folder: Path) -> Path | None:
    """model.onnx, or the only ONNX file."""
    files = sorted(folder.glob("*.onnx"))
    named = [file for file in files if file.name == "model.onnx"]
    return named[0] if named else files[0] if len(files) == 1 else None


def inspect_folder(kind: str, folder: Path, name: str) -> CaptionerFolderSpec:
    """The folder of a complete model. Raises UserError that says which file is missing or which kind it is instead."""
    title = KINDS[kind].title
    found = kind_of(folder)
    if found != kind:
        if found is None and kind == "tagger":
            raise UserError(f"{name!r} is no tagger: it needs model.onnx and {' or '.join(TAG_FILES)}. {where_to_put(kind)}")
        if found is None:
            raise UserError(f"{name!r} is no {title} model: its config.json is missing, damaged or of another kind. "
                            f"{where_to_put(kind)}")
        raise UserError(f"{name!r} is a {KINDS[found].title} model, and this node reads {title} models. Use the node for "
                        f"{KINDS[found].title}, or choose another model.")
    if kind != "tagger":
        _require_parts(kind, folder, name)
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    return CaptionerFolderSpec(name=name, path=str(folder), fingerprint=fingerprint(files, folder))


def _require_parts(kind: str, folder: Path, name: str):
    config, again = read_config(folder / "config.json") or {}, f"Put all files of the model's page into the folder {name!r}"
    vision = config.get("vision_config")
    if kind == "florence2" and isinstance(vision, dict) and vision.get("model_type") == "davit":
        raise UserError(
            f"{name!r} is Florence-2 in Microsoft's first layout, which only runs with program code from the model's page. "
            f"This node runs none. Use the same model as transformers knows it: {KINDS[kind].models}.")
    if not any((folder / file).is_file() for file in PROCESSOR_FILES):
        raise UserError(f"{name!r} does not say how images are prepared: preprocessor_config.json is missing. {again}.")
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise UserError(f"{name!r} has no tokenizer: tokenizer.json (or vocab.txt) is missing. {again}.")
    if kind == "vision_language" and not _has_template(folder):
        raise UserError(f"{name!r} has no chat template, which says how an image and an instruction are put to the model: "
                        f"chat_template.jinja (or .json) is missing. {again}, or choose a model that ends in Instruct.")
    _require_weights(folder, name, again)


def _has_template(folder: Path) -> bool:
    configs = (read_config(folder / file) or {} for file in ("tokenizer_config.json", *PROCESSOR_FILES))
    return any((folder / file).exists() for file in TEMPLATE_FILES) or any("chat_template" in each for each in configs)


def _require_weights(folder: Path, name: str, again: str):
    """Whole files in an order of preference; transformers looks for them in the same one."""
    for file in ("model.safetensors", "pytorch_model.bin"):
        parts, index = [file], read_config(folder / f"{file}.index.json")
        if not (folder / file).is_file() and index is not None:
            places = index.get("weight_map")
            parts = sorted({str(part) for part in places.values()}) if isinstance(places, dict) else parts
            missing = [part for part in parts if Path(part).name != part or not (folder / part).is_file()]
            if missing:
                raise UserError(f"{name!r} is incomplete: {missing[0]} is missing, one of {len(parts)} files. {again}.")
        if (folder / parts[0]).is_file():
            for part in parts:
                if part.endswith(".safetensors"):
                    read_header(folder / part)
            return
    raise UserError(f"{name!r} has no weights: model.safetensors is missing. {again}.")
