"""Texts of nodes on the websocket: to whom they go, as what, and what is known of them later."""
import uuid

import pytest
from host_events import EventListener
from host_server import NodeFailed
from support.graphs import training

WORKFLOW = {"id": "0b0e0ef6-3d1f-4d6c-9f5e-0a2f6a6f2f11"}


class Listener(EventListener):
    """Another client, which keeps every binary message."""

    def _receive(self, data):
        if isinstance(data, bytes):
            self.heard.append(data)


@pytest.fixture
def bystander(host):
    listener = Listener(host.url, "somebody-else")
    listener.heard = []
    listener.start()
    yield listener
    listener._stopping = True


def run(host, prompt: dict, client: str | None = None) -> list[tuple[str, str]]:
    """Run a prompt out of WORKFLOW; the (node, text) that were said."""
    texts = []
    queued = host._request("/prompt", {"prompt": prompt, "client_id": client or host.client_id,
                                       "extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}})
    try:
        host.follow(queued["prompt_id"], lambda event: event.kind == "text" and texts.append((event.node, event.text)))
    except NodeFailed as failure:
        texts.append(("failure", failure.message))
    return texts


def never_read(prompt: dict) -> dict:
    """The prompt with a dataset that no test has read before: the host answers one that it remembers from its caches, and
    the node says nothing then."""
    prompt["data"]["inputs"]["default_caption"] = f"an icon {uuid.uuid4().hex}"
    return prompt


def known(host, **query) -> dict:
    return host._request("/finetune/texts?" + "&".join(f"{name}={value}" for name, value in query.items()))["texts"]


def test_errors_and_texts_reach_the_client_that_queued_and_nobody_else(host, bystander):
    prompt = never_read(training(name="<script>window.x=1</script>"))
    said = dict(run(host, prompt))
    assert "images of" in said["data"] and said["failure"].startswith("name: '<script>")
    assert "'<script>window.x=1</script>' cannot name a run" in said["train"]
    assert bystander.heard == []

    mine = known(host, client=host.client_id, workflow=WORKFLOW["id"])
    assert mine["data"]["type"] == "FineTuneLoadImageDataset" and mine["train"]["type"] == "FineTuneTrainLora"
    assert "<script" not in mine["train"]["text"] and "cannot name a run" in mine["train"]["text"]
    assert known(host, client="somebody-else", workflow=WORKFLOW["id"]) == {}
    assert known(host, client=host.client_id, workflow="another") == known(host, client="", workflow="") == {}


def test_texts_of_nodes_that_the_host_answers_from_its_caches_are_known(host):
    prompt = {"data": never_read(training())["data"],
              "words": {"class_type": "FineTuneTriggerWord", "inputs": {
                  "dataset": ["data", 0], "trigger": "ohwx", "place": "front", "class_word": ""}},
              "show": {"class_type": "PreviewAny", "inputs": {"source": ["words", 1]}}}
    first = dict(run(host, prompt))
    assert "captions changed" in first["words"]
    queued = host._request("/prompt", {"prompt": prompt, "client_id": host.client_id})
    host.follow(queued["prompt_id"])
    again = known(host, prompt=queued["prompt_id"])
    assert again.keys() == {"data", "words"} and "captions changed" in again["words"]["text"]
    prompt["words"]["inputs"]["trigger"] = "sks"
    outputs = host._request("/prompt", {"prompt": prompt, "client_id": host.client_id})
    host.follow(outputs["prompt_id"])
    assert "sks" in known(host, prompt=outputs["prompt_id"])["words"]["text"]
