"""The example workflow from a folder of uncaptioned images to a training run, its bypassed captioners switched on."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import workflow as workflows
from PIL import Image
from support import tiny_captioners as tiny

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "example_datasets" / "openmoji"
NAMES = ("bell", "fox", "house", "pizza", "umbrella", "whale")


@pytest.fixture
def models(host):
    """Tiny models under the names of the example; gone afterwards, with what they said, for tests that count."""
    captioners = host.base_directory / "models" / "captioners"
    made = [tiny.make_blip(captioners / "blip-image-captioning-base"), tiny.make_tagger(captioners / "wd-vit-tagger-v3")]
    yield made
    for folder in (*made, host.output / "finetune" / ".cache" / "captioning"):
        shutil.rmtree(folder)


def test_the_example_goes_from_uncaptioned_images_to_a_training(host, models):
    folder = host.input / "emoji"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.png").write_bytes((EMOJI / f"{name}.png").read_bytes())
    graph = json.loads((ROOT / "example_workflows" / "3 Caption my images.json").read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        node["mode"] = 0
    prompt = workflows.to_prompt(graph, host.object_info())
    by_type = {node["class_type"]: node for node in prompt.values()}
    by_type["FineTuneLoadImageDataset"]["inputs"]["folder"] = "input/emoji"
    by_type["FineTuneEditCaptions"]["inputs"]["edits"] = "fox.png: noto emoji of a red fox"
    by_type["FineTuneTrainLora"]["inputs"].update(name="captioned", steps=12, preview_prompts="")
    outputs = host.run(prompt)

    captions = {image["name"]: image["caption"] for image in json.loads(
        (host.output / "finetune" / "captioned" / "spec.json").read_text("utf-8"))["dataset"]["images"]}
    assert captions.pop("fox.png") == "noto emoji of a red fox"
    tagged, described = 0, set()
    for name, caption in captions.items():
        article = "an" if name == "umbrella.png" else "a"
        start = f"noto emoji of {article} {Path(name).stem}"
        assert caption.startswith(start)
        parts = caption.removeprefix(start).split(", ")[1:]
        tagged += any(tag[0].replace("_", " ") in parts for tag in tiny.TAGS)
        described.add(tuple(parts))
    assert tagged and len(described) == len(captions), "the captioners see the images"
    assert not list(folder.glob("*.txt")), "nothing in the person's folder changes"

    kinds = {key: node["class_type"] for key, node in prompt.items()}
    assert outputs[next(key for key in kinds if kinds[key] == "FineTuneTrainLora")]["lora"] == ["captioned.safetensors"]
    report = outputs[next(key for key in kinds if kinds[key] == "FineTuneDatasetReport")]["text"][0]
    assert "6 images" in report and "noto" in report
    saved = [outputs[key]["images"] for key in kinds if kinds[key] == "SaveImage"]
    assert [len(images) for images in saved] == [1, 2]
    page = np.asarray(Image.open(host.output / saved[1][0]["subfolder"] / saved[1][0]["filename"]).convert("RGB"))
    assert page.std() > 10


def test_without_models_the_bypassed_captioners_are_passed_by(host):
    graph = json.loads((ROOT / "example_workflows" / "3 Caption my images.json").read_text(encoding="utf-8"))
    kinds = {node["class_type"] for node in workflows.to_prompt(graph, host.object_info()).values()}
    assert "FineTuneCaptionFromNames" in kinds and not kinds & {"FineTuneCaptionBlip", "FineTuneTagImages"}
