"""The server starts, knows the pack, and what happens to a prompt arrives as events and exceptions."""
import pytest
from environment import describe
from host_server import HostServer, NodeFailed, PromptRejected
from support.graphs import training

SAVE_AN_EMPTY_IMAGE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "empty"}},
}


def test_server_has_the_core_nodes(host):
    assert host.is_running()
    assert "KSampler" in host.object_info("KSampler")


def test_pack_is_linked_into_the_servers_own_folder(host):
    assert host.pack.samefile(host.environment.root)
    assert host.pack.parent.parent == host.base_directory


def test_nodes_of_the_pack_are_registered(host):
    ours = {name for name, node in host.object_info().items() if node["category"].startswith("FineTune")}
    assert ours, f"ComfyUI loaded none of the pack's nodes:\n{host.log_tail(40)}"


def test_prompt_runs_and_reports(host):
    events = []
    outputs = host.run(SAVE_AN_EMPTY_IMAGE, events.append)
    image = outputs["2"]["images"][0]
    assert (host.output / image["filename"]).is_file()
    assert [event.node for event in events if event.kind == "executing"] == ["1", "2"]
    assert events[-1].kind == "success"


def test_rejected_prompt_says_why(host):
    too_small = {**SAVE_AN_EMPTY_IMAGE, "1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 16}}}
    with pytest.raises(PromptRejected, match="EmptyImage: Value 0 smaller than min"):
        host.queue(too_small)


def test_failing_node_is_an_exception(host):
    (host.input / "broken.png").write_bytes(b"this is no image")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "broken"}},
    }
    with pytest.raises(NodeFailed) as failure:
        host.run(prompt)
    assert (failure.value.node_type, failure.value.node_id) == ("LoadImage", "1")
    assert host.is_running()


def test_workers_are_started_by_the_servers_own_python(tmp_path):
    """As people have it: all other servers of the tests have workers that start faster."""
    with HostServer(describe(), tmp_path) as server:
        assert "loads in ComfyUI with all" in server.run(training(steps=1))["train"]["text"][0]
