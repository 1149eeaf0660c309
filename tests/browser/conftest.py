"""A real server and a real Chromium for all tests of this folder; each test runs in both of the frontend's renderers.

Both end with the folder: the server for its memory, Playwright because its event loop would be in the way of other tests'.
"""
import json
import shutil
import signal
import urllib.request

import pytest
from environment import describe
from failure import interrupt_on_signal
from host_server import HostServer
from PIL import Image
from playwright.sync_api import sync_playwright
from support.editor_page import HOSTILE, EditorPage
from support.graphs import random_lora
from support.preloaded import quick_workers_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.Release.Status": "skipped"}


@pytest.fixture(scope="package")
def host(tmp_path_factory, preloaded):
    """A running server with the pack and some LoRAs of the demo base, whose files are all in a temporary folder. Its workers
    start without importing anything."""
    signal.signal(signal.SIGTERM, interrupt_on_signal)
    folder = tmp_path_factory.mktemp("comfyui")
    make_loras(folder / "models" / "loras")
    with HostServer(describe(), folder, variables=quick_workers_of(preloaded)) as server:
        yield server


def make_loras(folder):
    stated = {"ss_base_model_version": "sd_v1"}
    random_lora(folder / "styles" / "ink wash.safetensors", 1, {
        **stated, "modelspec.title": "Ink Wash", "modelspec.author": "N. Artist",
        "modelspec.trigger_phrase": "ink wash, brush line"})
    Image.effect_mandelbrot((96, 96), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(folder / "styles" / "ink wash.png")
    random_lora(folder / "styles" / "paper cut.safetensors", 2, stated)
    random_lora(folder / "people" / "Anna.safetensors", 3, stated)
    random_lora(folder / "large.safetensors", 4, {"ss_base_model_version": "sd_v2"})
    random_lora(folder / HOSTILE, 5, {
        "modelspec.title": "<script>window.hacked=1</script>\x00\x1b[31m\u202e", "modelspec.author": "<b>a\nb</b>",
        "modelspec.trigger_phrase": "<img src=x onerror=window.hacked=1>," + "y" * 1_000_000,
        "modelspec.description": "<svg onload=window.hacked=1>" * 40_000, "<i>key</i>": "javascript:window.hacked=1"})


@pytest.fixture(scope="package")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "The browser tests need Chromium: install it with the system's package manager."
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, headless=True, args=[
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"])


@pytest.fixture(scope="package", params=["classic", "vue"])
def open_page(request, host, browser):
    settings = json.dumps({**START, "Comfy.VueNodes.Enabled": request.param == "vue"}).encode()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(urllib.request.Request(f"{host.url}/settings", settings, {"Content-Type": "application/json"})).close()
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    page = EditorPage(context.new_page(), host, request.param)
    page.open()
    yield page
    context.close()


@pytest.fixture
def page(open_page):
    """The frontend with an empty LoRA Stack. What goes wrong in the page fails the test."""
    open_page.new_graph()
    yield open_page
    assert open_page.problems() == []
