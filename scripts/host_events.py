"""What a running ComfyUI says over its websocket, as plain events in one queue per prompt."""
from __future__ import annotations

import asyncio
import json
import queue
import re
import struct
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from html import unescape
from typing import Literal

PROGRESS_TEXT = 3  # the host's BinaryEventTypes.TEXT; the other binary messages are preview images

Kind = Literal["executing", "cached", "progress", "text", "executed", "error", "interrupted", "success", "finished"]


@dataclass(frozen=True)
class Event:
    """One thing that happened while a prompt ran. `node` is the node's id in the prompt."""

    kind: Kind
    node: str = ""
    value: float = 0  # "progress": the step, out of `maximum`
    maximum: float = 0
    text: str = ""  # "text": what the node shows; "error": the exception's message
    node_type: str = ""  # "error" only
    output: dict = field(default_factory=dict)  # "executed": the node's ui output


class EventListener:
    """Keeps the websocket open in a thread, so that no event is lost between queueing a prompt and following it."""

    def __init__(self, url: str, client_id: str):
        self._address = f"{url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        self._queues: dict[str, queue.Queue[Event]] = defaultdict(queue.Queue)
        self._running_prompt = ""
        self._connected = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def start(self) -> None:
        """Connect, and return when the server knows us."""
        self._thread.start()
        self._connected.wait(timeout=30)

    def stop(self) -> None:
        """End with the server: the closing connection ends the thread."""
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def next(self, prompt_id: str, timeout: float) -> Event | None:
        """The next event of a prompt, or None when there was none for `timeout` seconds."""
        try:
            return self._queues[prompt_id].get(timeout=timeout)
        except queue.Empty:
            return None

    async def _listen(self) -> None:
        import aiohttp  # the environment has it because ComfyUI needs it

        async with aiohttp.ClientSession() as session:
            while not self._stopping:
                try:
                    async with session.ws_connect(self._address, max_msg_size=0) as socket:
                        self._connected.set()
                        async for message in socket:
                            self._receive(message.data)
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)

    def _receive(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            event, prompt_id = parse_binary(data), self._running_prompt
        else:
            message = json.loads(data)
            prompt_id = message["data"].get("prompt_id", "")
            event = parse(message["type"], message["data"])
            if message["type"] == "execution_start":
                self._running_prompt = prompt_id
        if event and prompt_id:
            self._queues[prompt_id].put(event)


def parse(kind: str, data: dict) -> Event | None:
    """The event in one JSON message, None for a message that does not concern us."""
    node = str(data.get("node") or data.get("node_id") or "")
    if kind == "executing":
        return Event("executing", node) if node else Event("finished")  # sent once the history holds the prompt
    if kind == "execution_cached":
        return Event("cached", output={"nodes": data["nodes"]})
    if kind == "progress":
        return Event("progress", node, value=data["value"], maximum=data["max"])
    if kind == "executed":
        return Event("executed", node, output=data["output"] or {})
    if kind == "execution_error":
        return Event("error", node, text=data["exception_message"].strip(), node_type=data["node_type"])
    if kind == "execution_interrupted":
        return Event("interrupted", node)
    if kind == "execution_success":
        return Event("success")
    return None


def parse_binary(data: bytes) -> Event | None:
    """The progress text in a binary message: type, length of the node id, node id, text."""
    if len(data) < 8 or struct.unpack(">I", data[:4])[0] != PROGRESS_TEXT:
        return None
    start = 8 + struct.unpack(">I", data[4:8])[0]
    html = data[start:].decode("utf-8", errors="replace")
    return Event("text", data[8:start].decode("utf-8"), text=plain(html))


def plain(html: str) -> str:
    """The text of a node as it reads on the page; the pack writes line breaks as tags and some signs as numbers."""
    return unescape(re.sub("<[^>]*>", "", html.replace("<br>", "\n")))
