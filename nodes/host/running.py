"""While a node works: packages, memory, the device, progress, interrupts."""
import time
from typing import Callable, Iterable

import comfy.model_management
import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from server import PromptServer

from ...trainers import run
from ...trainers.errors import UserError
from ...trainers.requirements import missing_requirements


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
    """The progress bar, text and picture on a node, all without JavaScript."""

    def __init__(self, node_id: str):
        self.node_id, self.bar, self.value, self.sent = node_id, None, 0, 0.0

    def show(self, text: str, done: int = 0, total: int = 0, picture: Image.Image | None = None,
             reached: float | None = None):
        """Show `text`, a bar and a picture, which stays until the next. The bar stands at `reached`, the share of all that
        the node has to do, or at done / total where the text counts all of it. It never goes back."""
        now = time.monotonic()
        if now - self.sent > 0.1 or done == total:  # ten messages a second are enough for anybody
            PromptServer.instance.send_progress_text(text, self.node_id)
            self.sent = now
        if reached is None and total:
            reached = done / total
        if reached is not None:
            self.bar = self.bar or comfy.utils.ProgressBar(BAR, node_id=self.node_id)
            self.value = max(self.value, round(BAR * reached))
            preview = ("JPEG", picture, 768) if picture is not None else None
            self.bar.update_absolute(self.value, BAR, preview)


def follow(events: Iterable[dict | None], cancel: Callable[[], None], report: Callable[[dict], None]):
    """`run.follow` with the host's interrupt."""
    run.follow(events, cancel, report, comfy.model_management.throw_exception_if_processing_interrupted,
               comfy.model_management.InterruptProcessingException)
