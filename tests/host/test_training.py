"""Training in a real ComfyUI: the graph learns, the core loads the file, stopping and repeating lose nothing."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import workflow as workflows
from finetune.benchmarks import emoji_style
from host_server import PromptInterrupted
from PIL import Image
from safetensors import safe_open
from support.graphs import images_of, reached, sampling, training, with_lora

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_workflows_fit_the_nodes(host, path):
    assert workflows.check(json.loads(path.read_text(encoding="utf-8")), host.object_info()) == []


def test_the_example_workflow_learns_and_a_control_does_not(host, log):
    """The smaller form of benchmarks/learning.py: fewer steps, one prompt list, one seed."""
    template = ROOT / "example_workflows" / "2 Train a LoRA without any download.json"
    workflow = json.loads(template.read_text(encoding="utf-8"))
    prompt = workflows.to_prompt(workflow, host.object_info())
    train = next(node for node in prompt.values() if node["class_type"] == "FineTuneTrainLora")
    data = next(node for node in prompt.values() if node["class_type"] == "FineTuneLoadImageDataset")
    save = next(key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    train["inputs"].update(steps=60)
    texts, previews = [], []

    def watch(event):
        if event.kind == "text" and event.text:
            texts.append(event.text)
        previews.append(event.kind == "preview")

    learned = host.run(prompt, watch)
    shutil.copytree(ROOT / "tests" / "data" / "noto_control", host.input / "control", dirs_exist_ok=True)
    data["inputs"]["folder"] = "input/control"
    train["inputs"].update(name="control", preview_prompts="")
    control = host.run(prompt)
    changes = {}
    for name, outputs in (("learned", learned), ("control", control)):
        sheet = images_of(host, outputs, save)[0]
        above, below = (split(half) for half in (sheet[:192], sheet[-192:]))
        before, after = (emoji_style.style_statistics(each).mean(axis=0) for each in (above, below))
        changes[name] = {key: after[emoji_style.STATISTICS.index(key)] / before[emoji_style.STATISTICS.index(key)]
                         for key in ("dark", "edges")}
    assert changes["learned"]["dark"] > 2 and changes["learned"]["edges"] > 1.25, changes
    assert changes["control"]["dark"] < 1.3 and changes["control"]["edges"] < 1.15, changes
    assert any("step 2" in text and "loss" in text and "left" in text for text in texts), texts
    verdict = next(match for text in texts if (match := re.search(
        r"loads in ComfyUI with all (\d+) keys of (\d+) layers; its effect is not zero", text)))
    assert int(verdict[1]) == 3 * int(verdict[2]) > 240
    assert "lora key not loaded" not in log()


def split(row: np.ndarray) -> np.ndarray:
    """The cells of a row of the core's Image Grid (192 pixels wide, 6 apart), at the size they were drawn."""
    cells = [row[:, left:left + 192] for left in range(0, row.shape[1] - 191, 198)]
    small = [Image.fromarray((cell * 255).astype(np.uint8)).resize((64, 64), Image.Resampling.BOX) for cell in cells]
    return np.stack([np.asarray(each, np.float32) / 255 for each in small])


def test_core_loaders_apply_the_file_and_strength_zero_restores_the_base(host, log):
    # A high rate for a visible effect after few steps; the text encoder and convolutions too, for all kinds of keys.
    prompt = training(name="applied", learning_rate=1e-2, text_encoder_learning_rate=1e-2, targets="all with convolutions")
    prompt = with_lora(with_lora(prompt, "on", ["train", 2], 1.0), "off", ["train", 2], 0.0)
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "plain")
    prompt = sampling(sampling(prompt, ["on", 0], ["on", 1], "on"), ["off", 0], ["off", 1], "off")
    outputs = host.run(prompt)
    plain, on, off = (images_of(host, outputs, f"{name}/save") for name in ("plain", "on", "off"))
    assert np.array_equal(plain, off)
    assert np.abs(plain - on).mean() > 0.01
    assert outputs["train"]["lora"] == ["applied.safetensors"]
    assert "lora key not loaded" not in log()
    with safe_open(host.output / "loras" / "applied.safetensors", framework="pt") as file:
        assert str(host.base_directory) not in json.dumps(file.metadata())


def test_the_cores_nodes_take_the_lora_and_the_losses_from_their_sockets(host, log):
    """Load LoRA Model has no CLIP, so only here the LoRA is without a text encoder: the same image as by its name."""
    prompt = with_lora(training(name="sockets", learning_rate=1e-2), "named", ["train", 2], 1.0)
    prompt["socket"] = {"class_type": "LoraModelLoader", "inputs": {
        "model": ["demo", 0], "lora": ["train", 0], "strength_model": 1.0}}
    if "bypass" in host.object_info("LoraModelLoader")["LoraModelLoader"]["input"]["required"]:  # since 0.11
        prompt["socket"]["inputs"]["bypass"] = False
    prompt["loss"] = {"class_type": "LossGraphNode", "inputs": {"loss": ["train", 1], "filename_prefix": "loss"}}
    prompt = sampling(sampling(prompt, ["named", 0], ["demo", 1], "named"), ["socket", 0], ["demo", 1], "socket")
    outputs = host.run(prompt)
    assert np.array_equal(*(images_of(host, outputs, f"{name}/save") for name in ("named", "socket")))
    assert outputs["loss"]["images"]
    assert "lora key not loaded" not in log()


def test_a_finished_graph_returns_at_once(host):
    prompt = training(name="again")
    first = host.run(prompt)
    host.forget()
    kinds = []
    second = host.run(prompt, lambda event: kinds.append((event.kind, event.node)))
    assert ("executing", "train") in kinds, "the host's own cache answered, so nothing was tested"
    assert second["train"] == first["train"]
    events = (host.output / "finetune" / "again" / "events.jsonl").read_text(encoding="utf-8")
    assert events.count('"started"') == 1
    assert [path.name for path in (host.output / "loras").glob("again*")] == ["again.safetensors"]


def test_a_changed_setting_is_another_run_and_another_file(host):
    host.run(training(name="changed"))
    outputs = host.run(training(name="changed", training_seed=1))
    assert outputs["train"]["lora"] == ["changed-2.safetensors"]


def test_interrupt_saves_and_the_next_queue_goes_on(host):
    prompt, sent = training(name="interrupted", steps=400), []

    def stop(event):
        if reached(event) >= 3 and not sent:
            sent.append(event)
            host.interrupt()

    with pytest.raises(PromptInterrupted):
        host.run(prompt, stop)
    saved = list((host.output / "loras").glob("interrupted_step*.safetensors"))
    checkpoints = list((host.output / "finetune" / "interrupted" / "checkpoints").glob("*/state.pt"))
    assert len(saved) == len(checkpoints) == 1
    assert host.run(sampling(with_lora(training(name="after"), "lora", saved[0].name, 1.0), ["lora", 0], ["lora", 1], "x"))
    stopped_at = int(checkpoints[0].parent.name.split("_")[1])
    assert 3 <= stopped_at < 400
    run = host.output / "finetune" / "interrupted"
    with pytest.raises(PromptInterrupted):  # enough to see where it goes on
        host.run(prompt, lambda event: host.interrupt() if reached(event) > stopped_at + 2 else None)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"event": "resumed", "step": stopped_at}.items() <= next(e for e in events if e["event"] == "resumed").items()
    steps = [event["step"] for event in events if event["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
