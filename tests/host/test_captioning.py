"""Captioners in a real ComfyUI: found in models/captioners, asked once, and trained with."""
import json

import pytest
from host_server import NodeFailed, PromptInterrupted
from support import tiny_captioners as tiny
from support.graphs import reached, training

MADE = ("blip", "git", "tagger", "llava")


@pytest.fixture(scope="module")
def models(host):
    """Tiny models in the server's own folder; the frontend would press R to see them."""
    return {name: tiny.MAKERS[name](host.base_directory / "models" / "captioners" / name) for name in MADE}


@pytest.fixture
def images(host):
    tiny.make_images(host.input / "uncaptioned")
    return {"class_type": "FineTuneLoadImageDataset", "inputs": {
        "folder": "input/uncaptioned", "trigger": "ohwx", "default_caption": "", "repeats": 1}}


def tags(**widgets) -> dict:
    return {"class_type": "FineTuneTagImages", "inputs": {
        "dataset": ["data", 0], "captioner": "captioners/tagger", "general_threshold": 0.5, "character_threshold": 0.85,
        "mode": "replace", "keep_underscores": False, "exclude": "", "batch_size": 2, **widgets}}


def sentences(node: str, model: str, **widgets) -> dict:
    return {"class_type": node, "inputs": {
        "dataset": ["tags", 0], "captioner": f"captioners/{model}", "prompt": "", "mode": "behind", "maximum_tokens": 8,
        "beams": 1, "repetition_penalty": 1.0, "batch_size": 2, **widgets}}


def shown(node: str) -> dict:
    return {"class_type": "PreviewAny", "inputs": {"source": [node, 1]}}


def captions_of(outputs: dict, node: str = "show") -> dict[str, str]:
    return dict(line.split(": ", 1) for line in outputs[node]["text"][0].splitlines())


def test_an_uncaptioned_folder_is_tagged_described_and_trained_with(host, models, images):
    seen = []
    graph = {**training(name="described", steps=2), "data": images, "tags": tags(),
             "words": sentences("FineTuneCaptionBlip", "blip"), "show": shown("words"), "show tags": shown("tags")}
    graph["train"]["inputs"]["dataset"] = ["words", 0]
    outputs = host.run(graph, lambda event: seen.append((event.kind, event.node, event.value or event.text)))
    tagged, described = captions_of(outputs, "show tags"), captions_of(outputs)
    assert len(described) == 5 and len(set(described.values())) == 5
    for name, caption in described.items():
        assert caption.startswith(f"{tagged[name]}, ") and tagged[name].startswith("ohwx, ") and len(caption.split(", ")) > 2
    spec = json.loads((host.output / "finetune" / "described" / "spec.json").read_text("utf-8"))
    assert {image["name"]: image["caption"] for image in spec["dataset"]["images"]} == described
    assert outputs["train"]["lora"] == ["described.safetensors"]
    last = described["drawing_4.png"].removeprefix(f"{tagged['drawing_4.png']}, ")
    assert ("text", "words", f"5 of 5: {last}") in seen and ("progress", "tags", 1000) in seen
    assert outputs["words"]["text"][0].startswith("5 images described by captioners/blip, 5 of them now.")
    assert not list(host.input.glob("uncaptioned/*.txt"))  # nothing on the disk is changed

    host.forget()
    again = host.run(graph)
    assert captions_of(again) == described
    assert again["words"]["text"][0].startswith("5 images described by captioners/blip, 0 of them now.")
    works = [path.read_text("utf-8") for path in host.output.glob("finetune/.cache/captioning/*/events.jsonl")]
    assert [text.count('"started"') for text in works] == [1, 1]


def test_other_thresholds_and_modes_need_no_process(host, models, images):
    host.run({"data": images, "tags": tags(), "show": shown("tags")})
    before = len(list(host.output.glob("finetune/.cache/captioning/*")))
    few = captions_of(host.run({"data": images, "tags": tags(general_threshold=0.8), "show": shown("tags")}))
    many = captions_of(host.run({"data": images, "tags": tags(general_threshold=0.2), "show": shown("tags")}))
    assert sum(map(len, few.values())) < sum(map(len, many.values()))
    assert len(list(host.output.glob("finetune/.cache/captioning/*"))) == before


def test_names_and_instructions(host, models, images):
    names = {"class_type": "FineTuneCaptionFromNames", "inputs": {
        "dataset": ["data", 0], "template": "a {name} in {folder}, number {index}", "mode": "replace"}}
    asking = {"class_type": "FineTuneCaptionVisionLanguage", "inputs": {
        "dataset": ["tags", 0], "captioner": "captioners/llava", "instruction": "a photo of the dog", "mode": "in front",
        "maximum_tokens": 8, "beams": 1, "repetition_penalty": 1.0, "batch_size": 2, "maximum_side": 1024}}
    outputs = host.run({"data": images, "tags": names, "words": asking, "show": shown("words"), "names": shown("tags")})
    assert captions_of(outputs, "names")["drawing_2.png"] == "ohwx, a drawing in uncaptioned, number 3"
    said = 0
    for number, caption in enumerate(captions_of(outputs).values(), start=1):
        assert caption.startswith("ohwx, ") and caption.endswith(f", a drawing in uncaptioned, number {number}")
        said += len(caption) > len(f"ohwx, a drawing in uncaptioned, number {number}")
    assert said >= 3  # random weights may end at once


def test_an_interrupt_keeps_what_is_described(host, models, images):
    sent = []

    def stop(event):
        if (done := reached(event, "words", "")) and not sent:
            sent.append(done)
            host.interrupt()

    tiny.make_images(host.input / "many", 30)
    images["inputs"]["folder"] = "input/many"
    graph = {"data": images, "words": sentences("FineTuneCaptionGit", "git", dataset=["data", 0], batch_size=1,
                                                maximum_tokens=50), "show": shown("words")}
    with pytest.raises(PromptInterrupted):
        host.run(graph, stop)
    outputs = host.run(graph)
    now = int(outputs["words"]["text"][0].split(" of them now")[0].split()[-1])
    assert len(captions_of(outputs)) == 30 and 0 < now <= 30 - sent[0]


@pytest.mark.parametrize("widgets, words", [
    ({"captioner": "captioners/../../input"}, "is not there"), ({"captioner": "captioners/nothing"}, "is not there"),
    ({"captioner": "(none found)"}, "no model for this node yet"), ({"captioner": "input/uncaptioned"}, "is not there"),
    ({"captioner": "captioners/git"}, "is a GIT model, and this node reads BLIP models"),
])
def test_wrong_models_are_sentences(host, models, images, widgets, words):
    graph = {"data": images, "words": sentences("FineTuneCaptionBlip", "blip", dataset=["data", 0], **widgets),
             "show": shown("words")}
    with pytest.raises(Exception) as problem:
        host.run(graph)
    if isinstance(problem.value, NodeFailed):  # hosts since 0.8 refuse choices that are not in the list by themselves
        assert words in str(problem.value)
    else:
        assert "Value not in list" in str(problem.value)


def test_the_lists_hold_models_of_the_right_kind(host, models):
    for node, expected in [("FineTuneCaptionBlip", ["captioners/blip"]), ("FineTuneTagImages", ["captioners/tagger"]),
                           ("FineTuneCaptionVisionLanguage", ["captioners/llava"]),
                           ("FineTuneCaptionBlip2", ["(none found)"])]:
        kind, *rest = host.object_info(node)[node]["input"]["required"]["captioner"]
        assert (kind if isinstance(kind, list) else rest[0]["options"]) == expected
