"""Class images in a real ComfyUI: drawn once, added to, found again, and trained with."""

import pytest
from host_server import NodeFailed, PromptInterrupted, PromptRejected
from support.graphs import reached, training


def class_images(**widgets) -> dict:
    return {"class_type": "FineTuneClassImages", "inputs": {
        "base": ["demo", 3], "prompt": "noto emoji of a dog face", "count": 4, "negative_prompt": "", "resolution": 64,
        "sampler_steps": 8, "guidance": 4.0, "image_seed": 0, "batch_size": 2, **widgets}}


def prompt(**widgets) -> dict:
    """The node alone; its report is looked at so that the host runs it."""
    return {"demo": training()["demo"], "class": class_images(**widgets),
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["class", 1]}}}


def content(host) -> dict[str, bytes]:
    """All class images and captions that are there, by their paths."""
    return {str(path): path.read_bytes() for path in host.output.glob("finetune/.cache/class_images/*/images/*")}


def test_four_then_six_draws_two_and_they_are_trained_with(host):
    shown = []
    first = host.run(prompt(), lambda event: shown.append((event.kind, event.node, event.value or event.text)))
    four = content(host)
    assert first["class"]["text"][0].startswith("4 images of 64×64 pixels in class images: noto emoji of a dog face")
    assert len(four) == 8 and ("progress", "class", 1000) in shown
    assert ("text", "class", "generating class images, 4 of 4") in shown
    graph = training(name="with class images", class_images=["class", 0], prior_weight=0.5)
    outputs = host.run({**graph, "class": class_images(count=6)})
    six = content(host)
    assert len(six) == 12 and four.items() <= six.items()
    assert outputs["train"]["lora"] == ["with class images.safetensors"]
    events = next(host.output.glob("finetune/.cache/class_images/*/events.jsonl")).read_text("utf-8")
    assert events.count('"started"') == 2 and events.count('"event":"class_images"') == 3
    again = host.run({**graph, "class": class_images(count=6, batch_size=3)})
    assert again["train"] == outputs["train"]  # and nothing drawn, nothing trained
    drawn = next(host.output.glob("finetune/.cache/class_images/*/events.jsonl"))
    assert drawn.read_text("utf-8") == events
    trained = host.output / "finetune" / "with class images" / "events.jsonl"
    assert trained.read_text("utf-8").count('"started"') == 1
    assert content(host) == six


def test_an_interrupt_keeps_what_is_drawn(host):
    sent = []

    def stop(event):
        if (done := reached(event, "class", "generating class images,")) and not sent:
            sent.append(done)
            host.interrupt()

    before = len(content(host))
    with pytest.raises(PromptInterrupted):
        host.run(prompt(image_seed=1, count=300), stop)
    kept = (len(content(host)) - before) // 2
    assert sent[0] <= kept < 300
    outputs = host.run(prompt(image_seed=1, count=kept))
    assert outputs["class"]["text"][0].startswith(f"{kept} images") and (len(content(host)) - before) // 2 == kept


@pytest.mark.parametrize("widgets, words", [
    ({"prompt": " "}, "prompt is empty"), ({"count": 0}, "smaller than min"), ({"resolution": 65}, "resolution is 65"),
])
def test_wrong_values_are_sentences(host, widgets, words):
    with pytest.raises((NodeFailed, PromptRejected)) as problem:
        host.run(prompt(**widgets))
    assert words in str(problem.value)
