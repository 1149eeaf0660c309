"""Files of unknown origin in the editor: names and metadata are text, and what is missing is named and kept."""
import json

from PIL import Image, ImageStat
from support.editor_page import HOSTILE

INK = "styles/ink wash.safetensors"


def test_hostile_names_and_metadata_are_text(page):
    spoiled = "evil\x00\x1b[2J\u202egnp" + "n" * 1_000_000 + ".safetensors"
    page.new_graph(json.dumps([{"lora": spoiled, "model": 0.5, "blocks": "<b>" + "9" * 20_000}]))
    page.page.locator(".ftls-add").click()
    page.page.locator(".ftls-filter").fill("onerror")
    page.press("Enter")
    page.wait_for_last(HOSTILE.removesuffix(".safetensors"))
    assert page.rows[1]["lora"] == HOSTILE and page.rows[0]["lora"] == spoiled
    assert "\x00" not in page.names[0] and "\u202e" not in page.names[0] and len(page.names[0]) < 200

    page.control(1, "card").click()
    card = page.page.locator(".ftls-card")
    card.get_by_text("Trigger words").wait_for()
    card.locator("summary").click()
    shown = card.inner_text()
    assert "<script>window.hacked=1</script>" in shown and "<img src=x onerror=window.hacked=1>" in shown
    assert "javascript:window.hacked=1" in shown and "<i>key</i>" in shown
    assert not set("\x00\x1b\u202e") & set(shown) and len(shown) < 10_000
    assert card.locator("h3").inner_text().startswith("<script>window.hacked=1</script>")
    assert card.locator(":is(script, img, b, i)").count() == 0 and card.bounding_box()["width"] < 500
    card.locator(".ftls-word").first.click()
    assert page.page.evaluate("() => navigator.clipboard.readText()") == "<img src=x onerror=window.hacked=1>"
    page.press("Escape")
    assert page.focused == [1, "card"]

    page.control(0, "blocks").click()
    page.settle()
    assert page.page.locator(".ftls :is(script, img, b, i)").count() == 0
    assert page.page.evaluate("() => window.hacked ?? null") is None
    assert page.row(0).bounding_box()["width"] < 500


def test_what_is_missing_is_named_and_kept(page, host):
    rows = [{"lora": "gone\\away.safetensors", "hash": "ab" * 32, "bytes": 12, "model": 0.3, "blocks": "OUTS", "note": [1]},
            {"lora": INK, "text": 0}]
    page.new_graph(json.dumps({"version": 1, "rows": rows, "author": "somebody"}))
    page.row(0).get_by_text("missing").wait_for()
    title = page.control(0, "file").get_attribute("title")
    assert "away.safetensors" in title and "abababab" in title and "is missing" in title
    page.control(1, "on").click()
    page.settle()
    page.load(page.workflow())
    assert json.loads(page.text) == {"version": 1, "rows": [rows[0], {**rows[1], "on": False}], "author": "somebody"}
    page.row(0).get_by_text("missing").wait_for()

    page.control(0, "file").click()
    page.pick("paper cut")
    page.page.wait_for_function("() => document.querySelector('.ftls-name').textContent === 'paper cut'")
    chosen = page.rows[0]
    assert chosen["model"] == 0.3 and chosen["blocks"] == "OUTS" and chosen["hash"] not in ("", "ab" * 32)


def test_a_renamed_file_is_found_by_its_hash(page, host):
    page.page.locator(".ftls-add").click()
    page.pick("ink wash")
    page.wait_for_last("ink wash")
    row = {**page.rows[0], "lora": "old/name.safetensors"}
    page.new_graph(json.dumps([row]))
    page.row(0).get_by_text(f"found as {INK}").wait_for()


def test_a_card_warns_where_the_base_does_not_fit(page):
    page.new_graph(json.dumps([{"lora": "large.safetensors"}, {"lora": INK}]))
    page.page.locator(".ftls-row .ftls-alarm").wait_for()
    assert page.page.locator(".ftls-alarm").count() == 1
    page.control(0, "card").press("Enter")
    page.page.get_by_text("Made for Stable Diffusion 2.x, but the model is Stable Diffusion 1.x.").wait_for()
    page.press("Escape")
    page.control(1, "card").click()
    card = page.page.locator(".ftls-card")
    card.locator("img").wait_for()
    assert card.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 96
    assert "Ink Wash" in card.inner_text() and "rank 4" in card.inner_text() and card.locator(".ftls-warning").count() == 0
    card.locator(".ftls-word").get_by_text("brush line").click()
    assert page.page.evaluate("() => navigator.clipboard.readText()") == "brush line"


def test_images_of_the_editor_in_both_themes(page, tmp_path_factory):
    """Screenshots to look at. The test sees to it that light is light, dark is dark, and text stands out from its ground."""
    rows = [{"lora": INK, "model": 0.8},
            {"lora": "people/Anna.safetensors", "model": 0.6, "text": -0.25, "blocks": "OUTD, IN04=0.5"},
            {"lora": "styles/paper cut.safetensors", "on": False}, {"lora": "gone/away.safetensors"}]
    page.new_graph(json.dumps(rows))
    page.control(1, "blocks").click()
    folder = tmp_path_factory.mktemp("editor")
    ground = {}
    for theme in ("light", "dark"):
        page.page.evaluate("(theme) => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
        page.page.wait_for_timeout(300)
        path = folder / f"{page.renderer}_{theme}.png"
        page.screenshot(path)
        ground[theme] = ImageStat.Stat(Image.open(path).convert("L")).median[0]
        text, field = page.page.evaluate("""() => ["color", "backgroundColor"].map((name) => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.fillStyle = getComputedStyle(document.querySelector(".ftls-number"))[name];
            canvas.fillRect(0, 0, 1, 1);
            const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
        })""")
        assert abs(text - field) > 120
    assert ground["light"] > 180 and ground["dark"] < 80
