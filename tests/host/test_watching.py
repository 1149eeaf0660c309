"""Previews & Checkpoints through its node on a real server: what is asked for is shown, measured and kept."""
import json

import pytest
from host_server import NodeFailed
from PIL import Image
from support.graphs import training

MONITORING = {"preview_every": 6, "negative_prompt": "blurry", "guidance": 4.0, "sampler_steps": 4, "images_per_prompt": 2,
              "preview_seed": 3, "checkpoint_every": 5, "checkpoints_to_keep": 1, "validation_fraction": 0.2,
              "validation_every": 4}


def test_a_run_that_is_watched(host):
    prompt = training(name="watched", steps=12, preview_prompts="emoji of a lion\nemoji of a "
                                                                "cup", text_encoder_learning_rate=1e-4,
                      **MONITORING)
    texts = []
    outputs = host.run(prompt, lambda event: texts.append(event.text) if event.kind == "text" else None)["train"]
    run = host.output / "finetune" / "watched"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["step"] for event in events if event["event"] == "validation"] == [0, 4, 8, 12]
    validation = json.loads((run / "report.json").read_text(encoding="utf-8"))["validation"]
    shown = f"Validation loss {validation['first']:.4f} before the training, best {validation['best']:.4f}"
    assert shown in outputs["text"][0] and validation["best"] < validation["first"]
    assert any("validation 0." in text and "step" in text for text in texts)
    assert any("learning rate denoiser: 0.001, te: 0.0001" in text for text in texts)
    assert "are held out for validation" in outputs["text"][0]
    sheets = sorted(path.name for path in (run / "previews").iterdir())
    assert sheets == ["progress.png", "step_000000.png", "step_000006.png", "step_000012.png"]
    assert Image.open(run / "previews" / "step_000006.png").size == (2 * 196 - 4, 20 + 2 * 212)
    assert Image.open(run / "previews" / "progress.png").size == (3 * 196 - 4, 20 + 2 * 212)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["best", "step_000010"]
    shown = [host.output / image["subfolder"] / image["filename"] for image in outputs["images"]]
    assert shown == [run / "previews" / "progress.png", run / "loss.png"]
    assert all(path.exists() for path in shown)


def test_the_last_preview_stands_beside_the_lora_but_over_nobodys_image(host):
    loras, widgets = host.output / "loras", dict(preview_prompts="emoji of a lion\nemoji of a cup", steps=2, sampler_steps=4)
    loras.mkdir(exist_ok=True)
    (loras / "taken.preview.png").write_bytes(b"somebody's")
    host.run(training(name="pictured", **widgets))
    host.run(training(name="taken", **widgets))
    with Image.open(loras / "pictured.preview.png") as image, Image.open(
            host.output / "finetune" / "pictured" / "previews" / "step_000002.png") as sheet:
        assert image.size == (192, 192) and image.tobytes() == sheet.crop((0, 40, 192, 232)).tobytes()
    assert (loras / "taken.preview.png").read_bytes() == b"somebody's" and (loras / "taken.safetensors").exists()
    host.run(training(name="plain", steps=2))
    assert not list(loras.glob("plain*.png"))


def test_early_stop_without_images_to_test_on_is_refused(host):
    with pytest.raises(NodeFailed, match="validation_fraction is 0"):
        host.run(training(name="refused", **{**MONITORING, "validation_fraction": 0.0, "patience": 2}))
