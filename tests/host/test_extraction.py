"""Extraction and the LoRA tools in a real ComfyUI: DreamBooth on the demo base becomes a LoRA that draws as it does."""
import json

import numpy as np
import pytest
from host_server import NodeFailed, PromptInterrupted
from safetensors.torch import load_file
from support.graphs import dreambooth, images_of, reached, sampling, with_lora

WIDGETS = {"tuned": "(connected)", "original": "(connected)", "name": "out of booth", "rank_method": "fixed", "rank": 64,
           "threshold": 0.9, "text_encoders": True, "convolutions": True, "file_precision": "fp16"}


def extraction(prompt: dict, **inputs) -> dict:
    """Add Extract LoRA ("extract") of the DreamBooth checkpoint."""
    sockets = {"tuned_base": ["train", 3], "original_base": ["demo", 3]}
    if "tuned_model" in inputs:
        sockets = {}
    return {**prompt, "extract": {"class_type": "FineTuneExtractLora", "inputs": {**WIDGETS, **sockets, **inputs}}}


def booth(**widgets) -> dict:
    return dreambooth(**{"name": "to extract", "steps": 40, "learning_rate": 2e-4, "text_encoder_learning_rate": 2e-4,
                         **widgets})


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.square(one - other).mean()))


def test_base_and_lora_draw_what_dreambooth_draws(host):
    prompt = extraction(booth())
    prompt["low"] = {"class_type": "FineTuneExtractLora",
                     "inputs": {**prompt["extract"]["inputs"], "name": "low rank", "rank": 1, "convolutions": False}}
    prompt["save_report"] = {"class_type": "SaveImage",
                             "inputs": {"images": ["extract", 3], "filename_prefix": "extract_report"}}
    for name, source in (("high", "extract"), ("less", "low")):
        prompt = with_lora(prompt, f"lora_{name}", [source, 1], 1.0)
        prompt = sampling(prompt, [f"lora_{name}", 0], [f"lora_{name}", 1], f"x_{name}")
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "x_base")
    prompt = sampling(prompt, ["train", 0], ["train", 1], "x_tuned")
    outputs = host.run(prompt)
    base, tuned, high, less = (images_of(host, outputs, f"x_{name}/save") for name in ("base", "tuned", "high", "less"))
    assert distance(base, tuned) > 0.02, "DreamBooth learned too little for a comparison"
    assert distance(high, tuned) < 0.25 * distance(base, tuned)
    assert distance(high, tuned) < distance(less, tuned)
    summary = outputs["extract"]["text"][0]
    report = json.loads((host.output / "finetune" / "out of booth" / "report.json").read_text(encoding="utf-8"))
    assert f"loads in ComfyUI with all {report['keys']} keys" in summary and report["unmatched_keys"] == []
    assert 0.9 < report["kept"]["bf16"] <= report["kept"]["fp16"] < 1
    assert any(row["block"] == "BASE" for row in report["rows"])
    assert images_of(host, outputs, "save_report").shape[2] == 960
    log = host.log.read_text(encoding="utf-8", errors="replace")
    assert "lora key not loaded" not in log and str(host.base_directory) not in json.dumps(
        {row: 0 for row in load_file(host.output / "loras" / "out of booth.safetensors")})


def test_models_of_the_graph_are_extracted_as_their_files_are(host):
    models = {"tuned_model": ["train", 0], "tuned_clip": ["train", 1], "original_model": ["demo", 0],
              "original_clip": ["demo", 1]}
    outputs = host.run(extraction(booth(), name="of the graph", file_precision="fp32", rank=16, **models))
    assert "loads in ComfyUI" in outputs["extract"]["text"][0]
    host.run(extraction(booth(), name="of the files", file_precision="fp32", rank=16))
    graph, files = (load_file(host.output / "loras" / f"of the {name}.safetensors") for name in ("graph", "files"))
    assert graph.keys() == files.keys()
    for key in (key for key in files if key.endswith("lora_up.weight")):
        down = key.replace("lora_up", "lora_down")
        one, other = (each[key].flatten(1) @ each[down].flatten(1) for each in (graph, files))
        assert (one - other).norm() <= 0.02 * other.norm(), key
    assert not list((host.output / "finetune" / ".cache" / "models").glob("*"))


def test_tools_make_files_that_act(host):
    """Merged with itself, in fp8 and int8, and baked: each draws what the LoRA draws, or nearly."""
    prompt = extraction(booth())
    lora = {"lora": ["extract", 1]}
    prompt["twice"] = {"class_type": "FineTuneMergeLoras", "inputs": {
        "lora_a": ["extract", 1], "strength_a": 0.25, "lora_b": ["extract", 1], "strength_b": 0.75, "name": "merged",
        "rank_method": "exact", "rank": 8, "threshold": 0.9, "file_precision": "fp32"}}
    prompt["resized"] = {"class_type": "FineTuneResizeLora", "inputs": {
        **lora, "name": "resized", "rank_method": "energy", "rank": 64, "threshold": 0.99, "strength": 1.0,
        "file_precision": "fp16"}}
    for precision in ("fp8", "int8"):
        prompt[precision] = {"class_type": "FineTuneConvertLora", "inputs": {
            **lora, "name": f"as {precision}", "key_format": "kohya", "file_precision": precision, "base": ["demo", 3]}}
    prompt["native"] = {"class_type": "FineTuneConvertLora", "inputs": {
        **lora, "name": "native", "key_format": "comfyui", "file_precision": "same", "base": ["demo", 3]}}
    prompt["peft"] = {"class_type": "FineTuneConvertLora", "inputs": {
        **lora, "name": "peft", "key_format": "diffusers", "file_precision": "same", "base": ["demo", 3]}}
    prompt["diffusers"] = {"class_type": "FineTuneConvertLora", "inputs": {
        "lora": ["peft", 1], "name": "back", "key_format": "kohya", "file_precision": "same", "base": ["demo", 3]}}
    prompt["edited"] = {"class_type": "FineTuneEditLoraMetadata", "inputs": {
        **lora, "name": "edited", "trigger_words": "ohwx", "title": "", "author": "", "description": "", "tags": "",
        "other_entries": "note = mine", "remove_training_metadata": True}}
    tools = ("twice", "resized", "fp8", "int8", "native", "diffusers", "edited")
    prompt["bake"] = {"class_type": "FineTuneBakeLoras", "inputs": {
        "base": ["demo", 3], "lora": ["extract", 1], "strength": 1.0, "name": "baked", "file_precision": "fp32"}}
    for name in tools:
        prompt = with_lora(prompt, f"with_{name}", [name, 1], 1.0)
        prompt = sampling(prompt, [f"with_{name}", 0], [f"with_{name}", 1], f"t_{name}")
    prompt = with_lora(prompt, "with_lora", ["extract", 1], 1.0)
    prompt = sampling(prompt, ["with_lora", 0], ["with_lora", 1], "t_lora")
    prompt = sampling(prompt, ["demo", 0], ["demo", 1], "t_base")
    outputs = host.run(prompt)
    lora, base = (images_of(host, outputs, f"t_{name}/save") for name in ("lora", "base"))
    whole = distance(lora, base)
    for name, most in (("twice", 0.03), ("resized", 0.5), ("fp8", 0.4), ("int8", 0.3), ("native", 1e-3), ("diffusers", 1e-3),
                       ("edited", 1e-3)):
        assert distance(images_of(host, outputs, f"t_{name}/save"), lora) <= most * whole, name
    assert "lora key not loaded" not in host.log.read_text(encoding="utf-8", errors="replace")
    assert "does not know" in outputs["peft"]["text"][0]
    assert "exactly what it was" in outputs["native"]["text"][0] and "off by" in outputs["fp8"]["text"][0]
    assert "tensors are as they should be. Load Base to Train loads it" in outputs["bake"]["text"][0]
    assert load_file(host.output / "checkpoints" / "baked.safetensors").keys()


def test_wrong_choices_are_explained(host):
    prompt = extraction(booth(steps=1))
    del prompt["extract"]["inputs"]["tuned_base"]
    with pytest.raises(NodeFailed, match="tuned model is neither chosen nor connected"):
        host.run(prompt)
    prompt["extract"]["inputs"]["tuned_base"] = ["demo", 3]
    with pytest.raises(NodeFailed, match="do not differ in any layer"):
        host.run(prompt)


def test_interrupt_leaves_no_file(host):
    def stop(event):
        if reached(event, "extract", "extracting,") >= 3:
            host.interrupt()

    with pytest.raises(PromptInterrupted):
        host.run(extraction(booth(), name="stopped", exact_svd=True), stop)
    assert not list((host.output / "loras").glob("stopped*"))
    assert not list((host.output / "finetune" / "stopped").glob("*.safetensors"))
