"""Workflows written by hand, converted with a small `/object_info`."""
import pytest
import workflow
from workflow import WorkflowError

OBJECT_INFO = {
    "Load": {
        "input": {"required": {"name": [["a.safetensors", "b.safetensors"], {}]}},
        "output": ["MODEL", "VAE"],
        "display_name": "Load Model",
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "steps": ["INT", {"default": 20}],
            },
            "optional": {
                "scheduler": ["COMBO", {"options": ["simple", "karras"]}],
                "strength": ["FLOAT", {"forceInput": True}],
                "tags": ["COMBO", {"options": ["x", "y"], "multiselect": True, "default": []}],
            },
        },
        "input_order": {"required": ["model", "seed", "steps"], "optional": ["scheduler", "strength", "tags"]},
        "output": ["IMAGE"],
    },
    "Patch": {
        "input": {"required": {"vae": ["VAE", {}], "model": ["MODEL", {}]}},
        "output": ["MODEL"],
    },
    "Image": {
        "input": {"required": {"image": [["cat.png"], {"image_upload": True}]}},
        "output": ["IMAGE"],
    },
}


def node(node_id, kind, values=None, inputs=(), outputs=(), mode=0, **more):
    """A node; `inputs` are (name, type, link) and `outputs` are types."""
    return {
        "id": node_id,
        "type": kind,
        "mode": mode,
        "inputs": [{"name": name, "type": slot_type, "link": link} for name, slot_type, link in inputs],
        "outputs": [{"name": slot_type, "type": slot_type} for slot_type in outputs],
        **({} if values is None else {"widgets_values": values}),
        **more,
    }


def load_node(node_id=1, **more):
    return node(node_id, "Load", ["b.safetensors"], outputs=["MODEL", "VAE"], **more)


def sample_node(link, values=(7, "randomize", 30, "karras", ["x"]), **more):
    return node(9, "Sample", list(values), [("model", "MODEL", link)], ["IMAGE"], **more)


def graph(*nodes, links=()):
    return {"nodes": list(nodes), "links": [list(link) for link in links]}


SIMPLE = graph(load_node(), sample_node(1), links=[(1, 1, 0, 9, 0, "MODEL")])


def convert(workflow_json):
    return workflow.to_prompt(workflow_json, OBJECT_INFO)


def sample_inputs(workflow_json):
    return convert(workflow_json)["9"]["inputs"]


def test_widgets_get_their_names_and_the_seed_control_is_skipped():
    assert sample_inputs(SIMPLE) == {
        "model": ["1", 0],
        "seed": 7,
        "steps": 30,
        "scheduler": "karras",
        "tags": {"__value__": ["x"]},
    }


def test_title_is_the_persons_own_or_the_types():
    prompt = convert(graph(load_node(1), load_node(2, title="My base")))
    assert [prompt[key]["_meta"]["title"] for key in ("1", "2")] == ["Load Model", "My base"]


def test_seed_without_saved_control_value():
    assert sample_inputs(graph(load_node(), sample_node(None, values=[7, 30, "karras", []])))["steps"] == 30


def test_widgets_added_since_the_workflow_was_saved_have_their_defaults():
    inputs = sample_inputs(graph(load_node(), sample_node(None, values=[7, "fixed"])))
    assert (inputs["steps"], inputs["scheduler"]) == (20, "simple")


def test_values_saved_by_name():
    inputs = sample_inputs(graph(sample_node(None) | {"widgets_values": {"steps": 3, "seed": 5}}))
    assert (inputs["seed"], inputs["steps"]) == (5, 3)


def test_upload_button_value_is_ignored():
    assert convert(graph(node(1, "Image", ["cat.png", "image"])))["1"]["inputs"] == {"image": "cat.png"}


def test_links_written_as_objects():
    new_schema = {
        "nodes": SIMPLE["nodes"],
        "links": [{"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 9, "target_slot": 0, "type": "MODEL"}],
    }
    assert convert(new_schema) == convert(SIMPLE)


def test_widget_converted_to_an_input_takes_the_link():
    sample = node(9, "Sample", [7, "fixed", 30, "karras", []], [("model", "MODEL", None), ("steps", "INT", 1)])
    assert sample_inputs(graph(load_node(), sample, links=[(1, 1, 0, 9, 1, "INT")]))["steps"] == ["1", 0]


def test_primitive_gives_its_value():
    primitive = node(3, "PrimitiveNode", [12, "fixed"], outputs=["INT"])
    sample = node(9, "Sample", [7, "fixed", 30, "karras", []], [("steps", "INT", 1)])
    prompt = convert(graph(primitive, sample, links=[(1, 3, 0, 9, 0, "INT")]))
    assert prompt["9"]["inputs"]["steps"] == 12 and "3" not in prompt


def test_reroutes_disappear():
    first = node(2, "Reroute", inputs=[("", "*", 1)], outputs=["MODEL"])
    second = node(3, "Reroute", inputs=[("", "*", 2)], outputs=["MODEL"])
    links = [(1, 1, 0, 2, 0, "MODEL"), (2, 2, 0, 3, 0, "MODEL"), (3, 3, 0, 9, 0, "MODEL")]
    prompt = convert(graph(load_node(), first, second, sample_node(3), links=links))
    assert prompt["9"]["inputs"]["model"] == ["1", 0] and set(prompt) == {"1", "9"}


def test_reroutes_in_a_circle_end():
    first = node(2, "Reroute", inputs=[("", "*", 2)], outputs=["MODEL"])
    second = node(3, "Reroute", inputs=[("", "*", 1)], outputs=["MODEL"])
    links = [(1, 2, 0, 3, 0, "*"), (2, 3, 0, 2, 0, "*"), (3, 3, 0, 9, 0, "*")]
    assert "model" not in sample_inputs(graph(first, second, sample_node(3), links=links))


def test_bypassed_node_passes_on_the_input_of_the_same_type():
    patch = node(2, "Patch", inputs=[("vae", "VAE", 1), ("model", "MODEL", 2)], outputs=["MODEL"], mode=4)
    links = [(1, 1, 1, 2, 0, "VAE"), (2, 1, 0, 2, 1, "MODEL"), (3, 2, 0, 9, 0, "MODEL")]
    prompt = convert(graph(load_node(), patch, sample_node(3), links=links))
    assert prompt["9"]["inputs"]["model"] == ["1", 0] and "2" not in prompt


def test_muted_node_cuts_its_links():
    prompt = convert(graph(load_node(mode=2), sample_node(1), links=[(1, 1, 0, 9, 0, "MODEL")]))
    assert "model" not in prompt["9"]["inputs"] and "1" not in prompt


def test_notes_are_skipped():
    notes = [node(5, "Note", ["hello"]), node(6, "MarkdownNote", ["# hello"])]
    assert convert(graph(load_node(), *notes)).keys() == {"1"}


def test_unknown_type_is_a_sentence_but_not_when_muted():
    with pytest.raises(WorkflowError, match=r"node 4 \(Strange\) is unknown to this ComfyUI"):
        convert(graph(node(4, "Strange")))
    assert convert(graph(node(4, "Strange", mode=2))) == {}


def test_subgraphs_and_api_prompts_are_refused_with_a_sentence():
    with pytest.raises(WorkflowError, match="subgraphs"):
        convert({"nodes": [], "definitions": {"subgraphs": [{}]}})
    with pytest.raises(WorkflowError, match="not a workflow"):
        convert({"1": {"class_type": "Load", "inputs": {}}})


def test_check_accepts_what_fits():
    assert workflow.check(SIMPLE, OBJECT_INFO) == []
    assert workflow.check(graph(node(1, "Image", ["cat.png", "image"])), OBJECT_INFO) == []


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (graph(node(4, "Strange")), "node 4 (Strange) is unknown"),
        (graph(node(1, "Load", [], outputs=["MODEL"])), "has 0 widget values, but its type has 1"),
        (graph(node(1, "Load", ["a.safetensors", 1, 2])), "has 3 widget values"),
        (graph(load_node(), sample_node(1)), "names link 1, which does not exist"),
        (graph(sample_node(None)), "Input model of node 9 (Sample) is not connected"),
        (graph(sample_node(1), links=[(1, 5, 0, 9, 0, "MODEL")]), "leads from node 5, which does not exist"),
        (graph(load_node(), sample_node(1), links=[(1, 1, 8, 9, 0, "MODEL")]), "slot 8 of node 1 (Load)"),
        (graph(node(1, "Load", ["a.safetensors"], [("old", "INT", None)])), "an input old that its type lacks"),
        (graph(node(1, "Load", ["a.safetensors"], outputs=["MODEL", "VAE", "CLIP"])), "more outputs than its type"),
    ],
)
def test_check_names_each_problem(broken, expected):
    assert any(expected in problem for problem in workflow.check(broken, OBJECT_INFO))
