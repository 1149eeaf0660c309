"""A real ComfyUI server for the demo and the tests: private folders, loopback, a free port, always ended.

    with HostServer(environment, base_directory) as host:
        outputs = host.run(prompt, on_event=print)
"""
from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from environment import Environment
from failure import Failure
from host_events import Event, EventListener
from installation import child_environment

PACK_FOLDER = "finetune-nodes"
START_TIMEOUT = 300  # seconds; the first start compiles every module of torch and the host
END_TIMEOUT = 15


class NodeFailed(Failure):
    """A node raised an exception while the prompt ran."""

    def __init__(self, node_type: str, message: str, node_id: str = ""):
        super().__init__(f"The node {node_type} failed: {message}")
        self.node_type = node_type
        self.message = message
        self.node_id = node_id


class PromptRejected(Failure):
    """ComfyUI refused the prompt before running it; `sentences` says why, one per fault."""

    def __init__(self, sentences: list[str]):
        super().__init__("ComfyUI rejected the workflow: " + "; ".join(sentences))
        self.sentences = sentences


class PromptInterrupted(Failure):
    """The prompt was stopped by an interrupt."""


class HostServer:
    """One ComfyUI process with the pack linked into it. `base_directory` holds all it reads and writes; `variables` are
    added to its environment."""

    def __init__(self, environment: Environment, base_directory: Path, port: int = 0, options: tuple[str, ...] = (),
                 variables: Mapping[str, str] = MappingProxyType({})):
        self.environment = environment
        self.base_directory = Path(base_directory).resolve()
        self.port = port or free_port()
        self.options, self.variables = options, variables
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = uuid.uuid4().hex
        self.log = self.base_directory / "server.log"
        self.input = self.base_directory / "input"
        self.output = self.base_directory / "output"
        self.pack = self.base_directory / "custom_nodes" / PACK_FOLDER
        self._process: subprocess.Popen | None = None
        self._listener = EventListener(self.url, self.client_id)

    # --- life ---

    def __enter__(self) -> HostServer:
        for folder in (self.input, self.output, self.pack.parent):
            folder.mkdir(parents=True, exist_ok=True)
        link_folder(self.environment.root, self.pack)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=self.base_directory, env={**child_environment(), "PYTHONUTF8": "1", **self.variables},
                # A Ctrl-C in the terminal must reach us alone: we end the server in order.
                start_new_session=True, creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        try:
            self._wait_until_started()
            self._listener.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the server, politely and then for good. Does nothing when it has ended."""
        if self._process is None:
            return
        end_process(self._process, forced=False)
        try:
            self._process.wait(timeout=END_TIMEOUT)
        except subprocess.TimeoutExpired:
            end_process(self._process, forced=True)
            self._process.wait()
        self._process = None
        self._listener.stop()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the server process lives."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    # --- work ---

    def object_info(self, node_type: str = "") -> dict:
        """What ComfyUI knows about one node type, or about all of them."""
        return self._request(f"/object_info/{node_type}" if node_type else "/object_info")

    def queue(self, prompt: dict) -> str:
        """Queue an API prompt and return its id. A prompt of which ComfyUI would leave out a part is rejected whole."""
        try:
            answer = self._request("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(rejection_sentences(json.load(error), prompt)) from None
        if answer.get("node_errors"):
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            self.interrupt()
            raise PromptRejected(rejection_sentences(answer, prompt))
        return answer["prompt_id"]

    def follow(self, prompt_id: str, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, dict]:
        """Wait for a prompt, handing every event to `on_event`, and return the ui output of each node by its id.

        Raises NodeFailed or PromptInterrupted when it did not succeed.
        """
        while True:
            event = self._listener.next(prompt_id, timeout=1)
            if event and event.kind != "finished":
                on_event(event)
            elif not self.is_running():
                raise Failure(f"ComfyUI ended while it ran the workflow; the end of {self.log}:\n{self.log_tail()}")
            elif record := self.history(prompt_id):
                # Without the event that it is finished, others may still be on their way.
                while event is None and (late := self._listener.next(prompt_id, timeout=1)) and late.kind != "finished":
                    on_event(late)
                return outputs_of(record)

    def run(self, prompt: dict, on_event: Callable[[Event], None] = lambda event: None) -> dict[str, dict]:
        """Queue a prompt and follow it to its end."""
        return self.follow(self.queue(prompt), on_event)

    def interrupt(self) -> None:
        """Stop the prompt that is running."""
        self._request("/interrupt", {})

    def forget(self) -> None:
        """Make ComfyUI drop its cached outputs, as it does under memory pressure or after a restart. It does so at the
        latest after the prompt that it works on, so it gets a trifle to work on."""
        self._request("/free", {"unload_models": True, "free_memory": True})
        trifle = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        self.run({"trifle": trifle, "shown": {"class_type": "PreviewImage", "inputs": {"images": ["trifle", 0]}}})

    def history(self, prompt_id: str) -> dict:
        """ComfyUI's record of a finished prompt; empty while it waits or runs."""
        return self._request(f"/history/{prompt_id}").get(prompt_id, {})

    def upload(self, file: Path) -> str:
        """Copy a file into the input folder and return the name by which nodes find it."""
        return Path(shutil.copy(file, self.input)).name

    # --- inside ---

    def _command(self) -> list[str]:
        command = [str(self.environment.python), str(self.environment.comfyui / "main.py")]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base_directory)]
        command += ["--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        return command + ([] if has_accelerator() else ["--cpu"]) + list(self.options)

    def _wait_until_started(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if not self.is_running():
                raise Failure(f"ComfyUI ended while it started; the end of {self.log}:\n{self.log_tail()}")
            try:
                self._request("/system_stats")
                return
            except OSError:
                time.sleep(0.2)
        raise Failure(f"ComfyUI did not answer within {START_TIMEOUT} s; the end of {self.log}:\n{self.log_tail()}")

    def _request(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach our loopback
        with direct.open(request, timeout=60) as response:
            return json.loads(response.read() or b"{}")


def end_process(process: subprocess.Popen, forced: bool) -> None:
    """Ask the server, and a training it may have started, to end; or end them by force."""
    if process.poll() is not None:
        return
    if os.name == "nt":
        process.kill() if forced else process.terminate()
    else:
        os.killpg(process.pid, signal.SIGKILL if forced else signal.SIGTERM)  # it leads its own session


def outputs_of(record: dict) -> dict[str, dict]:
    """The nodes' ui outputs in a history record, or the exception that says why there are none."""
    for kind, data in record["status"]["messages"]:
        if kind == "execution_error":
            raise NodeFailed(data["node_type"], data["exception_message"].strip(), str(data["node_id"]))
        if kind == "execution_interrupted":
            raise PromptInterrupted("The workflow was interrupted.")
    return record["outputs"]


def rejection_sentences(answer: dict, prompt: dict) -> list[str]:
    """ComfyUI's complaints about a prompt, each with the title of its node."""
    sentences = []
    for node_id, faults in (answer.get("node_errors") or {}).items():
        title = prompt.get(node_id, {}).get("_meta", {}).get("title") or faults["class_type"]
        sentences += [f"{title}: {error['message']}: {error['details']}" for error in faults["errors"]]
    return sentences or [f"{answer['error']['message']} {answer['error']['details']}".strip()]


def has_accelerator() -> bool:
    """Whether this environment's torch sees a GPU. A CPU build is known by its version, without importing torch."""
    if version("torch").endswith("+cpu"):
        return False
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_folder(target: Path, link: Path) -> None:
    """Make `link` lead to the folder `target`: a symbolic link, on Windows a junction, which needs no rights."""
    if link.exists() and link.samefile(target):
        return
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise Failure(f"{link} is in the way of the link to the node pack: move it elsewhere and run this again.")
    if os.name == "nt":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True, capture_output=True)
    else:
        link.symlink_to(target, target_is_directory=True)
