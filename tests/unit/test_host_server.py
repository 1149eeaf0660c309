"""A server that cannot start, and the answers of a server, without a server."""
import sys

import pytest
from environment import Environment
from failure import Failure
from host_server import HostServer, NodeFailed, PromptInterrupted, link_folder, outputs_of, rejection_sentences


def test_server_that_ends_at_once_is_a_sentence_with_its_log(tmp_path):
    comfyui = tmp_path / "comfyui"
    comfyui.mkdir()
    (comfyui / "main.py").write_text("raise SystemExit('a library is missing')")
    environment = Environment(tmp_path / "pack", tmp_path / ".venv", sys.executable, comfyui, tmp_path)
    environment.root.mkdir()
    server = HostServer(environment, tmp_path / "base")
    with pytest.raises(Failure, match="ended while it started(.|\n)*a library is missing"), server:
        pass
    assert not server.is_running()


def record(kind, **data):
    return {"status": {"messages": [["execution_start", {}], [kind, data]]}, "outputs": {"2": {"text": ["x"]}}}


def test_history_becomes_outputs_or_an_exception():
    assert outputs_of(record("execution_success")) == {"2": {"text": ["x"]}}
    with pytest.raises(PromptInterrupted):
        outputs_of(record("execution_interrupted"))
    with pytest.raises(NodeFailed, match="The node Train failed: no images"):
        outputs_of(record("execution_error", node_id="2", node_type="Train", exception_message="no images\n"))


def test_rejection_names_the_node_as_the_person_does():
    error = {"message": "Value too small", "details": "rank"}
    answer = {"error": error, "node_errors": {"2": {"class_type": "Train", "errors": [error]}}}
    assert rejection_sentences(answer, {"2": {"_meta": {"title": "My node"}}}) == ["My node: Value too small: rank"]
    assert rejection_sentences({"error": error, "node_errors": {}}, {}) == ["Value too small rank"]


def test_link_is_moved_when_the_repository_was(tmp_path):
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "link"
    for folder in (old, new):
        folder.mkdir()
    for target in (old, new, new):
        link_folder(target, link)
        assert link.samefile(target)


def test_folder_in_the_way_of_the_link_is_left_alone(tmp_path):
    (tmp_path / "link").mkdir()
    with pytest.raises(Failure, match="in the way"):
        link_folder(tmp_path, tmp_path / "link")
