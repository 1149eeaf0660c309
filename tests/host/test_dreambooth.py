"""DreamBooth in a real ComfyUI: the checkpoint is drawn with, loaded by name, and trained on again."""
import json

import numpy as np
import pytest
from host_server import NodeFailed, PromptInterrupted
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.graphs import dreambooth, reached, sampling


def images_of(host, outputs: dict, node: str) -> np.ndarray:
    """The images that a SaveImage node wrote, float32 [count, height, width, 3] in 0…1."""
    files = [host.output / image["subfolder"] / image["filename"] for image in outputs[node]["images"]]
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files])


def test_the_checkpoint_draws_otherwise_and_is_a_base_again(host):
    prompt = dreambooth(name="booth", text_encoder_learning_rate=1e-3, frozen_blocks="down.3, mid")
    prompt["again"] = {"class_type": "FineTuneTrainDreamBooth",
                       "inputs": {**prompt["train"]["inputs"], "base": ["train", 3], "name": "booth again", "steps": 1}}
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "booth_before", seeds=2)
    prompt = sampling(prompt, ["train", 0], ["train", 1], "booth_after", seeds=2)
    prompt["booth_after/decode"]["inputs"]["vae"] = ["train", 2]
    texts = []
    outputs = host.run(prompt, lambda event: texts.append(event.text) if event.kind == "text" else None)
    before, after = (images_of(host, outputs, f"booth_{name}/save") for name in ("before", "after"))
    assert np.abs(before - after).mean() > 0.01 and after.std() > 0.05
    assert outputs["train"]["checkpoint"] == ["booth.safetensors"]
    summary = outputs["train"]["text"][0]
    assert "booth.safetensors: all 662 tensors are as they should be. Load Base to Train loads it" in summary
    assert "because it has no model of this size; its effect is not zero" in summary
    assert "down.3, mid frozen" in summary and "20 class images, weight 1" in summary
    file, run = host.output / "checkpoints" / "booth.safetensors", host.output / "finetune" / "booth"
    assert file.samefile(run / "booth.safetensors")
    with safe_open(file, framework="pt") as opened:
        assert str(host.base_directory) not in json.dumps(opened.metadata())
    first, second = load_file(file), load_file(host.output / "checkpoints" / "booth again.safetensors")
    changed = [name for name in first if not np.array_equal(first[name], second[name])]
    assert first.keys() == second.keys() and changed and not [name for name in changed if "first_stage" in name]
    log = host.log.read_text(encoding="utf-8", errors="replace").lower()
    assert not [line for line in log.splitlines() if any(f"{part} missing" in line for part in ("unet", "clip"))
                or "missing vae" in line or "unet unexpected" in line]


def test_the_native_objects_are_those_of_the_file(host):
    """An untrained copy (a rate at which nothing moves in fp16) draws what the demo base draws."""
    prompt = dreambooth(name="untouched", learning_rate=1e-9, steps=1)
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "untouched_before", seeds=2)
    prompt = sampling(prompt, ["train", 0], ["train", 1], "untouched_after", seeds=2)
    prompt["untouched_after/decode"]["inputs"]["vae"] = ["train", 2]
    outputs = host.run(prompt)
    assert np.array_equal(*(images_of(host, outputs, f"untouched_{name}/save") for name in ("before", "after")))
    assert "BUT ITS EFFECT IS ZERO" in outputs["train"]["text"][0]


def test_shards_are_used_here_and_refused_as_a_file(host):
    prompt = sampling(dreambooth(name="shards", shard_size=0.02), ["train", 0], ["train", 1], "shards", seeds=1)
    outputs = host.run(prompt)
    assert outputs["shards/save"]["images"] and "checkpoint" not in outputs["train"]
    assert "shards in shards: all 662 tensors are as they should be" in outputs["train"]["text"][0]
    assert sorted(path.name for path in (host.output / "finetune" / "shards").glob("*.safetensors")) == [
        f"shards-0000{number}-of-00004.safetensors" for number in range(1, 5)]
    assert not list((host.output / "checkpoints").glob("shards*"))
    prompt["again"] = {"class_type": "FineTuneTrainDreamBooth",
                       "inputs": {**prompt["train"]["inputs"], "base": ["train", 3], "name": "never"}}
    said = []
    host.run(prompt, lambda event: said.append(event.text) if event.kind == "error" else None)
    assert any("Set shard_size to 0 on Train DreamBooth" in text for text in said)
    assert not (host.output / "finetune" / "never").exists()


def test_a_file_that_lacks_a_tensor_is_noticed(host):
    prompt = dreambooth(name="damaged", steps=1)
    host.run(prompt)
    run = host.output / "finetune" / "damaged"
    weights, report = load_file(run / "damaged.safetensors"), json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report.pop("unmatched_keys") == [] and report.pop("load_checked")
    del weights["first_stage_model.decoder.conv_in.bias"]
    (run / "damaged.safetensors").unlink()
    save_file(weights, run / "damaged.safetensors")
    (run / "report.json").write_text(json.dumps(report), encoding="utf-8")
    host.forget()  # or the host's cache would answer
    with pytest.raises(NodeFailed, match="would not load 1 weights of its file, for example 'VAE: decoder.conv_in.bias is"):
        host.run(prompt)


def test_unknown_blocks_are_explained(host):
    with pytest.raises(NodeFailed, match=r"frozen_blocks names up\.9, .*Its blocks are down\.0"):
        host.run(dreambooth(name="refused blocks", frozen_blocks="up.9"))
    assert host.is_running()


def test_interrupt_places_the_checkpoint(host):
    sent = []

    def stop(event):
        if reached(event) >= 2 and not sent:
            sent.append(event)
            host.interrupt()

    with pytest.raises(PromptInterrupted):
        host.run(dreambooth(name="halted", steps=300), stop)
    assert len(list((host.output / "checkpoints").glob("halted_step*.safetensors"))) == 1
