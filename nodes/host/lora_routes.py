"""What the stack editor asks the server: the list of LoRAs, a card per LoRA, its image. Reading only.

GET /finetune/loras                    {"loras": ["folder/name.safetensors", …]}, "/" between folders
GET /finetune/loras/card?name=…        `cards.card` with "hash" computed and "preview": true or false; 404 or 400 with
                                       {"error": sentence}. With &quick=1 the hash is what the file states, or "".
GET /finetune/loras/find?name=…&hash=…&bytes=…   {"name", "note"} of the file that a row means, or {"error": sentence}
GET /finetune/loras/weights?text=…&family=…      {"weights": {block: factor}} of a text of weights, or {"error": …}
GET /finetune/loras/preview?name=…     the image beside the file; 404 when there is none
GET /finetune/loras/base?checkpoint=…            {"family": …} of a checkpoint, from its header, or {"error": …}
GET /finetune/loras/blocks             {"blocks": {family: [block, …]}, "titles": {family: title}, "presets": [name, …],
                                       "values": {family: {preset: {block: factor}}}}

Names are looked up inside the loras folders only. Answers are JSON of plain, short text: what files say about themselves is
cut and freed of control characters, and it is for the page to show it as text. Each route answers under /api too. What the
editor asks unbidden, while it draws itself, has the status 200 also when the answer is a sentence: browsers log the others.
"""
import asyncio

from aiohttp import web
from server import PromptServer

from ...trainers.artifacts.layer_names.blocks import BLOCKS
from ...trainers.artifacts.layer_names.family import TITLES
from ...trainers.errors import UserError
from ...trainers.families.recognition import recognize
from ...trainers.spec.part import checked
from ...trainers.stacking.block_weights import PRESETS, parse_block_weights, presets_for
from ...trainers.stacking.rows import StackRow
from .folders import base_path
from .lora_files import find_row, lora_card, lora_names, lora_path, preview_path

LARGEST_PREVIEW = 32 * 2**20
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def add_routes(routes):
    """Add the routes to a table of aiohttp's."""

    @routes.get("/finetune/loras")
    async def names(request):
        found = await asyncio.to_thread(lora_names)
        return web.json_response({"loras": [name.replace("\\", "/") for name in found]}, headers=_HEADERS)

    @routes.get("/finetune/loras/card")
    async def card(request):
        name, quick = request.query.get("name", ""), "quick" in request.query
        if lora_path(name) is None:
            return _problem(404, "There is no such LoRA in the loras folders.")
        try:
            # Hashing a large file takes a second, in which the server must go on answering.
            return web.json_response(await asyncio.to_thread(lora_card, name, not quick), headers=_HEADERS)
        except UserError as problem:
            return _problem(200 if quick else 400, str(problem))
        except OSError:  # it went while it was read
            return _problem(404, "The LoRA cannot be read any more.")

    @routes.get("/finetune/loras/find")
    async def find(request):
        size = request.query.get("bytes", "")
        try:
            row = checked(StackRow, lora=request.query.get("name", ""), hash=request.query.get("hash", ""),
                          bytes=int(size) if size.isascii() and size.isdigit() else 0)
            name, note = await asyncio.to_thread(find_row, row)
        except UserError as problem:
            return _problem(200, str(problem))
        return web.json_response({"name": name.replace("\\", "/"), "note": note}, headers=_HEADERS)

    @routes.get("/finetune/loras/weights")
    async def weights(request):
        family = request.query.get("family", "")
        try:
            parsed = parse_block_weights(request.query.get("text", ""), family)
        except UserError as problem:
            return _problem(200, str(problem))
        return web.json_response({"weights": {block: parsed[block] for block in BLOCKS.get(family, ())}}, headers=_HEADERS)

    @routes.get("/finetune/loras/preview")
    async def preview(request):
        path = preview_path(request.query.get("name", ""))
        if path is None or path.stat().st_size > LARGEST_PREVIEW:
            return _problem(404, "There is no image beside this LoRA.")
        return web.FileResponse(path, headers={**_HEADERS, "Content-Type": _TYPES[path.suffix.lower()]})

    @routes.get("/finetune/loras/base")
    async def base(request):
        name = request.query.get("checkpoint", "")
        try:
            return web.json_response({"family": await asyncio.to_thread(family_of_base, name)}, headers=_HEADERS)
        except UserError as problem:
            return _problem(200, str(problem))

    @routes.get("/finetune/loras/blocks")
    async def blocks(request):
        return web.json_response(block_facts(), headers=_HEADERS)


def family_of_base(name: str) -> str:
    """The family of a checkpoint or diffusers folder that the host lists. Raises UserError."""
    return recognize(str(base_path(name)), name).family


def block_facts() -> dict:
    """Blocks and presets of every family, for the editor's strip."""
    def values(family: str) -> dict:
        weights = {name: parse_block_weights(name, family) for name in presets_for(family)}
        return {name: {block: weight[block] for block in BLOCKS[family]} for name, weight in weights.items()}

    return {"blocks": BLOCKS, "titles": TITLES, "presets": list(PRESETS),
            "values": {family: values(family) for family in BLOCKS}}


def _problem(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=_HEADERS)


if getattr(PromptServer, "instance", None) is not None:  # there is none in a process without a server
    add_routes(PromptServer.instance.routes)
