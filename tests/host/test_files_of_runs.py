"""What lies among the LoRAs of a real server: put back when it is gone, and there for the meantime only when a run was
cancelled; cancel in the midst of a preview."""
import json
import shutil
import time

import pytest
from host_server import NodeFailed, PromptInterrupted
from support.graphs import reached, training

SLOW = {"preview_every": 1000, "guidance": 4.0, "sampler_steps": 200, "images_per_prompt": 16}


def loras(host, name: str) -> list[str]:
    return sorted(path.name for path in (host.output / "loras").glob(f"{name}*"))


@pytest.mark.parametrize("how", ["deleted", "moved", "run deleted"])
def test_a_lora_that_is_gone_is_put_back_though_the_hosts_cache_would_answer(how, host):
    name = how.replace(" ", "_")
    prompt = training(name=name, steps=2)
    first, kinds = host.run(prompt), []
    placed = host.output / "loras" / f"{name}.safetensors"
    content = placed.read_bytes()

    def executed() -> bool:
        kinds.clear()
        host.run(prompt, lambda event: kinds.append((event.kind, event.node)))
        return ("executing", "train") in kinds

    assert not executed(), "nothing was missing"
    if how == "deleted":
        placed.unlink()
    elif how == "moved":
        shutil.move(placed, host.base_directory / "somewhere.safetensors")
    else:
        shutil.rmtree(host.output / "finetune" / name)
        placed.unlink()
    assert executed() and placed.exists() and first["train"]["lora"] == [placed.name]
    if how != "run deleted":  # then it is trained again, and the time in its metadata is another
        assert placed.read_bytes() == content
        events = (host.output / "finetune" / name / "events.jsonl").read_text(encoding="utf-8")
        assert events.count('"started"') == 1
    assert not executed(), "the host's cache answers again"


def test_cancelled_in_a_preview_it_saves_at_once_and_its_file_goes_when_the_run_is_finished(host):
    prompt = training(name="meanwhile", steps=4, preview_prompts="a\nb", **SLOW)
    texts, asked, values = [], [], []

    def cancel(event):
        if event.kind == "text" and event.node == "train":
            texts.append(event.text)
            if event.text == "loading the denoiser" and not asked:
                time.sleep(2)  # then the preview of the base begins
                asked.append(time.monotonic())
                host.interrupt()
        if event.kind == "progress" and event.node == "train":
            values.append(event.value)

    with pytest.raises(PromptInterrupted):
        host.run(prompt, cancel)
    assert time.monotonic() - asked[0] < 60, "a worker that does not hear is ended after 300 s"
    assert "cancelling, saving what is learned" in texts and "cancelled before the first step" in texts
    assert values == sorted(values) and values[-1] < 300 and loras(host, "meanwhile") == []
    del prompt["train"]["inputs"]["previews_and_checkpoints"], prompt["previews_and_checkpoints"]
    prompt["train"]["inputs"].update(steps=300, preview_prompts="")  # another run: it takes the name, nothing was learned
    with pytest.raises(PromptInterrupted):
        host.run(prompt, lambda event: host.interrupt() if reached(event) >= 2 else None)
    [step_file] = loras(host, "meanwhile")
    assert step_file.startswith("meanwhile_step")
    assert sorted(path.name for path in (host.output / "finetune").glob("meanwhile*")) == ["meanwhile"]
    outputs = host.run(prompt)
    assert loras(host, "meanwhile") == ["meanwhile.safetensors"] == outputs["train"]["lora"]


def test_a_run_that_failed_at_once_frees_its_name_and_a_file_of_others_gives_both_another(host):
    with pytest.raises(NodeFailed, match="matches no layer"):
        host.run(training(name="freed", steps=2, targets="pattern", target_pattern="nothing"))
    assert host.run(training(name="freed", steps=2))["train"]["lora"] == ["freed.safetensors"]
    (host.output / "loras" / "owned.safetensors").write_bytes(b"somebody's")
    assert host.run(training(name="owned", steps=2))["train"]["lora"] == ["owned-2.safetensors"]
    assert json.loads((host.output / "finetune" / "owned-2" / "report.json").read_text("utf-8"))["steps"] == 2
    assert (host.output / "loras" / "owned.safetensors").read_bytes() == b"somebody's"
