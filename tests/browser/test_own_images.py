"""The way to a LoRA of one's own images, as a person goes it: the template, the folder, Run. Every action is counted."""
import json
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

import pytest
from PIL import Image

TEMPLATE = "1 Train a LoRA on my own images"
FOLDER = "input/my images"
PLACE = """([type, name]) => {
  const node = app.graph._nodes.find((each) => each.type === type);
  const widget = node.widgets.find((each) => each.name === name);
  const { scale, offset } = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
  const y = widget.y ?? widget.last_y;
  return [canvas.x + (node.pos[0] + node.size[0] * 0.6 + offset[0]) * scale,
          canvas.y + (node.pos[1] + y + 10 + offset[1]) * scale];
}"""
UNKNOWN = """() => app.graph._nodes.map((node) => node.type).filter(
  (type) => !(type in LiteGraph.registered_node_types))"""
READABLE = 0.571
"""Below this scale the classic renderer of newer frontends draws no text (14 pixels become less than 8)."""


@pytest.fixture(scope="module", autouse=True)
def own_images(host):
    folder = host.input / FOLDER.removeprefix("input/")
    folder.mkdir(exist_ok=True)  # once for each renderer
    for number, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (96, 80), color).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"noto emoji of a {color} square", encoding="utf-8")


class Person:
    """Counts what a person does."""

    def __init__(self, editor):
        self.page, self.editor, self.actions = editor.page, editor, 0

    def open_template(self, name: str):
        """As the template browser does when a template is clicked."""
        self.actions += 1
        address = f"/api/workflow_templates/finetune-nodes/{quote(name)}.json"
        with build_opener(ProxyHandler({})).open(self.editor.host.url + address) as answer:
            workflow = json.load(answer)
        self.page.evaluate("([workflow, name]) => app.loadGraphData(workflow, true, true, name, { openSource: 'template' })",
                           [workflow, name])
        self.page.wait_for_function("(count) => app.graph._nodes.length === count", arg=len(workflow["nodes"]))
        self.page.wait_for_timeout(500)

    def choose(self, node: str, widget: str, value: str):
        """Open a list on a node with the mouse, and click a line of it."""
        self.actions += 2
        if self.editor.renderer == "vue":
            number = self.page.evaluate("(type) => app.graph._nodes.find((each) => each.type === type).id", node)
            self.page.locator(f'[data-node-id="{number}"]').get_by_text("examples/openmoji").first.click()
        else:
            self.page.mouse.click(*self.page.evaluate(PLACE, [node, widget]))
        self.page.locator(".litecontextmenu .litemenu-entry, [role=option]").filter(has_text=value).last.click()

    def run(self) -> dict:
        self.actions += 1
        with self.page.expect_response("**/prompt") as answer:
            self.page.get_by_role("button", name="Run", exact=True).first.click()
        assert answer.value.status == 200, answer.value.text()
        return self.editor.host.follow(answer.value.json()["prompt_id"])


def test_from_a_folder_of_images_to_a_lora(open_page):
    open_page.open()  # anew, because the page lists the folders that there were
    person = Person(open_page)
    person.open_template(TEMPLATE)
    assert open_page.page.evaluate("() => app.canvas.ds.scale") > READABLE
    person.choose("FineTuneLoadImageDataset", "folder", FOLDER)
    outputs = person.run()
    assert person.actions == 4
    nodes = {node["type"]: str(node["id"]) for node in open_page.workflow()["nodes"]}
    train = outputs[nodes["FineTuneTrainLora"]]
    assert train["lora"] == ["my_lora.safetensors"] and (open_page.host.output / "loras" / "my_lora.safetensors").is_file()
    assert ("Recommended for this base and used instead of the gray widgets: steps 150, learning rate 0.0002, rank 8, alpha "
            "8, targets all with convolutions, text encoder learning rate 0, batch size 3, resolution 64, min-SNR 0. "
            "Source: "
            ) in train["text"][0]
    assert len(outputs[nodes["SaveImage"]]["images"]) == 1
    report = json.loads((open_page.host.output / "finetune" / "my_lora" / "spec.json").read_text(encoding="utf-8"))
    assert sorted(report["previews"]["prompts"]) == [f"noto emoji of a {each} square" for each in ("blue", "green", "red")]


def test_what_the_preset_chose_is_shown_in_its_widgets(open_page):
    """After the run of the test before."""
    shown = """() => Object.fromEntries(app.graph._nodes.find((node) => node.type === "FineTuneTrainLora").widgets.map(
        (widget) => [widget.name, [widget.value, !!widget.disabled]]))"""
    open_page.page.wait_for_function(f"() => ({shown})().steps[0] === 150")
    widgets = open_page.page.evaluate(shown)
    assert {name: widgets[name] for name in ("steps", "rank", "batch_size", "resolution", "targets")} == {
        "steps": [150, True], "rank": [8, True], "batch_size": [3, True], "resolution": [64, True],
        "targets": ["all with convolutions", True]}
    assert not widgets["name"][1] and not widgets["training_seed"][1]
    open_page.page.evaluate("""() => {
        const preset = app.graph._nodes.find((node) => node.type === "FineTuneTrainLora").widgets.find(
            (widget) => widget.name === "preset");
        preset.value = "custom";
        preset.callback("custom");
    }""")
    assert not open_page.page.evaluate(shown)["steps"][1]


def test_every_template_opens_so_that_it_can_be_read(open_page):
    """And with nodes that there are."""
    if open_page.renderer == "classic":  # the other one draws text at any scale
        for path in sorted((open_page.host.environment.root / "example_workflows").glob("*.json")):
            Person(open_page).open_template(path.stem)
            assert open_page.page.evaluate("() => app.canvas.ds.scale") > READABLE, path.stem
            assert open_page.page.evaluate(UNKNOWN) == [], path.stem
