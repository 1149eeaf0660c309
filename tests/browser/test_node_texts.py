"""What nodes show in the page: texts of unknown origin as text, sentences of errors, cancelling, and after a reload."""
import pytest
from PIL import Image
from support.editor_page import HOSTILE, EditorPage
from support.graphs import training
from support.node_page import NodePage

SCRIPT = "<img src=x onerror=window.hacked=1>"
CAPTIONS = (
    SCRIPT, "</div><script>window.hacked=2</script><b>bold</b>", "[[click here|https://example.org/x]] __LNK0__",
    "https://example.org/a?b=1&c=2 www.example.org", "# *a* _b_ `c` ~~d~~ | e | ![f](https://example.org/f.png)",
    "<svg onload=window.hacked=3> &amp; &#60;i&#62; 5 < 6 > 4 \\* 'q' \"r\"",
)
DATASET, RUN = "input/<img src=x onerror=window.hacked=4>", "<img src=x onerror=window.hacked=5>"


@pytest.fixture(scope="module", autouse=True)
def hostile_dataset(host):
    folder = host.input / DATASET.removeprefix("input/")
    folder.mkdir(exist_ok=True)  # once for each renderer
    for number, caption in enumerate(CAPTIONS):
        Image.new("RGB", (64, 64), (40 * number, 90, 160)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    Image.new("RGB", (64, 64)).save(folder / f"{SCRIPT}.png")


@pytest.fixture(autouse=True)
def nothing_goes_on(host):
    yield
    host.interrupt()


def as_shown(text: str) -> str:
    """White space as a page shows it."""
    return " ".join(text.split())


def test_hostile_texts_are_shown_as_text(page, tmp_path_factory):
    page.open()  # anew, because it lists the folders that there were
    graph = NodePage(page, {
        "data": ["FineTuneLoadImageDataset", 80, 80, {"folder": DATASET, "trigger": SCRIPT}],
        "trigger": ["FineTuneTriggerWord", 80, 440, {"trigger": CAPTIONS[1], "class_word": CAPTIONS[2]}],
        "names": ["FineTuneCaptionFromNames", 420, 80, {"template": CAPTIONS[4] + " {name}"}],
        "report": ["FineTuneDatasetReport", 420, 440, {"trigger": SCRIPT}],
        "lora": ["FineTuneInspectLora", 850, 80, {"lora_name": HOSTILE}],
        "write": ["FineTuneWriteCaptions", 850, 560, {}],
    }, [["data", 0, "trigger", "dataset"], ["data", 0, "names", "dataset"], ["trigger", 0, "report", "dataset"],
        ["names", 0, "write", "dataset"]])
    page.host.follow(graph.queue())
    shown = graph.wait_for_text("trigger", "captions changed")
    for caption in CAPTIONS:
        assert as_shown(caption) in as_shown(shown), caption
    assert DATASET in graph.wait_for_text("data", "images")
    assert f"{SCRIPT}.png" in graph.wait_for_text("names", "captions changed")
    assert as_shown(CAPTIONS[4]) in as_shown(graph.text("names"))
    graph.wait_for_text("report", "images")
    assert "modelspec.title: <script>window.hacked=1</script>" in graph.wait_for_text("lora", "Metadata")
    page.page.screenshot(path=tmp_path_factory.mktemp("hostile") / f"{page.renderer}.png")
    assert SCRIPT in graph.wait_for_text("write", "Caption files")
    for node in ("data", "trigger", "names", "report", "lora", "write"):
        assert not {"img", "script", "svg", "b", "i", "a", "em", "strong", "code"} & set(graph.markup(node)), node
    assert page.page.evaluate("() => window.hacked ?? null") is None


def test_lines_stay_lines_and_a_long_text_does_not_make_a_node_long(page):
    graph = NodePage(page, {
        "data": ["FineTuneLoadImageDataset", 80, 80, {"folder": "examples/openmoji"}],
        "names": ["FineTuneCaptionFromNames", 450, 80, {"template": "a {name}, " + "with many words " * 12}],
        "words": ["PreviewAny", 900, 80, {}],
    }, [["data", 0, "names", "dataset"], ["names", 1, "words", "source"]])
    page.host.follow(graph.queue())
    shown = graph.wait_for_text("names", "captions changed")
    assert len([line for line in shown.splitlines() if line.strip()]) > 15
    page.page.wait_for_timeout(300)
    assert page.page.evaluate("(id) => app.graph.getNodeById(id).size[1]", graph.ids["names"]) < 480


def train(page, **widgets) -> NodePage:
    """The demo base, the example dataset and Train LoRA with the widgets of `training`."""
    prompt = training(**widgets)
    values = {name: value for name, value in prompt["train"]["inputs"].items() if not isinstance(value, list)}
    return NodePage(page, {
        "demo": ["FineTuneLoadDemoBase", 80, 80, {}],
        "data": ["FineTuneLoadImageDataset", 80, 400, {"folder": "examples/openmoji"}],
        "train": ["FineTuneTrainLora", 450, 80, values],
        "file": ["PreviewAny", 880, 80, {}],
    }, [["demo", 3, "train", "base"], ["data", 0, "train", "dataset"], ["train", 1, "file", "source"]])


def test_an_error_is_said_on_the_node_and_gone_after_the_next_run(page):
    graph = train(page, name=RUN, steps=2)
    graph.queue()
    said = graph.wait_for_text("train", "cannot name a run")
    assert RUN in said and "what" not in graph.markup("train")
    graph.set("train", "name", f"after an error {page.renderer}")
    page.press("Escape")
    page.host.follow(graph.queue())
    assert "cannot name a run" not in graph.wait_for_text("train", "loads in ComfyUI")
    assert page.page.evaluate("() => window.hacked ?? null") is None


# ---- while a run goes on ---------------------------------------------------------------------------------------------

PHASES = {
    "loading": ({}, "starting", "loading"), "encoding": ({"resolution": 256}, "encoding"), "training": ({}, "loss "),
    "preview": ({"preview_prompts": "\n".join(f"emoji {number}" for number in range(12))}, "preview at"),
}
"""Phase → (widgets, texts of the node by which it is known)."""


@pytest.mark.parametrize("phase", PHASES)
def test_cancel_is_said_and_what_is_saved(page, phase):
    widgets, *words = PHASES[phase]
    graph = train(page, **{"name": f"cancelled {phase} {page.renderer}", "steps": 100_000, **widgets})
    graph.queue()
    graph.wait_for_text("train", *words)
    graph.interrupt()
    graph.wait_for_text("train", "cancelling, saving", "cancelled")
    said = graph.wait_for_text("train", "cancelled")
    early = "before the first step" in said and phase != "training"
    assert early or ("and saved at step" in said and "Queue again" in said)


def test_a_run_is_seen_again_after_a_reload_and_only_in_its_page(page, host, browser):
    """And its image; a second page with the same graph sees nothing of it."""
    graph = train(page, name=f"reloaded {page.renderer}", steps=100_000, preview_prompts="a lion")
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        other = EditorPage(context.new_page(), host, page.renderer)
        other.open()
        bystander = graph.copy(other)
        graph.queue()
        graph.wait_for_text("train", "loss ")
        graph.load_anew()
        graph.wait_for_text("train", "loss ")
        assert bystander.text("train") == "" == bystander.text("data")
        graph.interrupt()
        graph.wait_for_text("train", "cancelled and saved")
        graph.load_anew()
        graph.wait_for_text("train", "cancelled and saved")
        assert bystander.text("train") == ""
    finally:
        context.close()


def test_a_finished_run_shows_its_images_once_and_its_text_after_a_reload_and_out_of_the_cache(page, host, browser):
    graph = train(page, name=f"finished {page.renderer}", steps=4, preview_prompts="a lion\na cup\na tree")
    host.follow(graph.queue())
    said = graph.wait_for_text("train", "loads in ComfyUI")
    page.page.wait_for_timeout(1000)
    images = graph.images("train")
    assert any("progress.png" in each for each in images) and not any(each.startswith("blob:") for each in images)
    assert "images of" in graph.wait_for_text("data", "images")
    graph.load_anew()
    assert graph.wait_for_text("train", "loads in ComfyUI") == said
    host.follow(graph.queue())
    assert graph.wait_for_text("train", "loads in ComfyUI") == said
    assert graph.text("data") and graph.text("demo")


def test_a_lora_that_was_deleted_is_put_back(page, host):
    graph = train(page, name=f"put back {page.renderer}", steps=2)
    host.follow(graph.queue())
    said = graph.wait_for_text("train", "loads in ComfyUI")
    placed = host.output / "loras" / f"put back {page.renderer}.safetensors"
    content = placed.read_bytes()
    placed.unlink()
    host.follow(graph.queue())
    assert placed.read_bytes() == content
    assert graph.wait_for_text("train", "loads in ComfyUI") == said
