"""Stacks on a real server: the same image as the core's loaders, missing files, prompts, keywords, the editor's routes."""
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest
from finetune.trainers.stacking.cards import data_bytes, hashes_of
from host_server import NodeFailed, PromptRejected
from PIL import Image
from support.graphs import random_lora, sampling, with_lora

DEMO = {"demo": {"class_type": "FineTuneLoadDemoBase", "inputs": {}}}
HOSTILE = "<img src=x onerror=alert(1)>'\" ü.safetensors"


@pytest.fixture(scope="module")
def loras(host):
    folder = host.base_directory / "models" / "loras"
    random_lora(folder / "one.safetensors", 1, {"modelspec.trigger_phrase": "lion, zwx"})
    random_lora(folder / "sub" / "Two.safetensors", 2)
    random_lora(folder / "three.safetensors", 3)
    random_lora(folder / HOSTILE, 4, {"modelspec.title": "<script>alert(1)</script>\x00", "ss_output_name": "x" * 1_000_000,
                                      "ss_tag_frequency": '{"<b>": {"<i>": 1}}', "modelspec.author": "a\nb\u202e"})
    (folder / "broken.safetensors").write_bytes(b"nothing")
    Image.new("RGB", (8, 8), "red").save(folder / "one.preview.png")
    return folder


def rows(*fields: dict) -> str:
    return json.dumps({"version": 1, "rows": fields})


def with_stack(prompt: dict, name: str, text: str, clip: bool = True, behind: list | None = None) -> dict:
    """Add LoRA Stack (`name`/stack) and Apply LoRA Stack (`name`) on the demo base."""
    inputs = {"model": ["demo", 0], "lora_stack": [f"{name}/stack", 0], **({"clip": ["demo", 1]} if clip else {})}
    return {**prompt, name: {"class_type": "FineTuneApplyLoraStack", "inputs": inputs},
            f"{name}/stack": {"class_type": "FineTuneLoraStack", "inputs": {
                "rows": text, **({"lora_stack": behind} if behind else {})}}}


def image(host, outputs, name: str) -> np.ndarray:
    files = [host.output / image["subfolder"] / image["filename"] for image in outputs[f"{name}/save"]["images"]]
    return np.stack([np.asarray(Image.open(file).convert("RGB"), np.float32) for file in files])


def read(prompt: dict, node: str, output: int) -> dict:
    """Add: a core node that wants a text, so that its node runs."""
    return {**prompt, "read": {"class_type": "PreviewAny", "inputs": {"source": [node, output]}}}


def drawn(host, prompt: dict, *names: str) -> tuple[list[np.ndarray], dict]:
    for name in names:
        prompt = sampling(prompt, [name, 0], [name, 1], name, seeds=1)
        prompt[f"{name}/sample"]["inputs"]["steps"] = 3
    outputs = host.run(prompt)
    return [image(host, outputs, name) for name in names], outputs


THREE = ({"lora": "one.safetensors", "model": 0.8, "text": 0.4}, {"lora": "sub/Two.safetensors", "model": -0.5, "text": 0.0},
         {"lora": "three.safetensors", "on": False})


def test_a_stack_draws_the_image_of_the_chain(host, loras):
    prompt = with_lora(DEMO, "first", "one.safetensors", 0.8)
    prompt["first"]["inputs"]["strength_clip"] = 0.4
    prompt = with_lora(prompt, "chain", "sub/Two.safetensors", -0.5)
    prompt["chain"]["inputs"] |= {"model": ["first", 0], "clip": ["first", 1], "strength_clip": 0.0}
    prompt = with_stack(prompt, "whole", rows(*THREE))
    prompt = with_stack(prompt, "apart", rows(THREE[1]), behind=["whole/one", 0])
    prompt["whole/one"] = {"class_type": "FineTuneLoraStack", "inputs": {"rows": rows(THREE[0])}}
    prompt = with_stack(prompt, "empty", "")
    (chain, whole, apart, empty, plain), outputs = drawn(host, prompt, "chain", "whole", "apart", "empty", "demo")
    assert np.abs(chain - plain).mean() > 5
    assert np.abs(chain - whole).max() <= 1 and np.array_equal(whole, apart) and np.array_equal(empty, plain)
    assert "keys matched" in outputs["whole"]["text"][0] and "not loaded" not in outputs["whole"]["text"][0]
    assert "1 row off" in outputs["whole/stack"]["text"][0]
    assert "stays as it is" in outputs["empty/stack"]["text"][0]


@pytest.mark.parametrize("node, output", [("whole", 3), ("whole/stack", 2)])
def test_the_words_of_the_stacks_files_come_out_as_text(node, output, host, loras):
    prompt = with_stack(DEMO, "whole", rows(*THREE, {"on": False, "lora": "one.safetensors"}))
    assert host.run(read(prompt, node, output))["read"]["text"] == ["lion, zwx"]


def test_an_edited_file_is_read_again(host, loras):
    prompt = with_stack(DEMO, "edited", rows({"lora": "edited.safetensors"}))
    random_lora(loras / "edited.safetensors", 5)
    (before,), _ = drawn(host, prompt, "edited")
    random_lora(loras / "edited.safetensors", 6)
    (after,), _ = drawn(host, prompt, "edited")
    assert np.abs(before - after).mean() > 1
    (loras / "edited.safetensors").unlink()


def test_a_renamed_file_is_found_by_either_hash_and_a_missing_one_is_named_with_it(host, loras):
    path = loras / "three.safetensors"
    digests, size = hashes_of(path), data_bytes(path)
    for digest in digests:
        text = rows({"lora": "elsewhere/old name.safetensors", "hash": digest, "bytes": size})
        outputs = host.run(read(with_stack(DEMO, "found", text), "found", 2))
        assert "was found as 'three.safetensors', by its hash" in outputs["found/stack"]["text"][0]
    text = rows({"lora": "elsewhere/old name.safetensors", "hash": "ab" * 32, "bytes": size})
    with pytest.raises(PromptRejected, match="old name.safetensors' with the hash abababab.* is missing"):
        host.run(read(with_stack(DEMO, "lost", text), "lost", 2))
    off = text.replace('{"lora"', '{"on": false, "lora"')
    assert "stack is empty" in host.run(read(with_stack(DEMO, "off", off), "off", 2))["off"]["text"][0]


@pytest.mark.parametrize("text, clip, sentence", [
    ("{", True, "rows is not JSON text"),
    (rows({"lora": "../../../etc/passwd"}), True, "is missing"),
    (rows({"lora": "one.safetensors", "blocks": "1,2"}), True, "one.safetensors: The block weights are a list of 2 numbers"),
    (rows({"lora": "broken.safetensors"}), False, "'broken.safetensors' is not a safetensors file"),
])
def test_what_is_wrong_is_a_sentence(host, loras, text, clip, sentence):
    prompt = with_stack(DEMO, "wrong", text, clip)
    with pytest.raises((PromptRejected, NodeFailed)) as problem:
        host.run(read(prompt, "wrong", 2))
    assert sentence in str(problem.value) and host.is_running()


def test_without_a_clip_the_text_parts_are_left_out(host, loras):
    prompt = with_stack(DEMO, "model_only", rows({"lora": "one.safetensors"}), clip=False)
    outputs = host.run(read(prompt, "model_only", 2))
    assert "because no CLIP is connected" in outputs["model_only"]["text"][0]


def test_a_prompt_and_its_words_call_loras(host, loras):
    prompt = {**DEMO, "prompt": {"class_type": "FineTunePromptLoras", "inputs": {
        "prompt": "a lion, <lora:ONE:0.8:0.4> <lora:two:-0.5:0>", "number_order": "model, text", "skip_unknown": False}},
        "named": {"class_type": "FineTuneApplyLoraStack", "inputs": {
            "model": ["demo", 0], "clip": ["demo", 1], "lora_stack": ["prompt", 1]}},
        "words": {"class_type": "FineTuneKeywordLoras", "inputs": {
            "prompt": ["prompt", 0], "keyword_source": "metadata and map", "folder": "", "model_strength": 0.8,
            "text_strength": 0.4, "maximum_loras": 5,
            "keyword_map": '{"two": {"words": ["a  lion"], "model": -0.5, "text": 0}}'}},
        "called": {"class_type": "FineTuneApplyLoraStack", "inputs": {
            "model": ["demo", 0], "clip": ["demo", 1], "lora_stack": ["words", 0]}}}
    prompt = with_stack(prompt, "rows", rows(*THREE))
    (named, called, whole), outputs = drawn(host, prompt, "named", "called", "rows")
    assert np.array_equal(named, whole) and np.abs(called - whole).max() <= 1
    assert "'lion' calls one.safetensors: model 0.8, text 0.4." in outputs["words"]["text"][0]
    prompt["prompt"]["inputs"]["prompt"] = "<lora:tow>"
    with pytest.raises(NodeFailed, match="There is no LoRA 'tow' in the loras folders. Did you mean two"):
        host.run(read(prompt, "named", 2))


def test_the_inspector_shows_what_is_in_a_file(host, loras):
    prompt = {**DEMO, "look": {"class_type": "FineTuneInspectLora", "inputs": {
        "lora_name": HOSTILE, "model": ["demo", 0], "clip": ["demo", 1]}}}
    outputs = host.run(prompt)["look"]
    text = outputs["text"][0]
    assert "LoRA, rank 4" in text and "keys matched" in text and "not loaded" not in text
    assert "<script>alert(1)</script>" in text and "\x00" not in text and len(text) < 20_000
    (image,) = outputs["images"]
    pixels = np.asarray(Image.open(host.base_directory / "temp" / image["filename"]).convert("RGB"))
    assert pixels.shape[1] == 960 and (np.abs(pixels.astype(int) - (74, 144, 226)).sum(-1) == 0).sum() > 1000


# ---- the editor's routes -------------------------------------------------------------------------------------------

def ask(host, path: str, name: str | None = None) -> tuple[int, bytes, str]:
    url = host.url + path + (f"?name={urllib.parse.quote(name, safe='')}" if name is not None else "")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read(), problem.headers["Content-Type"]


def test_routes_tell_what_the_editor_needs(host, loras):
    names = json.loads(ask(host, "/finetune/loras")[1])["loras"]
    assert {"one.safetensors", "sub/Two.safetensors", HOSTILE} <= set(names)
    card = json.loads(ask(host, "/finetune/loras/card", "one.safetensors")[1])
    path = loras / "one.safetensors"
    assert card["hash"] == hashes_of(path)[0] and card["data_bytes"] == data_bytes(path)
    quick = json.loads(ask(host, f"/finetune/loras/card?name={path.name}&quick=1")[1])
    assert quick == {**card, "hash": ""}
    assert (card["rank"], card["method"], card["triggers"], card["preview"]) == (4, "LoRA", ["lion", "zwx"], True)
    status, content, kind = ask(host, "/api/finetune/loras/preview", "one.safetensors")
    assert (status, kind) == (200, "image/png") and content == (loras / "one.preview.png").read_bytes()
    blocks = json.loads(ask(host, "/finetune/loras/blocks")[1])
    assert blocks["blocks"]["sdxl"][:2] == ["BASE", "IN00"] and blocks["values"]["sd1"]["OUTD"]["OUT03"] == 1


def test_routes_answer_questions_about_rows(host, loras):
    path = loras / "one.safetensors"
    query = urllib.parse.urlencode({"name": "away.safetensors", "hash": hashes_of(path)[0], "bytes": data_bytes(path)})
    found = json.loads(ask(host, f"/finetune/loras/find?{query}")[1])
    assert found["name"] == "one.safetensors" and "by its hash" in found["note"]
    for name in ("away.safetensors", "../../secret", "x" * 5000, "\0"):
        status, content, _ = ask(host, "/finetune/loras/find", name)
        assert status == 200 and ("is missing" in json.loads(content)["error"] or len(name) > 4096)
    read = {text: json.loads(ask(host, f"/finetune/loras/weights?family=sd1&text={urllib.parse.quote(text)}")[1])
            for text in ("", "OUTD, IN04=0.3", "nonsense")}
    assert set(read[""]["weights"].values()) == {1.0} and read["OUTD, IN04=0.3"]["weights"]["IN04"] == 0.3
    assert read["OUTD, IN04=0.3"]["weights"]["IN05"] == 0 and "no preset 'nonsense'" in read["nonsense"]["error"]
    assert json.loads(ask(host, "/finetune/loras/weights?text=ALL&family=none")[1]) == {"weights": {}}
    (path.parents[1] / "checkpoints" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("../loras/one.safetensors", "absent.safetensors", "", "diffusers/../../x"):
        assert "is not there" in json.loads(ask(host, f"/finetune/loras/base?checkpoint={name}")[1])["error"]


def test_hostile_names_and_metadata_come_out_as_short_text(host, loras):
    status, content, kind = ask(host, "/finetune/loras/card", HOSTILE)
    card = json.loads(content)
    assert status == 200 and kind.startswith("application/json") and len(content) < 20_000
    assert card["name"] == HOSTILE and card["title"] == "<script>alert(1)</script>" and card["author"] == "a b"
    assert card["metadata"]["ss_output_name"].endswith("x…")
    secret = host.base_directory / "models" / "secret.safetensors"
    shutil.copy(loras / "one.safetensors", secret)
    shutil.copy(loras / "one.preview.png", secret.with_suffix(".png"))
    outside = ("../secret.safetensors", "..\\secret.safetensors", str(secret))
    for name in (*outside, "one.preview.png", "", "\0", "sub", "x" * 5000):
        for path in ("card", "preview"):
            status, content, kind = ask(host, f"/finetune/loras/{path}", name)
            assert status == 404 and kind.startswith("application/json") and "error" in json.loads(content), (path, name)
    assert ask(host, "/finetune/loras/card", "broken.safetensors")[0] == 400
