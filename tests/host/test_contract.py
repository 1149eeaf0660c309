"""The public contract: ids, inputs and outputs of the nodes, and what the pack serves to the frontend."""
import json
import os
import urllib.request
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("schemas.json")
KEPT = ("default", "min", "max", "step", "options", "multiline")
LISTINGS = ("lora_name", "folder", "checkpoint", "library", "tuned", "original", "lora", "lora_a", "lora_b",
            "captioner", "denoiser", "text_encoder", "text_encoder_2", "text_encoder_3", "vae",
            *(f"embedding_{row}" for row in range(1, 5)))
"""Inputs whose choices are files."""


def schemas(host) -> dict:
    """Our nodes as saved workflows depend on them: order, types and defaults; folder listings left out."""
    result = {}
    for name, node in sorted(host.object_info().items()):
        if not node["category"].startswith("FineTune"):
            continue
        inputs = {}
        for group in ("required", "optional"):
            for key, (kind, *rest) in node["input"].get(group, {}).items():
                facts = {fact: rest[0][fact] for fact in KEPT if rest and fact in rest[0]}
                options = kind if isinstance(kind, list) else facts.pop("options", None)
                if key not in LISTINGS and options is not None:
                    facts["options"] = options
                facts = facts if key not in LISTINGS else {}
                inputs[key] = {"group": group, "type": "COMBO" if isinstance(kind, list) else kind, **facts}
        result[name] = {"display_name": node["display_name"], "inputs": inputs,
                        "outputs": dict(zip(node["output_name"], node["output"], strict=True))}
    return result


def test_schemas_are_those_of_the_snapshot(host):
    """Only append. To renew after appending: UPDATE_SNAPSHOT=1 python scripts/test.py tests/host/test_contract.py, and then
    the labels: python scripts/make_labels.py"""
    now = schemas(host)
    if os.environ.get("UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert now == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_every_input_and_output_is_explained(host):
    for name, node in host.object_info().items():
        if node["category"].startswith("FineTune"):
            assert len(node["description"]) > 30, name
            for group in ("required", "optional"):
                for key, value in node["input"].get(group, {}).items():
                    assert len(value[1]["tooltip"]) > 10, f"{name}.{key}"
            for output, tooltip in zip(node["output_name"], node["output_tooltips"], strict=True):
                assert len(tooltip or "") > 10, f"{name}.{output}"


def test_no_display_name_is_that_of_another_node(host):
    nodes = host.object_info()
    others = {node["display_name"] for node in nodes.values() if not node["category"].startswith("FineTune")}
    own = [node["display_name"] for node in nodes.values() if node["category"].startswith("FineTune")]
    assert len(own) == len(set(own)) > 50 and not set(own) & others


def test_search_words_reach_the_page_where_the_host_sends_them(host):
    for name, node in host.object_info().items():
        if node["category"].startswith("FineTune") and "search_aliases" in node:
            assert len(node["search_aliases"]) >= 2, name


def test_labels_are_served(host):
    labels = json.loads(fetch(host, "/i18n"))["en"]["nodeDefs"]
    assert labels["FineTuneTrainLora"]["inputs"]["text_encoder_learning_rate"]["name"] == "text enc. rate"
    assert set(schemas(host)) <= set(labels)


def fetch(host, path: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(host.url + path) as answer:
        return answer.read().decode("utf-8")


def test_help_pages_and_templates_are_served(host):
    for name in schemas(host):
        assert fetch(host, f"/extensions/finetune-nodes/docs/{name}.md").startswith("# ")
    assert "/extensions/finetune-nodes/js/precise_numbers.js" in json.loads(fetch(host, "/extensions"))
    templates = json.loads(fetch(host, "/workflow_templates"))
    examples = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
    assert sorted(templates["finetune-nodes"]) == examples and examples[0] == "1 Train a LoRA on my own images"
    for name in examples:
        assert json.loads(fetch(host, f"/api/workflow_templates/finetune-nodes/{quote(name)}.json"))["nodes"]
