"""FineTune: train image models inside ComfyUI. The nodes are in `nodes/`, the engine is in `trainers/`."""
import logging

WEB_DIRECTORY = "./web"

try:
    from comfy_api.latest import ComfyExtension
except ImportError:
    ComfyExtension = object
    logging.error("FineTune needs ComfyUI 0.3.75 or newer; its nodes are not available. Update ComfyUI and start it again.")


class FineTuneExtension(ComfyExtension):  # pyright: ignore[reportGeneralTypeIssues]: object on older hosts
    async def get_node_list(self):
        try:
            from .nodes import NODES
            from .nodes.host.page import telling
        except ImportError as problem:
            logging.error("FineTune's nodes are not available: %s. If a package is missing, install the pack's "
                          "requirements.txt with the Python that runs ComfyUI, then start it again.", problem)
            return []
        return [telling(node) for node in NODES]


async def comfy_entrypoint():
    return FineTuneExtension()
