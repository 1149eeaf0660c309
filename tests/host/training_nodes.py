"""Run as a script with a folder of ComfyUI and a folder for files: what the Train nodes make of their widgets.

    python tests/host/training_nodes.py COMFYUI FOLDER

Writes FOLDER/results.json; test_training_nodes.py says what must be in it. A process of its own, because ComfyUI's modules
would stay in the tests' process.
"""
import inspect
import json
import sys
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack, use_scripts  # noqa: E402

become_host(Path(sys.argv[1]))
sys.path.append(str(ROOT / "tests"))
load_pack()
use_scripts()
import folder_paths  # noqa: E402
from comfy_api.latest import _io, io  # noqa: E402

FOLDER = Path(sys.argv[2])
folder_paths.set_output_directory(str(FOLDER))

from finetune import nodes  # noqa: E402
from finetune.nodes import host  # noqa: E402
from finetune.nodes.train import run_training  # noqa: E402
from finetune.nodes.widgets import widget  # noqa: E402
from finetune.trainers import spec as specs  # noqa: E402
from finetune.trainers.data.manifest import scan_folder  # noqa: E402
from finetune.trainers.errors import UserError  # noqa: E402
from finetune.trainers.families.recognition import recognize  # noqa: E402
from finetune.trainers.spec.blocks import BlockNames  # noqa: E402
from finetune.trainers.spec.part import number  # noqa: E402
from pydantic import Field  # noqa: E402

NODES = {node.define_schema().node_id: node for node in nodes.NODES}
DATASET = scan_folder(str(ROOT / "example_datasets" / "openmoji"), "openmoji", "noto")
SMALL = recognize(str(ROOT / "demo_base"), "demo_base")
LARGE = specs.BaseModelSpec(family="sdxl", path="model.safetensors", name="large", layout="single_file",
                            prediction_type="epsilon", fingerprint="0")
FLOW = LARGE.model_copy(update={"family": "flux", "prediction_type": "flow", "name": "flow"})
WIDGETS = (io.Int.Input, io.Float.Input, io.String.Input, io.Boolean.Input, io.Combo.Input)


class Asked(Exception):
    """Instead of a training: its spec and what is said before it."""


def ask(spec, node_id, load_check, lines=()):
    raise Asked(spec, lines)


run_training.run_training = ask
host.NodeProgress.show = lambda *texts: None  # there is no page


def queue(name: str, **inputs) -> io.NodeOutput:
    """Execute a node as the host does, with its defaults for all other inputs."""
    node, hidden = NODES[name], {io.Hidden.unique_id: "9"}
    newer = hasattr(_io.HiddenHolder, "from_v3_data")
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden} if newer else hidden)
    for each in node.define_schema().inputs:
        if each.id not in inputs and not each.optional:
            inputs[each.id] = each.default
    return clone.execute(**inputs)


def asked(name: str, base=SMALL, **inputs) -> tuple[dict, list[str]]:
    """What a Train node would run: (spec, lines)."""
    try:
        queue(name, base=base, dataset=DATASET, **inputs)
    except Asked as question:
        spec, lines = question.args
        return spec.model_dump(mode="json", exclude={"dataset", "folders"}), list(lines)


def schema_facts() -> dict:
    return {name: {
        "category": schema.category, "folder": Path(inspect.getfile(node)).parent.name, "display_name": schema.display_name,
        "aliases": schema.search_aliases,
        "open": [each.id for each in schema.inputs or ()
                 if isinstance(each, WIDGETS) and not each.extra_dict.get("advanced")],
        "widgets": [each.id for each in schema.inputs or () if isinstance(each, WIDGETS)],
        "sockets": {each.id: each.get_io_type() for each in schema.inputs or () if not isinstance(each, WIDGETS)},
        "outputs": [each.get_io_type() for each in schema.outputs or ()],
    } for name, node in NODES.items() for schema in [node.define_schema()]}


FACTS = schema_facts()
TRAIN = [name for name, facts in FACTS.items() if facts["category"] == "FineTune/train"]
SETTINGS = [name for name, facts in FACTS.items() if facts["category"] == "FineTune/settings"]


def neutral() -> dict:
    """(Train node, settings node, preset) → whether connecting it changes the spec or what is said."""
    found = {}
    for train in TRAIN:
        for preset in ("custom", "recommended for the base"):
            for base in (SMALL, LARGE):
                widgets = {"preset": preset, "preview_prompts": "a lion", "training_seed": 7, "base": base}
                alone = asked(train, **widgets)
                for settings in SETTINGS:
                    kind = FACTS[settings]["outputs"][0]
                    socket = next((name for name, each in FACTS[train]["sockets"].items() if each == kind), None)
                    if socket is None:
                        continue
                    connected = asked(train, **widgets, **{socket: queue(settings).args[0]})
                    found[f"{train}, {settings}, {preset}, {base.name}"] = connected == alone
    return found


def presets() -> dict:
    """Train node → by base: spec and lines with every widget as it comes."""
    return {train: {base.name: asked(train, base) for base in (SMALL, LARGE)} for train in TRAIN}


def special() -> dict:
    settings = {name: queue(node, **widgets).args[0] for name, (node, widgets) in {
        "prodigy": ("FineTuneOptimizer", {"optimizer_name": "prodigy"}),
        "no snr": ("FineTuneObjective", {"min_snr_gamma": 0.0}),
        "debiased": ("FineTuneObjective", {"debiased_estimation": True}),
        "dora": ("FineTuneLoraSettings", {"adapter": "dora", "target_pattern": "attn2", "block_ranks": "mid=4",
                                          "lora_plus_ratio": 4.0}),
        "kept": ("FineTunePreviewsAndCheckpoints", {"preview_every": 7, "preview_seed": 5, "checkpoints_to_keep": 9,
                                                    "validation_fraction": 0.2, "negative_prompt": " gray "}),
    }.items()}
    lora, prompts = "FineTuneTrainLora", {"preview_prompts": "a lion\n\na cup", "preset": "custom"}
    return {
        "prodigy": asked("FineTuneTrainPivotal", LARGE, optimizer=settings["prodigy"])[0],
        "no snr": asked(lora, LARGE, objective=settings["no snr"])[0]["objective"]["min_snr_gamma"],
        "debiased": asked(lora, LARGE, objective=settings["debiased"])[0]["objective"],
        "dora": asked("FineTuneTrainPivotal", LARGE, lora_settings=settings["dora"], preset="custom",
                      targets="pattern")[0]["method"]["lora"],
        "kept": asked(lora, previews_and_checkpoints=settings["kept"], training_seed=3, **prompts)[0],
        "previews alone": asked(lora, **prompts)[0]["previews"],
        "class images": asked("FineTuneTrainDreamBooth", LARGE, class_images=DATASET)[0]["training"]["steps"],
        "too small": asked(lora, LARGE, preset="custom", resolution=512)[1],
        "fitting": asked(lora, LARGE, preset="custom", resolution=768)[1],
        "no prompt": refusal("FineTuneClassImages", base=SMALL),
        "flow": {node: asked(node, FLOW) for node in ("FineTuneTrainLora", "FineTuneTrainDreamBooth")},
        "own optimizer": asked("FineTuneTrainDreamBooth", FLOW, optimizer=settings["prodigy"])[0]["optimizer"]["name"],
        "goals": {goal: asked(lora, base, preset=f"recommended for a {goal}")
                  for goal, base in (("quick try", FLOW), ("style", LARGE))},
        "T5": asked("FineTuneTrainPivotal", FLOW, word_in_t5=True, training_guidance=2.0, text_length="256")[0],
        "fit without a base": refusal("FineTuneMemory", fit_into="8 GB"),
        "fit": queue("FineTuneMemory", fit_into="8 GB", base=SMALL, swapped_blocks=9, cache_days=3).args[0].model_dump(),
    }


def refusal(name: str, **inputs) -> str:
    try:
        queue(name, **inputs)
    except UserError as problem:
        return str(problem)
    return ""


class Toy(specs.Part):
    switch: bool = True
    choice: Literal["b", "a"] = "a"
    count: int = Field(8, ge=4, le=64, json_schema_extra={"step": 4})
    rate: float = number(0.5, ge=0.1, le=2, step=0.01)
    kind: str = Field("y", json_schema_extra={"options": ["x", "y"]})
    blocks: BlockNames = ()


def widgets() -> dict:
    other = widget(Toy, "rate", name="weight", default=0.7, step=0.1, lowest=-1, expert=True, preset=True, tooltip="a rate")
    assert other.optional
    made = {"switch": widget(Toy, "switch", tooltip="a switch"), "choice": widget(Toy, "choice", tooltip="a choice"),
            "kind": widget(Toy, "kind", tooltip="of a registry"),
            "count": widget(Toy, "count", tooltip="a number"), "rate": widget(Toy, "rate", tooltip="a rate"), "other": other,
            "blocks": widget(Toy, "blocks", multiline=True, tooltip="blocks")}
    return {name: [each.get_io_type(), each.id, {
        key: value for key, value in each.as_dict().items() if key not in ("socketless", "multiselect", "optional")
        and value not in (None, False)}] for name, each in made.items()}


RESULTS = {"widgets": widgets(), "facts": FACTS, "neutral": neutral(), "presets": presets(), "special": special()}
(FOLDER / "results.json").write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")
