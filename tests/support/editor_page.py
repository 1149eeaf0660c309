"""The frontend's page as the tests handle it: a graph with a LoRA Stack, its rows, and what the page complains about."""
import json
from pathlib import Path

HOSTILE = "<img src=x onerror=window.hacked=1>'\" ü.safetensors"
GRAPH = """(text) => {
  for (const node of [...app.graph._nodes]) app.graph.remove(node);
  const add = (type, x, y, values = {}) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    app.graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((widget) => widget.name === name).value = value;
    return node;
  };
  const stack = add("FineTuneLoraStack", 100, 100);
  const demo = add("FineTuneLoadDemoBase", 640, 60);
  const apply = add("FineTuneApplyLoraStack", 640, 240);
  const words = add("CLIPTextEncode", 640, 420, { text: "noto emoji of a lion" });
  const none = add("CLIPTextEncode", 640, 660);
  const latent = add("EmptyLatentImage", 1100, 60, { width: 64, height: 64, batch_size: 1 });
  const sample = add("KSampler", 1100, 240, { seed: 5, steps: 3, cfg: 4, sampler_name: "dpmpp_2m", scheduler: "normal" });
  const decode = add("VAEDecode", 1100, 560);
  const save = add("SaveImage", 1100, 680, { filename_prefix: "editor" });
  const link = (from, output, to, input) => from.connect(output, to, to.inputs.findIndex((slot) => slot.name === input));
  link(demo, 0, apply, "model"), link(demo, 1, apply, "clip"), link(stack, 0, apply, "lora_stack");
  link(apply, 1, words, "clip"), link(apply, 1, none, "clip"), link(apply, 0, sample, "model");
  link(words, 0, sample, "positive"), link(none, 0, sample, "negative"), link(latent, 0, sample, "latent_image");
  link(sample, 0, decode, "samples"), link(demo, 2, decode, "vae"), link(decode, 0, save, "images");
  if (text) stack.widgets.find((widget) => widget.name === "rows").value = text;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
}"""
OWN = ("user.css", "favicon.ico", "/api/userdata", "/templates/", "workflow templates", "api.comfy.org",
       "reading 'id')\n    at onChange", "graph accessed before initialization", "huggingface.co",
       "getCanvas: canvas is null")
"""What the frontend itself complains about on a server without saved workflows, templates and internet."""
STACK = "app.graph._nodes.find((node) => node.type === 'FineTuneLoraStack')"
TRACKER = "app.extensionManager.workflow.activeWorkflow.changeTracker"

FORGET_HISTORY = f"""() => {{
  const tracker = {TRACKER};
  (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
  tracker.undoQueue.length = tracker.redoQueue.length = 0;
}}"""
FOCUSED = """() => {
  const rows = [...document.querySelectorAll(".ftls-row")];
  const at = document.activeElement;
  return [rows.indexOf(at.closest(".ftls-row")), at.dataset.control ?? ""];
}"""


class EditorPage:
    """One open page. `renderer` is "classic" or "vue"."""

    def __init__(self, page, host, renderer: str):
        self.page, self.host, self.renderer = page, host, renderer
        self._said = []
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self._said.append(f"{error}"))
        page.on("console", lambda message: message.type == "error" and self._said.append(
            f"{message.text} {message.location.get('url', '')}"))

    def open(self):
        """Load the page anew and wait until the frontend and the editor's extension are there."""
        self.page.goto(self.host.url, wait_until="domcontentloaded")
        self.page.wait_for_function(
            "window.app?.graph && app.extensionManager?.workflow?.activeWorkflow"
            " && LiteGraph.registered_node_types.FineTuneLoraStack"
            " && app.extensions.some((extension) => extension.name === 'FineTune.LoraStack')", timeout=180_000)
        self.settle()

    def new_graph(self, text: str = ""):
        """A stack of the demo base and all that draws an image with it, at a scale of 1, with an empty history."""
        self.problems()
        self.page.keyboard.press("Escape")
        self.page.evaluate(GRAPH, text)
        self.page.wait_for_function("() => document.querySelectorAll('.ftls').length === 1")
        self.settle()
        self.load(self.workflow())  # a graph that was loaded once comes out of the history as it went in
        self.page.evaluate(FORGET_HISTORY)

    def problems(self) -> list[str]:
        """Errors of the page since the last call, without those that the frontend has by itself on a bare server."""
        said, self._said[:] = list(self._said), []
        return [line for line in said if not any(word in line for word in OWN)]

    # ---- the editor -------------------------------------------------------------------------------------------------

    def settle(self):
        """Until the frontend has laid out what changed and taken it into its history, or brought it back from there, which
        takes some frames, and until a next change is a step of its own: newer frontends take what changes in the next 50 ms
        into the same step."""
        self.page.wait_for_timeout(60)
        self.page.wait_for_function(f"() => {TRACKER}.changeCount === 0 && !{TRACKER}._restoringState")
        self.page.evaluate("() => new Promise((done) => setTimeout(done, 60))")

    def row(self, number: int):
        return self.page.locator(".ftls-row").nth(number)

    def control(self, number: int, name: str):
        return self.row(number).locator(f'[data-control="{name}"]')

    def pick(self, name: str):
        """Choose a file in the open list with the mouse."""
        self.page.locator(".ftls-option").get_by_text(name, exact=True).click()

    def wait_for_last(self, name: str):
        """Until the last row shows a name: an added row comes when the server has told the file's hash."""
        self.page.wait_for_function(
            "(name) => [...document.querySelectorAll('.ftls-name')].at(-1)?.textContent === name", arg=name)

    def press(self, *keys: str):
        for key in keys:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(20)

    def tab_to(self, row: int, control: str, back: bool = False):
        """Press Tab, or Shift+Tab, until a control has the focus."""
        for _ in range(60):
            if self.focused == [row, control]:
                return
            self.page.keyboard.press("Shift+Tab" if back else "Tab")
        raise AssertionError(f"Tab does not lead to {control} of row {row}; the focus is at {self.focused}.")

    def drag(self, start, end, steps: int = 8):
        """Press the mouse at one place, move it to another and release it; places are (x, y)."""
        self.page.mouse.move(*start)
        self.page.mouse.down()
        self.page.mouse.move(*end, steps=steps)
        self.page.mouse.up()

    @staticmethod
    def middle(locator) -> tuple[float, float]:
        box = locator.bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    @property
    def text(self) -> str:
        """The widget's text."""
        return self.page.evaluate(f"{STACK}.widgets.find((widget) => widget.name === 'rows').value")

    @property
    def rows(self) -> list[dict]:
        return json.loads(self.text)["rows"] if self.text else []

    @property
    def names(self) -> list[str]:
        return self.page.locator(".ftls-name").all_inner_texts()

    @property
    def focused(self) -> list:
        """[row, control] with the focus."""
        return self.page.evaluate(FOCUSED)

    def history(self) -> tuple[int, int]:
        """How many steps can be undone and redone."""
        self.settle()
        return tuple(self.page.evaluate(f"() => [{TRACKER}.undoQueue.length, {TRACKER}.redoQueue.length]"))

    # ---- the graph --------------------------------------------------------------------------------------------------

    def workflow(self) -> dict:
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def load(self, workflow: dict):
        self.page.evaluate(
            "(workflow) => app.loadGraphData(workflow, true, true, app.extensionManager.workflow.activeWorkflow)", workflow)
        self.page.locator(".ftls").first.wait_for()
        self.settle()

    def api_prompt(self) -> dict:
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def queue(self) -> dict:
        """Queue the graph as the Run button does; returns the ui output of each node."""
        with self.page.expect_response("**/prompt") as answer:
            self.page.evaluate("() => app.queuePrompt(0)")
        assert answer.value.status == 200, answer.value.text()
        return self.host.follow(answer.value.json()["prompt_id"])

    def view(self) -> list:
        """Scale and offset of the canvas, and where the stack is."""
        return self.page.evaluate(f"() => [app.canvas.ds.scale, ...app.canvas.ds.offset, ...{STACK}.pos]")

    def screenshot(self, path: Path):
        box = self.page.locator(".ftls").bounding_box()
        self.page.screenshot(path=path, clip={"x": box["x"] - 30, "y": max(0, box["y"] - 110), "width": box["width"] + 60,
                                              "height": min(box["height"] + 150, 890)})
