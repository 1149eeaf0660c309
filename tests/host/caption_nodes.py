"""Run as a script with a folder of ComfyUI and a folder for files: the caption nodes and the report, one by one.

    python tests/host/caption_nodes.py COMFYUI FOLDER

Writes FOLDER/results.json; test_caption_nodes.py says what must be in it. A process of its own, because ComfyUI's modules
would stay in the tests' process.
"""
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.pack import become_host, load_pack, use_scripts  # noqa: E402

become_host(Path(sys.argv[1]))
sys.path.append(str(ROOT / "tests"))
load_pack()
use_scripts()
import folder_paths  # noqa: E402
from comfy_api.latest import _io, io  # noqa: E402
from server import PromptServer  # noqa: E402

FOLDER, TEXTS = Path(sys.argv[2]), []
for kind in ("input", "output", "temp"):
    (FOLDER / kind).mkdir()
    getattr(folder_paths, f"set_{kind}_directory")(str(FOLDER / kind))

from finetune import nodes  # noqa: E402
from finetune.nodes.captions import edit_captions  # noqa: E402
from finetune.nodes.host import dataset_choices, own_dataset_folder  # noqa: E402
from finetune.trainers.errors import UserError  # noqa: E402
from finetune.trainers.families.recognition import recognize  # noqa: E402
from host_events import plain  # noqa: E402
from PIL import Image  # noqa: E402
from support.generated_images import photograph  # noqa: E402

PromptServer.instance = SimpleNamespace(
    send_progress_text=lambda html, node, client: TEXTS.append(plain(html)), client_id="somebody",
    prompt_queue=SimpleNamespace(currently_running={}))
NODES = {node.define_schema().node_id: node for node in nodes.NODES}
MINE = FOLDER / "input" / "mine"


def queue(name: str, prompt: dict | None = None, **inputs) -> io.NodeOutput:
    """Execute a node as the host does, with its defaults for all other inputs."""
    node = NODES[name]
    hidden = {io.Hidden.unique_id: "9", io.Hidden.prompt: prompt}
    newer = hasattr(_io.HiddenHolder, "from_v3_data")
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden} if newer else hidden)
    for each in node.define_schema().inputs:
        if each.id not in inputs and not each.optional:
            inputs[each.id] = each.default
    return clone.execute(**inputs)


def said(name: str, **inputs) -> str:
    try:
        queue(name, **inputs)
    except UserError as problem:
        return str(problem)
    return "nothing"


def load(folder: str = "input/mine", **inputs):
    return queue("FineTuneLoadImageDataset", folder=folder, **inputs).args[0]


def captions_of(dataset) -> list[str]:
    return [image.caption for image in dataset.images]


def files() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(MINE.glob("*.txt"))}


MINE.mkdir()
for number in range(3):
    photograph(number, (128, 128)).save(MINE / f"{number}.png")
    (MINE / f"{number}.txt").write_text(f"a dog {number}")
(MINE / "2.txt").unlink()
RESULTS = {}


def editing():
    chain = queue("FineTuneTriggerWord", dataset=load(), trigger=" ohwx ", place="before class word", class_word="dog")
    chain = queue("FineTuneReplaceInCaptions", dataset=chain.args[0], find=r"(\d)", replace=r"no. \1",
                  regular_expression=True, suffix=", film")
    chain = queue("FineTuneEditTags", dataset=chain.args[0], move_to_front="film", remove="x*")
    by_hand = queue("FineTuneEditCaptions", dataset=chain.args[0], edits="1.png: mine\nother.png: lost")
    RESULTS["editing"] = {
        "tags": captions_of(chain.args[0]), "trigger": by_hand.args[0].trigger, "captions": captions_of(by_hand.args[0]),
        "text": by_hand.args[1], "ui": by_hand.ui, "shown": TEXTS[-1], "files": files(),
        "refused": [said("FineTuneTriggerWord", dataset=load(), trigger=" "),
                    said("FineTuneReplaceInCaptions", dataset=load(), find="(", regular_expression=True)],
    }


def graph(prefix: str) -> dict:
    return {"1": {"class_type": "FineTuneLoadImageDataset", "inputs": {"folder": "input/mine"}},
            "2": {"class_type": "FineTuneReplaceInCaptions", "inputs": {"dataset": ["1", 0], "find": prefix}},
            "9": {"class_type": "FineTuneWriteCaptions", "inputs": {"dataset": ["2", 0], "action": edit_captions.WRITE}}}


def write(find: str, action: str):
    edited = queue("FineTuneReplaceInCaptions", dataset=load(), find=find, replace=f"{find} {find}").args[0]
    return queue("FineTuneWriteCaptions", graph(find), dataset=edited, action=action)


def undo(action: str) -> str:
    return queue("FineTuneUndoWriteCaptions", folder="input/mine", action=action).args[0]


def writing():
    before = files()
    looked = write("dog", edit_captions.LOOK).args[1]
    untouched = files() == before and not (MINE / ".caption_backups").exists()
    first = write("dog", edit_captions.WRITE)
    once = files()
    again = write("dog", edit_captions.WRITE)
    same = files() == once
    write("a", edit_captions.WRITE)
    twice = files()
    marks = [NODES["FineTuneUndoWriteCaptions"].fingerprint_inputs(folder="input/mine", action="")]
    look = undo(edit_captions.LOOK)
    undone = undo(edit_captions.UNDO)
    marks.append(NODES["FineTuneUndoWriteCaptions"].fingerprint_inputs(folder="input/mine", action=""))
    RESULTS["writing"] = {
        "looked": looked, "untouched": untouched, "first": first.args[1], "once": once, "again": again.args[1], "same": same,
        "goes on": captions_of(again.args[0]), "twice": twice, "look": look, "undone": undone,
        "after one undo": files() == once, "a mark of its own": marks[0] != marks[1],
    }
    undo(edit_captions.UNDO)
    RESULTS["writing"]["after two"] = files() == before
    RESULTS["writing"]["nothing left"] = said("FineTuneUndoWriteCaptions", folder="input/mine", action=edit_captions.UNDO)


def refusals():
    outside = FOLDER / "outside"
    shutil.copytree(MINE, outside)
    (FOLDER / "input" / "linked").symlink_to(outside, target_is_directory=True)
    linked = said("FineTuneLoadImageDataset", folder="input/linked")
    folder_paths.add_model_folder_path("datasets", str(outside))
    named = said("FineTuneWriteCaptions", dataset=queue(
        "FineTuneTriggerWord", dataset=load("input/linked"), trigger="ohwx").args[0], action=edit_captions.WRITE)
    folder_paths.get_folder_paths("datasets").remove(str(outside))
    (MINE / "sub").symlink_to(outside, target_is_directory=True)

    def place(path: Path) -> str:
        try:
            return own_dataset_folder(path).name
        except UserError as problem:
            return str(problem)

    RESULTS["refusals"] = {
        "examples": said("FineTuneWriteCaptions", dataset=load("examples/openmoji"), action=edit_captions.WRITE),
        "linked": linked, "named": named, "named caption": (outside / "0.txt").read_text(),
        "places": [place(path) for path in (
            MINE / "0.png", MINE / "sub" / "0.png", MINE / ".." / ".." / "outside" / "0.png", outside / "0.png",
            FOLDER / "input" / "0.png", FOLDER / "output" / "x" / "0.png")],
        "actions": [said("FineTuneWriteCaptions", dataset=load(), action="all"),
                    said("FineTuneUndoWriteCaptions", folder="input/mine", action="all"),
                    said("FineTuneUndoWriteCaptions", folder="input/../outside", action=edit_captions.UNDO)],
    }


def reporting():
    base = recognize(str(ROOT / "demo_base"), "demo_base")
    found = queue("FineTuneDatasetReport", dataset=load(), resolution=256, trigger="ohwx")
    with_base = queue("FineTuneDatasetReport", dataset=load(), resolution=256, trigger="ohwx", maximum_pages=0, base=base)
    images = [FOLDER / "temp" / each["subfolder"] / each["filename"] for each in found.ui["images"]]
    RESULTS["report"] = {
        "shape": list(found.args[0].shape), "range": [float(found.args[0].min()), float(found.args[0].max())],
        "dtype": str(found.args[0].dtype), "text": found.args[1],
        "same text with a base": with_base.args[1] == found.args[1],
        "pages with no sheets": len(with_base.args[0]), "ui": found.ui["text"] == [found.args[1]],
        "saved": [Image.open(path).size for path in images],
    }


def folders():
    for name in ("proj/img/10_ohwx/a.png", "proj/reg/1_dog/b.png", "deep/a/b/c/1.png", "deeper/a/b/c/d/e/1.png",
                 "two\nlines/a.png"):
        path = FOLDER / "input" / name
        path.parent.mkdir(parents=True)
        shutil.copy(MINE / "0.png", path)
    shutil.copytree(MINE, FOLDER / "private")
    (FOLDER / "input" / "deep" / "private").symlink_to(FOLDER / "private")
    (FOLDER / "input" / "deep" / "shared").symlink_to(FOLDER / "input" / "two\nlines")
    (FOLDER / "input" / "deep" / "0.txt").symlink_to(FOLDER / "private" / "0.txt")
    shutil.copy(MINE / "0.png", FOLDER / "input" / "deep")
    whole = queue("FineTuneLoadImageDataset", folder="input/deep", subfolders="read")
    RESULTS["folders"] = {
        "choices": [each for each in dataset_choices() if each.startswith("input/")],
        "undo": [each for each in NODES["FineTuneUndoWriteCaptions"].define_schema().inputs[0].options if "proj" in each],
        "project": [image.name for image in load("input/proj").images],
        "classes": [image.name for image in load("input/proj/reg", subfolders="read").images],
        "linked": [image.name for image in whole.args[0].images], "captions": captions_of(whole.args[0]),
        "report": whole.args[1], "broken lines": queue("FineTuneLoadImageDataset", folder="input/two\nlines").args[1],
        "refused": [said("FineTuneLoadImageDataset", folder=folder) for folder in (
            "input/deep/private", "input/deep/../../private", "input", "input//", "output/x", "input/mine/0.png")],
    }


for part in (editing, writing, refusals, reporting, folders):
    part()
(FOLDER / "results.json").write_text(json.dumps(RESULTS, indent=1), encoding="utf-8")
