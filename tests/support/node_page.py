"""Nodes in the page as the tests handle them: a graph, what its nodes show, and runs from the page."""
import time

BUILD = """([nodes, links]) => {
  for (const node of [...app.graph._nodes]) app.graph.remove(node);
  const made = {};
  for (const [name, [type, x, y, values]] of Object.entries(nodes)) {
    const node = (made[name] = LiteGraph.createNode(type));
    node.pos = [x, y];
    app.graph.add(node);
    for (const [key, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === key).value = value;
  }
  for (const [from, output, to, input] of links) {
    made[from].connect(output, made[to], made[to].inputs.findIndex((slot) => slot.name === input));
  }
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
  return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, String(node.id)]));
}"""
BOX = """(id) => {
  const vue = document.querySelector(`[data-node-id="${id}"]`);
  if (vue) return vue.querySelector(".comfy-markdown-content");
  const node = app.graph.getNodeById(id), { scale, offset } = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const [left, top] = [0, 1].map((axis) => (node.pos[axis] + offset[axis]) * scale);
  return [...document.querySelectorAll(".dom-widget")].find((box) => {
    const { x, y, width, height } = box.getBoundingClientRect();
    const across = x + width / 2 - canvas.x - left, down = y + height / 2 - canvas.y - top;
    const inside = across > 0 && across < node.size[0] * scale && down > 0 && down < node.size[1] * scale;
    return inside && height > 0 && box.querySelector(".break-all");
  });
}"""
"""The element that shows a node's text, in either renderer."""


class NodePage:
    """A graph in an open EditorPage."""

    def __init__(self, page, nodes: dict, links: list):
        """`nodes`: name → [type, x, y, {widget: value}]; `links`: [from, output number, to, input name]."""
        self.editor, self.page, self.host = page, page.page, page.host
        self.ids = self.page.evaluate(BUILD, [nodes, links])
        page.settle()
        # As people open it. In a graph that was just linked, the Vue renderer of 1.32.9 shows no widget that comes later.
        self.page.evaluate("(graph) => app.loadGraphData(graph, true, true, app.extensionManager.workflow.activeWorkflow)",
                           page.workflow())
        page.settle()

    def copy(self, editor) -> "NodePage":
        """The same graph in another open page."""
        copied = object.__new__(NodePage)
        copied.editor, copied.page, copied.host, copied.ids = editor, editor.page, editor.host, self.ids
        copied.page.evaluate("(graph) => app.loadGraphData(graph)", self.editor.workflow())
        copied.page.wait_for_function("(id) => app.graph.getNodeById(id)?.type", arg=self.ids["train"])
        return copied

    def load_anew(self):
        """Load the page again; the frontend opens the workflow that was open."""
        self.editor.settle()
        # The frontend keeps a changed workflow for the next load, half a second after it hears of the change.
        self.page.evaluate("() => app.api.dispatchEvent(new CustomEvent('graphChanged', { detail: app.graph.serialize() }))")
        self.page.wait_for_timeout(1000)
        self.editor.open()
        self.page.wait_for_function("(ids) => ids.every((id) => app.graph.getNodeById(id))", arg=[*self.ids.values()])

    def queue(self) -> str:
        """Queue the graph as the Run button does and return the prompt's id."""
        with self.page.expect_response("**/prompt") as answer:
            self.page.evaluate("() => app.queuePrompt(0)")
        assert answer.value.status == 200, answer.value.text()
        return answer.value.json()["prompt_id"]

    def set(self, node: str, widget: str, value):
        self.page.evaluate("""([id, name, value]) => {
            app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value = value;
        }""", [self.ids[node], widget, value])

    def text(self, node: str) -> str:
        """What a person reads on a node."""
        return self.page.evaluate(f"(id) => ({BOX})(id)?.innerText ?? ''", self.ids[node])

    def markup(self, node: str) -> list[str]:
        """Names of the elements in a node's text."""
        return self.page.evaluate(
            f"(id) => [...({BOX})(id).querySelectorAll('*')].map((each) => each.localName)", self.ids[node])

    def wait_for_text(self, node: str, *words: str, seconds: float = 180) -> str:
        """Until a node shows one of the `words`."""
        end, shown = time.monotonic() + seconds, ""
        while time.monotonic() < end:
            shown = self.text(node)
            if any(each in shown for each in words):
                return shown
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{node} never showed {words}, but in the end: {shown!r}")

    def images(self, node: str) -> list[str]:
        """Addresses of the images that a node shows, in either renderer."""
        return self.page.evaluate("""(id) => {
            const vue = document.querySelector(`[data-node-id="${id}"]`);
            const node = app.graph.getNodeById(id);
            return [...(vue ? vue.querySelectorAll("img") : node.imgs ?? [])].map((each) => each.src);
        }""", self.ids[node])

    def interrupt(self):
        """As the Cancel button does."""
        self.page.evaluate("() => fetch('api/interrupt', { method: 'POST' })")
