"""From the workflow JSON that people share to the prompt that ComfyUI's HTTP API takes.

A shared workflow is an image of the editor: nodes with a bare list of widget values, and links. The API wants every
input by its name. `/object_info` gives the names in the order of the widgets. What exists only in the editor goes away
on the way: notes, reroutes, primitives, muted and bypassed nodes.
"""
from __future__ import annotations

from dataclasses import dataclass

from failure import Failure

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROL_VALUES = {"fixed", "increment", "decrement", "randomize"}
UPLOAD_OPTIONS = {"image_upload": 1, "animated_image_upload": 1, "video_upload": 1, "audio_upload": 2}
EDITOR_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
MUTED, BYPASSED = 2, 4


class WorkflowError(Failure):
    """The workflow cannot be converted."""


@dataclass(frozen=True)
class Link:
    """A wire from an output of one node to an input of another."""

    origin: int
    origin_slot: int
    target: int
    target_slot: int

    @classmethod
    def read(cls, link: list | dict) -> Link:
        """Both spellings: a list in the old schema and in the editor's default, an object in the new one."""
        if isinstance(link, dict):
            return cls(link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
        return cls(*link[1:5])


@dataclass(frozen=True)
class Widget:
    """One widget of a node type."""

    name: str
    default: object
    has_control: bool  # a second, unnamed widget that says what happens to the seed after a run
    extra_values: int  # values of unnamed upload buttons


@dataclass(frozen=True)
class Constant:
    """A value that a primitive node feeds into an input."""

    value: object


class Graph:
    """The nodes and links of a workflow, and where an input's value really comes from."""

    def __init__(self, workflow: dict):
        if not isinstance(workflow.get("nodes"), list):
            raise WorkflowError("This is not a workflow saved by ComfyUI's editor: it has no list of nodes.")
        if (workflow.get("definitions") or {}).get("subgraphs"):
            raise WorkflowError("The workflow has subgraphs, which cannot run from here: unpack them and save again.")
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        links = workflow.get("links") or []
        self.links = {link["id"] if isinstance(link, dict) else link[0]: Link.read(link) for link in links}

    def running_nodes(self) -> list[dict]:
        """The nodes that ComfyUI will execute."""
        active = [node for node in self.nodes.values() if node.get("mode", 0) not in (MUTED, BYPASSED)]
        return [node for node in active if node["type"] not in EDITOR_ONLY]

    def source(self, link_id: int | None, passed: frozenset[int | None] = frozenset()) -> list | Constant | None:
        """What a link delivers: [node id, slot], a constant, or None when nothing real is at its other end."""
        link = self.links.get(link_id)
        if link is None or link_id in passed:
            return None
        node = self.nodes.get(link.origin)
        if node is None or node.get("mode", 0) == MUTED:
            return None
        if node["type"] == "PrimitiveNode":
            return Constant(node["widgets_values"][0])
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0].get("link"), passed | {link_id})
        if node.get("mode", 0) == BYPASSED:
            return self.source(bypassed_input(node, link.origin_slot), passed | {link_id})
        return [str(link.origin), link.origin_slot]


def bypassed_input(node: dict, slot: int) -> int | None:
    """The link that a bypassed node passes on at an output: that of the same slot, else of the first of its type."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs") or []
    for candidate in [*inputs[slot : slot + 1], *inputs]:
        if candidate["type"] == wanted:
            return candidate.get("link")
    return None


def to_prompt(workflow: dict, object_info: dict) -> dict[str, dict]:
    """Convert an editor workflow to an API prompt."""
    graph = Graph(workflow)
    return {str(node["id"]): api_node(node, graph, object_info) for node in graph.running_nodes()}


def api_node(node: dict, graph: Graph, object_info: dict) -> dict:
    """One node of the prompt: its type, and each input's value or [node id, slot]."""
    if node["type"] not in object_info:
        raise WorkflowError(unknown_type(node))
    definition = object_info[node["type"]]
    inputs = {name: wrapped(value) for name, value in widget_values(node, definition).items()}
    for slot in node.get("inputs") or []:
        source = graph.source(slot.get("link"))
        if source is not None:
            inputs[slot["name"]] = wrapped(source.value) if isinstance(source, Constant) else source
    return {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title(node, object_info)}}


def title(node: dict, object_info: dict) -> str:
    """The name on the node: the person's own, or the node type's."""
    return node.get("title") or object_info.get(node["type"], {}).get("display_name") or node["type"]


def wrapped(value: object) -> object:
    """A list as the API wants it, which would take a bare one for a link."""
    return {"__value__": value} if isinstance(value, list) else value


def input_specifications(definition: dict) -> dict[str, list]:
    """All inputs of a node type in the editor's order: required ones, then optional ones."""
    specifications = {}
    for group in ("required", "optional"):
        members = definition["input"].get(group) or {}
        order = (definition.get("input_order") or {}).get(group) or members
        specifications.update({name: members[name] for name in order})
    return specifications


def widgets_of(definition: dict) -> list[Widget]:
    """The widgets of a node type, in the order in which the editor saves their values."""
    widgets = []
    for name, (kind, *rest) in input_specifications(definition).items():
        options = rest[0] if rest else {}
        choices = kind if isinstance(kind, list) else options.get("options") or []
        if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGET_TYPES):
            continue
        default = options.get("default", choices[0] if choices else None)
        seed = kind == "INT" and name in ("seed", "noise_seed")
        extra = sum(count for option, count in UPLOAD_OPTIONS.items() if options.get(option))
        widgets.append(Widget(name, default, bool(options.get("control_after_generate", seed)), extra))
    return widgets


def widget_values(node: dict, definition: dict) -> dict[str, object]:
    """Each widget's saved value by its name; a widget that the workflow does not know yet has its default."""
    saved = node.get("widgets_values") or []
    widgets = widgets_of(definition)
    if isinstance(saved, dict):
        return {widget.name: saved.get(widget.name, widget.default) for widget in widgets}
    values, remaining = {}, list(saved)
    for widget in widgets:
        values[widget.name] = remaining.pop(0) if remaining else widget.default
        if widget.has_control and remaining and remaining[0] in CONTROL_VALUES:
            remaining.pop(0)
    return values


# --- check ----------------------------------------------------------------------------------------------------------


def check(workflow: dict, object_info: dict) -> list[str]:
    """Every problem of a workflow as a sentence; an empty list when it fits this ComfyUI."""
    try:
        graph = Graph(workflow)
    except WorkflowError as error:
        return [str(error)]
    problems = [problem for link_id, link in graph.links.items() for problem in link_problems(link_id, link, graph)]
    for node in graph.nodes.values():
        problems += slot_problems(node, graph)
    for node in graph.running_nodes():
        if node["type"] not in object_info:
            problems.append(unknown_type(node))
        else:
            problems += node_problems(node, graph, object_info[node["type"]])
    return problems


def link_problems(link_id: int, link: Link, graph: Graph) -> list[str]:
    """Ends of a link that lead to no node or no slot."""
    problems = []
    for role, node_id, side, slot in (
        ("from", link.origin, "outputs", link.origin_slot),
        ("to", link.target, "inputs", link.target_slot),
    ):
        node = graph.nodes.get(node_id)
        if node is None:
            problems.append(f"Link {link_id} leads {role} node {node_id}, which does not exist.")
        elif slot >= len(node.get(side) or []):
            problems.append(f"Link {link_id} leads {role} slot {slot} of {label(node)}, which has no such slot.")
    return problems


def slot_problems(node: dict, graph: Graph) -> list[str]:
    """Inputs that name a link which does not exist."""
    slots = [slot for slot in node.get("inputs") or [] if slot.get("link") is not None]
    return [
        f"Input {slot['name']} of {label(node)} names link {slot['link']}, which does not exist."
        for slot in slots
        if slot["link"] not in graph.links
    ]


def node_problems(node: dict, graph: Graph, definition: dict) -> list[str]:
    """Wrong number of widget values, inputs or outputs that the type lacks, required inputs without a link."""
    problems = []
    widgets = widgets_of(definition)
    saved = node.get("widgets_values") or []
    # Optional widgets that a type has got since the workflow was saved take their defaults.
    fewest = sum(widget.name in (definition["input"].get("required") or {}) for widget in widgets)
    most = len(widgets) + sum(widget.has_control + widget.extra_values for widget in widgets)
    if isinstance(saved, list) and not fewest <= len(saved) <= most:
        problems.append(f"The {label(node)} has {len(saved)} widget values, but its type has {len(widgets)} widgets.")
    known = input_specifications(definition)
    slots = {slot["name"]: slot for slot in node.get("inputs") or []}
    problems += [f"The {label(node)} has an input {name} that its type lacks." for name in slots if name not in known]
    if len(node.get("outputs") or []) > len(definition["output"]):
        problems.append(f"The {label(node)} has more outputs than its type.")
    with_widget = {widget.name for widget in widgets}
    for name in definition["input"].get("required") or {}:
        if name not in with_widget and graph.source(slots.get(name, {}).get("link")) is None:
            problems.append(f"Input {name} of {label(node)} is not connected.")
    return problems


def unknown_type(node: dict) -> str:
    """The sentence for a node type that this ComfyUI does not have."""
    return f"The {label(node)} is unknown to this ComfyUI: install or update the node pack that it belongs to."


def label(node: dict) -> str:
    """A node in a sentence."""
    return f"node {node['id']} ({node['type']})"
