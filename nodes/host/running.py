"""While a node works: packages, memory, the device, progress, interrupts."""
import time
from collections.abc import Callable, Iterable

import comfy.model_management
import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...trainers.errors import UserError
from ...trainers.events import Event
from ...trainers.process import parent
from ...trainers.required_packages import missing_requirements
from .page import repeat_text, show_text

SAID_AGAIN, SHOWN_AGAIN = 2.0, 10.0
"""Seconds after which a text is said again when nothing new is, and an image is sent again with the next text: a page that
lost its connection, or is loaded anew, missed them."""
IMAGE_GONE = 0.6
"""Seconds in which a frontend takes a live image away; 0.4 of them it waits by itself."""


def require_packages():
    """Raise UserError when packages that the pack requires are not installed."""
    missing = missing_requirements()
    if missing:
        raise UserError(f"Training needs the Python packages {', '.join(missing)}. Install the pack's requirements.txt "
                        "with the Python that runs ComfyUI, then start it again.")


def free_memory():
    """Give the host's models up, so that the worker gets all of the memory."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def training_device() -> str:
    """"cpu" when the host runs on the CPU by its own choice; else "auto"."""
    return "cpu" if comfy.model_management.get_torch_device().type == "cpu" else "auto"


def blocked(reason: str):
    """An output that there is not: nodes behind it do not run, and the person is told why."""
    return ExecutionBlocker(reason)


BAR = 1000
"""Parts of a bar."""


class NodeProgress:
    """The progress bar, text and image on a node, all without JavaScript."""

    def __init__(self, node_id: str):
        self.node_id, self.bar, self.value, self.sent = node_id, None, 0, 0.0
        self.image, self.shown_at = None, 0.0

    def show(self, text: str, done: int = 0, total: int = 0, image: Image.Image | None = None,
             reached: float | None = None):
        """Show `text`, a bar and an image, which stays until the next. The bar stands at `reached`, the fraction of all that
        the node has to do, or at done / total where the text counts all of it. It never goes back."""
        now = time.monotonic()
        if now - self.sent > 0.1 or done == total:  # ten messages a second are enough for anybody
            show_text(text, self.node_id)
            self.sent = now
        if image is None and now - self.shown_at > SHOWN_AGAIN:
            image = self.image
        if image is not None:
            self.image, self.shown_at = image, now
        if reached is None and total:
            reached = done / total
        if reached is not None:
            self.bar = self.bar or comfy.utils.ProgressBar(BAR, node_id=self.node_id)
            self.value = max(self.value, round(BAR * reached))
            preview = ("JPEG", image, 768) if image is not None else None
            self.bar.update_absolute(self.value, BAR, preview)

    def take_image_away(self):
        """Make room for the node's output images: frontends show the last live image in their place, until they hear of a
        node that did not run and now runs. They take it away a moment later."""
        context, server = get_executing_context(), PromptServer.instance
        if self.image is None or context is None or server.client_id is None:
            return
        self.image = None
        server.send_sync("progress_state", {"prompt_id": context.prompt_id, "nodes": {}}, server.client_id)
        comfy.utils.ProgressBar(BAR, node_id=self.node_id).update_absolute(self.value, BAR)
        time.sleep(IMAGE_GONE)


def follow(events: Iterable[Event | None], cancel: Callable[[], None], report: Callable[[Event], None]):
    """`run.follow` with the host's interrupt."""
    def look_around():
        comfy.model_management.throw_exception_if_processing_interrupted()
        repeat_text(SAID_AGAIN)

    parent.follow(events, cancel, report, look_around, comfy.model_management.InterruptProcessingException)
