"""The stack editor as people use it: by mouse and by keyboard, undone and redone, saved and loaded, and the same image."""
import json

import numpy as np
import pytest
from finetune.trainers.stacking import parse_rows
from finetune.trainers.stacking.cards import data_bytes, hashes_of
from support.editor_page import STACK
from support.graphs import images_of, sampling

IS_TEXT = f"(text) => {STACK}.widgets[0].value === text"
INK, PAPER, ANNA = "styles/ink wash.safetensors", "styles/paper cut.safetensors", "people/Anna.safetensors"


def identity(host, name: str) -> dict:
    path = host.base_directory / "models" / "loras" / name
    return {"hash": hashes_of(path)[0], "bytes": data_bytes(path)}


def meanings(text: str) -> list:
    return list(parse_rows(text))


def expected(host) -> list[dict]:
    """The stack that both tests build, written by hand."""
    return [
        {"lora": ANNA, **identity(host, ANNA), "model": 0.6, "text": -0.25},
        {"lora": INK, **identity(host, INK), "model": 0.8, "blocks": "OUTD, IN04=0.5", "convolution": 0.5},
        {"lora": PAPER, **identity(host, PAPER), "model": 0.9, "on": False},
    ]


@pytest.fixture(scope="module")
def python_image(host) -> np.ndarray:
    """What the Python side draws with the same stack given directly as an API prompt."""
    prompt = {
        "demo": {"class_type": "FineTuneLoadDemoBase", "inputs": {}},
        "stack": {"class_type": "FineTuneLoraStack", "inputs": {"rows": json.dumps(expected(host))}},
        "apply": {"class_type": "FineTuneApplyLoraStack", "inputs": {
            "model": ["demo", 0], "clip": ["demo", 1], "lora_stack": ["stack", 0]}}}
    prompt = sampling(prompt, ["apply", 0], ["apply", 1], "direct", seeds=1)
    prompt["direct/sample"]["inputs"]["steps"] = 3
    return images_of(host, host.run(prompt), "direct/save")


def check_the_stack(page, host, python_image, anew: bool):
    """What was built is what it should be: in the page, in the saved workflow (`anew`: in a page that knows nothing else),
    in the API prompt, and as an image."""
    assert page.names == ["Anna", "ink wash", "paper cut"]
    assert meanings(page.text) == meanings(json.dumps(expected(host)))
    text, workflow = page.text, page.workflow()
    if anew:
        page.open()
    page.load(workflow)
    assert page.text == text and page.names == ["Anna", "ink wash", "paper cut"]
    before, after = (next(node for node in saved["nodes"] if node["type"] == "FineTuneLoraStack")
                     for saved in (workflow, page.workflow()))
    assert after["widgets_values"] == before["widgets_values"] == [text] and after["size"] == before["size"]
    (sent,) = [node["inputs"] for node in page.api_prompt().values() if node["class_type"] == "FineTuneLoraStack"]
    assert sent == {"rows": text}
    outputs = page.queue()
    (saved,) = [node for node, output in outputs.items() if "images" in output]
    assert np.array_equal(images_of(host, outputs, saved), python_image)


def undo_and_redo(page, texts: list[str], count: int | None = None):
    """Each change is one step of the frontend's history: back through the last `count` texts, or all, and forth again."""
    steps = len(texts) - 1
    count = count or steps
    assert page.history() == (steps, 0)
    for key, order in (("Control+z", texts[-2::-1][:count]), ("Control+Shift+z", texts[-count:])):
        for text in order:
            page.press(key)
            page.page.wait_for_function(IS_TEXT, arg=text)
            page.settle()
    assert page.history() == (steps, 0)


class Texts(list):
    """The widget's text after each change."""

    def note(self, page):
        page.settle()
        self.append(page.text)


def test_a_stack_of_three_by_mouse(page, host, python_image):
    where, texts = page.view(), Texts([page.text])

    for name in ("ink wash", "paper cut", "Anna"):
        page.page.locator(".ftls-add").click()
        page.pick(name)
        page.wait_for_last(name)
        texts.note(page)

    x, y = page.middle(page.control(2, "handle"))
    page.drag((x, y), (x, page.middle(page.control(0, "handle"))[1] - 8))
    texts.note(page)
    assert page.names == ["Anna", "ink wash", "paper cut"]

    page.control(0, "link").click()
    texts.note(page)
    for row, control, typed in ((0, "model", "0.6"), (0, "text", "-0,25"), (2, "model", ".9")):
        page.control(row, control).fill(typed)
        page.control(1, "model").click()  # the number is taken when another field gets the focus
        texts.note(page)
    page.control(2, "on").click()
    texts.note(page)

    slider = page.control(1, "model-slider").bounding_box()
    places = [(slider["x"] + 6 + (slider["width"] - 12) * (value + 2) / 4, slider["y"] + slider["height"] / 2)
              for value in (1, 0.5)]
    page.drag(*places)
    texts.note(page)
    assert 0.4 < page.rows[1]["model"] < 0.6 and "text" not in page.rows[1]
    page.control(1, "model").fill("0.8")
    page.control(2, "model").click()
    texts.note(page)

    page.control(1, "blocks").click()
    texts.note(page)
    page.control(1, "preset").select_option("OUTD")
    texts.note(page)
    bar = page.control(1, "block-IN04").bounding_box()
    x = bar["x"] + bar["width"] / 2
    page.drag((x, bar["y"] + bar["height"] - 2), (x, bar["y"] + bar["height"] * 0.75))
    texts.note(page)
    assert page.rows[1]["blocks"] == "OUTD, IN04=0.5"
    page.control(1, "convolution").fill("0.5")
    page.control(1, "convolution").press("Enter")
    texts.note(page)

    page.control(0, "duplicate").click()
    texts.note(page)
    assert page.names == ["Anna", "Anna", "ink wash", "paper cut"]
    page.control(1, "remove").click()
    texts.note(page)
    page.page.locator(".ftls-header .ftls-switch").click()
    texts.note(page)
    assert [row["on"] for row in page.rows] == [True, True, True]
    assert page.view() == where, "presses and drags have moved the canvas or the node"

    undo_and_redo(page, texts)
    page.press("Control+z")
    page.page.wait_for_function(IS_TEXT, arg=texts[-2])
    check_the_stack(page, host, python_image, anew=True)


def test_the_same_stack_by_keyboard_alone(page, host, python_image):
    texts = Texts([page.text])
    page.page.locator(".ftls-add").focus()
    for filtered, name in (("styles in", "ink wash"), ("paper cut", "paper cut"), ("ANNA", "Anna")):
        page.press("Enter")
        page.page.keyboard.type(filtered)
        page.press("Enter")
        page.wait_for_last(name)
        texts.note(page)
        assert page.focused == [len(page.rows) - 1, "model"]
        page.tab_to(-1, "add")

    page.tab_to(2, "model", back=True)
    page.press("Alt+ArrowUp")
    texts.note(page)
    assert page.focused == [1, "model"]
    page.press("Alt+ArrowUp")
    texts.note(page)
    assert page.focused == [0, "model"] and page.names == ["Anna", "ink wash", "paper cut"]
    page.page.keyboard.type("0.6")
    page.press("Enter")
    texts.note(page)
    page.tab_to(0, "link")
    page.press("Space")
    texts.note(page)
    page.tab_to(0, "text")
    page.page.keyboard.type("-0.25")
    page.press("Tab")
    texts.note(page)
    page.tab_to(1, "model-slider")
    for _ in range(4):
        page.press("ArrowLeft")
        texts.note(page)
    page.tab_to(2, "on")
    page.press("Space")
    texts.note(page)
    page.tab_to(2, "model")
    page.press("ArrowDown")
    texts.note(page)
    page.press("ArrowDown")
    texts.note(page)

    page.tab_to(1, "blocks", back=True)
    page.press("Enter")
    texts.note(page)
    page.tab_to(1, "blocks-text")
    page.page.keyboard.type("outd")
    page.press("Enter")
    texts.note(page)
    page.tab_to(1, "block-BASE")
    page.press("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "PageUp")
    texts.note(page)
    assert page.focused == [1, "block-IN04"]
    page.press("PageUp")
    texts.note(page)
    page.tab_to(1, "convolution")
    page.page.keyboard.type("0.5")
    page.press("Enter")
    texts.note(page)

    undo_and_redo(page, texts, 4)
    assert page.focused == [1, "convolution"], "undo builds the nodes anew, but the focus stays where it was"
    check_the_stack(page, host, python_image, anew=False)


def test_escape_and_what_cannot_be_read_change_nothing(page, host):
    text = json.dumps({"version": 1, "rows": [{"lora": INK, "model": 0.5}, {"lora": PAPER}]})
    page.new_graph(text)
    page.page.locator(".ftls-add").click()
    page.press("ArrowDown", "Escape")
    assert page.focused == [-1, "add"]
    page.control(0, "model").fill("1e9 apples")
    page.press("Enter")
    assert page.control(0, "model").input_value() == "0.50"
    page.control(0, "model").fill("7")
    page.press("Escape")
    x, y = page.middle(page.control(1, "handle"))
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    page.page.mouse.move(x, y - 80, steps=5)
    page.press("Escape")
    page.page.mouse.up()
    assert page.text == text and page.names == ["ink wash", "paper cut"] and page.history() == (0, 0)

    page.control(0, "blocks").click()
    page.control(0, "blocks-text").fill("OUTD, IN99999")
    page.press("Enter")
    page.row(0).get_by_text("which is neither a number nor an assignment").wait_for()
    assert page.text == text
    page.page.evaluate("() => navigator.clipboard.writeText('1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0')")
    page.control(0, "blocks-paste").click()
    page.page.wait_for_function("() => app.graph._nodes[0].widgets[0].value.includes('1,1,1')")
    assert page.control(0, "block-MID").get_attribute("aria-valuenow") == "0"
    page.control(0, "blocks-copy").click()
    assert page.page.evaluate("() => navigator.clipboard.readText()").startswith("1,1,1")


def test_copies_of_a_node_are_stacks_of_their_own(page, host):
    page.new_graph(json.dumps([{"lora": INK, "model": 0.5, "note": "kept"}]))
    page.control(0, "blocks").click()
    page.page.evaluate(f"() => {{ const copy = {STACK}.clone(); copy.pos = [100, 560]; app.graph.add(copy); }}")
    page.page.locator(".ftls").nth(1).wait_for()
    page.settle()
    assert page.names == ["ink wash", "ink wash"] and page.page.locator(".ftls-strip").count() == 2
    page.control(1, "on").click()
    page.settle()
    values = page.page.evaluate("() => app.graph._nodes.filter((node) => node.comfyClass === 'FineTuneLoraStack')"
                                ".map((node) => JSON.parse(node.widgets[0].value))")
    assert values[0] == [{"lora": INK, "model": 0.5, "note": "kept"}]
    assert values[1] == {"version": 1, "rows": [{"lora": INK, "model": 0.5, "note": "kept", "on": False}]}


def test_text_that_is_no_stack_stays_and_can_be_mended(page, host):
    page.new_graph('[{"lora": "a.safetensors",]')
    raw = page.page.locator(".ftls-raw")
    assert raw.input_value() == page.text == '[{"lora": "a.safetensors",]'
    raw.fill('[{"lora": "styles/ink wash.safetensors"}]')
    raw.blur()
    page.settle()
    assert page.names == ["ink wash"] and page.text == '[{"lora": "styles/ink wash.safetensors"}]'


def test_the_wheel_scrolls_a_long_stack_and_leaves_the_canvas(page, host):
    page.new_graph(json.dumps([{"lora": INK}] * 14))
    where = page.view()
    page.row(3).click(position={"x": 14, "y": 50})  # beside the controls; newer Vue renderers scroll only what has the focus
    page.page.mouse.wheel(0, 200)
    page.page.wait_for_function("() => document.querySelector('.ftls-rows').scrollTop > 50")
    page.page.locator(".ftls-add").click()
    page.page.mouse.move(*page.middle(page.page.locator(".ftls-list")))
    page.page.mouse.wheel(0, 200)
    page.settle()
    assert page.view() == where
    page.press("Escape")


def test_the_wheel_scrolls_what_has_just_grown_under_the_pointer(page, host):
    page.new_graph(json.dumps([{"lora": INK}] * 8))
    where = page.view()
    page.control(0, "blocks").click()
    page.settle()
    page.page.mouse.wheel(0, 100)
    page.page.wait_for_function("() => document.querySelector('.ftls-rows').scrollTop > 50")
    assert page.view() == where
