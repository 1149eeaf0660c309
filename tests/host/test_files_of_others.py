"""LoRAs and embeddings of other programs, damaged ones and ones made to do harm, on a real server."""
import json
import math
import shutil
import zipfile

import pytest
import torch
from finetune.trainers.artifacts.embedding import load_embedding
from finetune.trainers.artifacts.tensor_files import header_bytes, read_entries
from host_server import NodeFailed, PromptRejected
from safetensors.torch import load_file, save_file
from support.graphs import random_lora

DEMO = {"demo": {"class_type": "FineTuneLoadDemoBase", "inputs": {}}}
FOLDER = "others"


@pytest.fixture(scope="module")
def loras(host):
    folder = host.base_directory / "models" / "loras" / FOLDER
    random_lora(folder / "good.safetensors", 1, {"modelspec.trigger_phrase": "quokka"})
    good = load_file(folder / "good.safetensors")
    torch.save(good, folder / "good.pt")
    torch.save({"state_dict": good}, folder / "nested.bin")
    alpha, weight = next(name for name in good if name.endswith(".alpha")), next(name for name in good if "lora_up" in name)
    save_file({**good, alpha: torch.tensor(math.nan)}, folder / "alpha.safetensors")
    torch.save({**good, weight: good[weight] * math.inf}, folder / "infinite.pt")
    save_file({**good, "lora_unet_a.diff_b": torch.tensor([math.inf])}, folder / "bias.safetensors")
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 10_000_000)
    torch.save({"lora_unet_a.lora_up.weight": torch.zeros(1).expand(1 << 60)}, folder / "endless.pt")
    for number, metadata in enumerate((
            None, [], 7, {"ss_network_alpha": 1e999, "modelspec.trigger_phrase": None}, {"ss_datasets": '[{"subsets": 3}]'},
            {"ss_tag_frequency": '{"a": {"b": NaN, "c": -Infinity}}', "ss_network_alpha": "1e999"},
            {"modelspec.title": "\ud800"}, {"ss_datasets": "[" * 100_000})):
        entries = list(read_entries(folder / "good.safetensors").values())
        header = json.loads(header_bytes(entries, {}, "")[8:])
        text = json.dumps({**header, "__metadata__": metadata}).encode()
        data = b"".join(entry.tensor().reshape(-1).view(torch.uint8).numpy().tobytes() for entry in entries)
        (folder / f"metadata {number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def words(host):
    folder = host.base_directory / "models" / "embeddings" / FOLDER
    folder.mkdir(parents=True)
    vectors = torch.ones(2, 768)
    save_file({"text_encoders_0": vectors, "text_encoders_1": torch.ones(2, 1280)}, folder / "pti.safetensors")
    torch.save({"string_to_param": torch.nn.ParameterDict({"*": vectors})}, folder / "anya.pt")
    torch.save({"<cat>": vectors[0], "<dog>": vectors[1]}, folder / "two.bin")
    torch.save({"<w>": torch.zeros(1).expand(1 << 60)}, folder / "endless.pt")
    torch.save({"<w>": vectors}, folder / "_hidden.pt")
    save_file({"emb_params": vectors}, folder / "talkative.safetensors",
              {"modelspec.trigger_phrase": "a\n\x1b[31mb" + "x" * 9999, "ss_sd_model_name": "y" * 9999})
    yield folder
    shutil.rmtree(folder)


def sentence(host, prompt) -> str:
    with pytest.raises((NodeFailed, PromptRejected)) as problem:
        host.run(prompt)
    assert host.is_running()
    return str(problem.value)


def applied(name: str) -> dict:
    row = json.dumps([{"lora": f"{FOLDER}/{name}"}])
    return {**DEMO, "stack": {"class_type": "FineTuneLoraStack", "inputs": {"rows": row}},
            "apply": {"class_type": "FineTuneApplyLoraStack", "inputs": {
                "model": ["demo", 0], "clip": ["demo", 1], "lora_stack": ["stack", 0]}},
            "show": {"class_type": "PreviewAny", "inputs": {"source": ["apply", 2]}}}


def inspected(name: str) -> dict:
    return {"look": {"class_type": "FineTuneInspectLora", "inputs": {"lora_name": f"{FOLDER}/{name}"}}}


@pytest.mark.parametrize("name, said", [
    ("alpha.safetensors", ".alpha holds values that are not numbers in 'alpha.safetensors'"),
    ("infinite.pt", ".lora_up.weight holds values that are not numbers in 'infinite.pt'"),
    ("bias.safetensors", "lora_unet_a.diff_b holds values that are not numbers in 'bias.safetensors'"),
    ("bomb.pt", "'bomb.pt' is a compressed archive"), ("endless.pt", "holds no tensors that make one"),
])
def test_broken_and_harmful_loras_are_refused_alike_by_stack_and_inspector(host, loras, name, said):
    assert said in sentence(host, applied(name)) and said in sentence(host, inspected(name))


def test_loras_in_pytorchs_own_files_are_applied(host, loras):
    reports = {name: host.run(applied(name))["show"]["text"][0] for name in ("good.safetensors", "good.pt", "nested.bin")}
    assert len({report.partition(":")[2] for report in reports.values()}) == 1
    assert "keys matched" in reports["good.pt"] and "not loaded" not in reports["good.pt"]


def test_no_file_keeps_the_inspector_or_the_search_from_the_others(host, loras):
    for path in sorted(loras.glob("metadata *")):
        text = host.run(inspected(path.name))["look"]["text"][0]
        assert "LoRA, rank" in text and "nan" not in text.lower().split("metadata:")[0]
    search = {"words": {"class_type": "FineTuneKeywordLoras", "inputs": {
        "prompt": "a quokka", "keyword_source": "metadata only", "folder": FOLDER, "model_strength": 1.0,
        "text_strength": 1.0, "maximum_loras": 5}}, "show": {"class_type": "PreviewAny", "inputs": {"source": ["words", 1]}}}
    assert host.run(search)["show"]["text"] == [f"'quokka' calls {FOLDER}/good.safetensors: model 1, text 1."]


def test_words_of_other_trainers_are_merged_and_what_is_not_used_is_named(host, words):
    def merged(name: str, one: str, other: str) -> str:
        rows = {f"{kind}_{row}": value for row in range(1, 5) for kind, value in (("embedding", "none"), ("weight", 1.0))}
        rows |= {"embedding_1": f"{FOLDER}/{one}", "embedding_2": f"{FOLDER}/{other}"}
        prompt = {"merge": {"class_type": "FineTuneMergeEmbeddings", "inputs": {"name": name, **rows}}}
        return host.run(prompt)["merge"]["text"][0]

    text = merged("mended", "pti.safetensors", "pti.safetensors")
    assert "calls 2 vectors for Stable Diffusion XL" in text and text.count("do not find text_encoders_1") == 1
    mended = words.parent / "mended.safetensors"
    assert load_embedding(mended).notes == () and load_file(mended).keys() == {"clip_l", "clip_g"}
    mended.unlink()
    assert "is for Stable Diffusion XL and" in sentence_of(merged, "none", "pti.safetensors", "anya.pt")
    text = merged("cats", "two.bin", "two.bin")
    assert f"{FOLDER}/two.bin: it holds 2 words, <cat>, <dog>; only <cat> is read, as in ComfyUI." in text
    (words.parent / "cats.safetensors").unlink()


def sentence_of(function, *arguments) -> str:
    with pytest.raises(NodeFailed) as problem:
        function(*arguments)
    return str(problem.value)


def test_a_library_of_all_files_names_those_that_it_leaves_out(host, words):
    save = {"class_type": "FineTuneSaveEmbeddingLibrary", "inputs": {"library_name": "everything", "embeddings": ""}}
    outputs = host.run({"save": save, "show": {"class_type": "PreviewAny", "inputs": {"source": ["save", 1]}}})
    lines = outputs["show"]["text"][0].splitlines()
    assert f"anya: embedding:{FOLDER}/anya.pt, 2 vectors, Stable Diffusion 1.x" in lines
    left = {line.split(": ")[1]: line for line in lines if line.startswith("left out: ")}
    assert "'endless.pt' is no embedding" in left[f"{FOLDER}/endless.pt"]
    assert "'_hidden' cannot be a name in prompts" in left[f"{FOLDER}/_hidden.pt"]
    [line] = [line for line in lines if line.startswith("talkative: ")]
    assert len(line) < 600 and "\x1b" not in line and "learned as 'a [31mbxxx" in line
    assert "pti: prompts of ComfyUI do not find text_encoders_1, because they look for clip_g; save it anew with Merge " \
           "Embeddings." in lines
    (words.parent / "libraries" / "everything.json").unlink()
