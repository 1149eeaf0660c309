"""Train a LoRA in a real ComfyUI, from a fresh clone, with one command.

    python scripts/demo.py            train, and say where the LoRA and the image are
    python scripts/demo.py --ui       then leave ComfyUI running, to look at the graph in a browser
"""
from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import time
from pathlib import Path

import workflow as workflows
from environment import Environment, prepare
from failure import Failure, run_script

WORKFLOW = Path("example_workflows") / "2 Train a LoRA without any download.json"
OUR_CATEGORY = "FineTune"


def main() -> int:
    """Prepare the environment, then do the rest with its Python, which has what talking to the server needs."""
    arguments = parse_arguments()
    environment = prepare()
    if not environment.is_running_this():
        return environment.run(Path(__file__).resolve(), *sys.argv[1:])
    return run_demo(environment, arguments)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a LoRA in a real ComfyUI and show what it learned.")
    parser.add_argument("--ui", action="store_true", help="leave ComfyUI running afterwards and print its address")
    parser.add_argument("--port", type=int, default=0, help="ComfyUI's port (default: any free one)")
    return parser.parse_args()


def run_demo(environment: Environment, arguments: argparse.Namespace) -> int:
    """Start ComfyUI, run the example workflow, and print what came out."""
    from host_server import HostServer

    graph = read_workflow(environment.root / WORKFLOW)
    print("Starting ComfyUI ...", flush=True)
    started = time.monotonic()
    with HostServer(environment, environment.work / "demo", arguments.port) as host:
        print(f"ComfyUI is ready after {time.monotonic() - started:.0f} s; running {WORKFLOW.as_posix()}", flush=True)
        prompt = convert(graph, host)
        started = time.monotonic()
        outputs = run_prompt(host, prompt)
        print(f"Finished in {duration(time.monotonic() - started)}.")
        print_results(host, outputs)
        if arguments.ui:
            leave_running(host)
    return 0


def read_workflow(file: Path) -> dict:
    """The example workflow."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failure(f"The example workflow {file} cannot be read ({error}): restore it with git.") from None


def convert(graph: dict, host) -> dict:
    """The API prompt for the workflow, or a failure that names what does not fit."""
    object_info = host.object_info()
    if not any(node["category"].startswith(OUR_CATEGORY) for node in object_info.values()):
        raise Failure(f"ComfyUI could not load the FineTune nodes; the end of {host.log}:\n{host.log_tail(40)}")
    if problems := workflows.check(graph, object_info):
        raise Failure("The example workflow does not fit this ComfyUI: " + " ".join(problems))
    return workflows.to_prompt(graph, object_info)


def run_prompt(host, prompt: dict) -> dict[str, dict]:
    """Run the prompt with progress in the terminal; Ctrl-C stops it so that the training is kept."""
    from host_server import PromptInterrupted

    progress = ProgressLines({node_id: node["_meta"]["title"] for node_id, node in prompt.items()})
    prompt_id = host.queue(prompt)
    try:
        outputs = host.follow(prompt_id, progress.show)
    except KeyboardInterrupt:
        progress.finish_line()
        print("Stopping; what has been trained is kept, and the next run goes on from there.", flush=True)
        host.interrupt()
        with contextlib.suppress(PromptInterrupted):
            host.follow(prompt_id)
        raise
    finally:
        progress.finish_line()
    return outputs


class ProgressLines:
    """One line per node: rewritten in place on a terminal, otherwise repeated now and then."""

    def __init__(self, titles: dict[str, str], interactive: bool | None = None, seconds_between_lines: float = 10):
        self._titles = titles
        self._interactive = sys.stdout.isatty() if interactive is None else interactive
        self._seconds_between_lines = seconds_between_lines
        self._node = ""
        self._step = self._text = ""
        self._last_print = float("-inf")
        self._width = 0

    def show(self, event) -> None:
        """Take one event of the host."""
        if event.kind == "executing" or (event.kind in ("progress", "text") and event.node != self._node):
            self.finish_line()
            self._node, self._step, self._text = event.node, "", ""
            self._last_print = float("-inf")
        if event.kind == "progress":
            self._step = f"{event.value / event.maximum:.0%}"
        elif event.kind == "text":
            self._text = " ".join(event.text.split())
        elif event.kind != "executing":
            return
        self._print()

    def finish_line(self) -> None:
        """End the line of the current node with its last state."""
        if self._node:
            self._print(final=True)
            self._node = ""

    def _print(self, final: bool = False) -> None:
        parts = (self._titles.get(self._node, self._node), self._step, self._text)
        line = "  ".join(part for part in parts if part)
        now = time.monotonic()
        if self._interactive:
            line = line[: shutil.get_terminal_size().columns - 3]
            print("\r  " + line.ljust(self._width), end="\n" if final else "", flush=True)
            self._width = 0 if final else max(self._width, len(line))
        elif (final and self._step) or now - self._last_print >= self._seconds_between_lines:
            print("  " + line, flush=True)
            self._last_print = now


def print_results(host, outputs: dict[str, dict]) -> None:
    """Say where the LoRA and the saved images are."""
    loras = [name for output in outputs.values() for name in output.get("lora", [])]
    if not loras:
        raise Failure(f"The workflow ran, but no node reported a LoRA; the end of {host.log}:\n{host.log_tail()}")
    for name in loras:
        print(f"LoRA:    {host.output / 'loras' / name}")
    for output in outputs.values():
        for image in output.get("images", []):
            if image["type"] == "output":
                print(f"Image: {host.output / image['subfolder'] / image['filename']}")


def leave_running(host) -> None:
    """Keep the server until Ctrl-C."""
    print(f"ComfyUI is running at {host.url} (the workflow is under Templates > finetune-nodes); Ctrl-C ends it.")
    while host.is_running():
        time.sleep(0.5)
    raise Failure(f"ComfyUI ended by itself; the end of {host.log}:\n{host.log_tail()}")


def duration(seconds: float) -> str:
    """Minutes and seconds for a person."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    run_script(main)
