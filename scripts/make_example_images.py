"""Run the example workflows on a real ComfyUI, and put an image of what came out beside each.

    python scripts/make_example_images.py [NAME ...] [--only-missing]

The template browser shows the images. A name is that of a workflow without `.json`; none means all.
"""
import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import workflow as workflows
from environment import prepare
from failure import Failure, run_script

LARGEST = 900
"""Pixels; smaller images are kept as they are."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--only-missing", action="store_true", help="leave workflows alone that have an image")
    options = parser.parse_args()
    environment = prepare(test_tools=True)
    if not environment.is_running_this():
        return environment.run(Path(__file__).resolve(), *sys.argv[1:])
    from host_server import HostServer

    files = sorted((environment.root / "example_workflows").glob("*.json"))
    files = [file for file in files if not options.names or file.stem in options.names]
    if options.only_missing:
        files = [file for file in files if not file.with_suffix(".jpg").exists()]
    with tempfile.TemporaryDirectory() as folder, HostServer(environment, Path(folder)) as host:
        for file in files:
            began = time.monotonic()
            save_image(host, file)
            print(f"{file.stem}: {time.monotonic() - began:.0f} s", flush=True)
    return 0


def save_image(host, file: Path):
    """The last image of the workflow's last SaveImage node."""
    from PIL import Image

    graph = json.loads(file.read_text(encoding="utf-8"))
    if problems := workflows.check(graph, host.object_info()):
        raise Failure(f"{file.name} does not fit this ComfyUI: " + " ".join(problems))
    prompt = workflows.to_prompt(graph, host.object_info())
    outputs = host.run(prompt)
    saved = [outputs[node]["images"][-1] for node in prompt if prompt[node]["class_type"] == "SaveImage" and node in outputs]
    if not saved:
        raise Failure(f"{file.name} has no Save Image node that gave an image.")
    image = Image.open(host.output / saved[-1]["subfolder"] / saved[-1]["filename"]).convert("RGB")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    image.save(file.with_suffix(".jpg"), quality=88)


if __name__ == "__main__":
    run_script(main)
