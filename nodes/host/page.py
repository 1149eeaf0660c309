"""Texts of nodes on their way to the page: the one place where the pack's words leave for a browser.

A text goes only to the client that queued the prompt. The last one of each node is kept, because a page that is loaded anew
knows nothing, and that of each execution, because the host says nothing of nodes that it answers from its caches:
`web/js/node_texts.js` asks for them.

GET /finetune/texts?workflow=…&client=…   {"texts": {node id: {"type": node type, "text": HTML of page_text}}} of the nodes
                                          that this client ran in the workflow with this id
GET /finetune/texts?prompt=…              the same of the nodes of a prompt that were executed before with the same inputs
"""
import functools
import hashlib
import json
import math
import time
from collections import OrderedDict
from contextvars import ContextVar
from dataclasses import dataclass

from aiohttp import web
from comfy.model_management import InterruptProcessingException
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...trainers.errors import UserError, reason_of
from ...trainers.page_text import page_text

MOST_KEPT = 2000
_kept: "OrderedDict[tuple[str, str, str], dict]" = OrderedDict()
"""(client, workflow, node) → type and text, the newest last."""
_executed: "OrderedDict[str, dict]" = OrderedDict()
"""Identity of an execution → the same."""
_TELLING = set()


@dataclass
class Said:
    """What a node shows in an execution; `when` (time.monotonic) is infinite until something was said."""

    text: str = ""
    node_id: str = ""
    when: float = math.inf


_said: "ContextVar[Said | None]" = ContextVar("said", default=None)
"""That of the running execution."""


def show_text(text: str, node_id: str):
    """Show `text` on a node to the client that queued the running prompt. Nobody else sees it."""
    client, html, said = PromptServer.instance.client_id, page_text(text), _said.get()
    if said is not None:
        said.text, said.node_id, said.when = text, node_id, time.monotonic()
    if client is None:
        return
    PromptServer.instance.send_progress_text(html, node_id, client)
    prompt, workflow = _running()
    _keep(_kept, (client, workflow, str(node_id)), {"type": _type_of(prompt, node_id), "text": html})


def repeat_text(seconds: float):
    """Say again what was last said in this execution, if that was so many seconds ago: a page that lost its connection, or
    that is loaded anew, missed it."""
    said = _said.get() or Said()
    if time.monotonic() - said.when > seconds:
        show_text(said.text, said.node_id)


def _keep(texts: OrderedDict, key, text: dict):
    texts[key] = text
    texts.move_to_end(key)
    while len(texts) > MOST_KEPT:
        texts.popitem(last=False)


def _running() -> tuple[dict, str]:
    """(the running prompt, the id of its workflow or "")."""
    for item in list(PromptServer.instance.prompt_queue.currently_running.values()):
        return item[2], _workflow_of(item)
    return {}, ""


def _workflow_of(item) -> str:
    found = item[3]
    for name in ("extra_pnginfo", "workflow", "id"):
        found = found.get(name) if isinstance(found, dict) else None
    return str(found or "")


def _type_of(prompt: dict, node_id: str) -> str:
    return prompt.get(str(node_id), {}).get("class_type", "")


def identity(prompt: dict, node_id: str, known: dict) -> str:
    """The same for two nodes, of one or of two prompts, that are of a type and get the same from nodes of which that holds.
    `known` keeps the identities of the prompt's nodes."""
    if node_id not in known:
        inputs = {name: [identity(prompt, str(value[0]), known), value[1]] if _is_link(value, prompt) else value
                  for name, value in prompt[node_id].get("inputs", {}).items()}
        text = json.dumps([_type_of(prompt, node_id), inputs], sort_keys=True, default=str)
        known[node_id] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return known[node_id]


def _is_link(value, prompt: dict) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt


def texts_of(prompt_id: str) -> dict:
    """The texts of a prompt's nodes that were executed before, now kept for its client too."""
    queue = PromptServer.instance.prompt_queue
    items = [item for item in list(queue.currently_running.values()) if item[1] == prompt_id]
    items += [entry["prompt"] for entry in queue.get_history(prompt_id=prompt_id).values()]
    found, known = {}, {}
    for item in items[:1]:
        for node_id in item[2]:
            if kept := _executed.get(identity(item[2], node_id, known)):
                found[node_id] = kept
                _keep(_kept, (item[3].get("client_id"), _workflow_of(item), node_id), kept)
    return found


def telling(node: type) -> type:
    """`node`, which from now on says on itself what became of an execution: its text, the sentence of its error, or that it
    was cancelled. Frontends tell little of an error. The text is in the ui output too, which the host keeps with its caches
    and its history."""
    execute = node.execute.__func__
    if execute in _TELLING:
        return node

    @functools.wraps(execute)
    def tell(cls, *values, **inputs):
        context, said = get_executing_context(), Said()
        if context is None:
            return execute(cls, *values, **inputs)
        token = _said.set(said)
        try:
            output = execute(cls, *values, **inputs)
            if said.when == math.inf:
                show_text("\n".join(ui_of(output).get("text", ())), context.node_id)  # also to replace that of an error
            prompt = _running()[0]
            if str(context.node_id) in prompt:
                _keep(_executed, identity(prompt, str(context.node_id), {}),
                      {"type": _type_of(prompt, context.node_id), "text": page_text(said.text)})
            return with_text(output, said.text) if said.text else output
        except InterruptProcessingException:
            if not said.text.startswith("cancelled"):
                show_text("cancelled", context.node_id)
            raise
        except Exception as problem:
            show_text(sentence_of(problem), context.node_id)
            raise
        finally:
            _said.reset(token)

    _TELLING.add(tell)
    node.execute = classmethod(tell)
    return node


def sentence_of(problem: Exception) -> str:
    """What the person is told of an error."""
    return str(problem) if isinstance(problem, UserError) else f"{type(problem).__name__}: {reason_of(problem)}"


def with_text(output, text: str):
    """The node's output with the text that it shows, as HTML, in its ui output."""
    output.ui = {**ui_of(output), "finetune_text": [page_text(text)]}
    return output


def ui_of(output) -> dict:
    ui = getattr(output, "ui", None) or {}
    return ui if isinstance(ui, dict) else ui.as_dict()


def add_routes(routes):
    """Add the route to a table of aiohttp's."""

    @routes.get("/finetune/texts")
    async def texts(request):
        whose = request.query.get("client", ""), request.query.get("workflow", "")
        if "prompt" in request.query:
            found = texts_of(request.query["prompt"])
        else:
            found = {node: kept for (*by, node), kept in list(_kept.items()) if all(whose) and tuple(by) == whose}
        return web.json_response({"texts": found},
                                 headers={"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"})


if getattr(PromptServer, "instance", None) is not None:  # there is none in a process without a server
    add_routes(PromptServer.instance.routes)
