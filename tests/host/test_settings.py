"""The settings nodes on a real server, connected to Train LoRA all at once."""
import pytest
from host_server import NodeFailed, PromptRejected
from safetensors import safe_open
from support.graphs import training


def with_settings(name: str, optimizer: str, schedule: str = "warmup_stable_decay", **widgets) -> dict:
    prompt = training(name=name, ema_decay=0.5, precision="fp32", gradient_checkpointing=True, frozen_precision="int8",
                      **widgets)
    prompt["optimizer"] = {"class_type": "FineTuneOptimizer", "inputs": {
        "optimizer_name": optimizer, "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.99, "maximum_gradient_norm": 1.0,
        "epsilon": 1e-8}}
    prompt["schedule"] = {"class_type": "FineTuneSchedule", "inputs": {
        "schedule_name": schedule, "warmup_steps": 1, "cycles": 1, "decay_fraction": 0.5}}
    prompt["train"]["inputs"] |= {name: [name, 0] for name in ("optimizer", "schedule")}
    return prompt


def test_all_settings_at_once(host):
    prompt = with_settings("with settings", "prodigy", steps=4, learning_rate=1.0, text_encoder_learning_rate=0.5)
    summary = host.run(prompt)["train"]["text"][0]
    assert "its effect is not zero" in summary and "learning rate 1." in summary
    with safe_open(host.output / "loras" / "with settings.safetensors", framework="pt") as file:
        assert any(key.startswith("lora_te") for key in file.keys())


@pytest.mark.parametrize("optimizer, schedule, words", [
    ("prodigy", "constant", "rodigy finds the learning rate itself"),
    ("adamw", "one_cycle", "a warm-up of its own"),
])
def test_what_does_not_fit_is_a_sentence(host, optimizer, schedule, words):
    with pytest.raises((NodeFailed, PromptRejected), match=words):
        host.run(with_settings("refused settings", optimizer, schedule))
    assert host.is_running()
