"""The command line of the engine.

    python -m trainers train SPEC.json     train the run that a spec describes, or go on with it
    python -m trainers class-images SPEC.json   let a base generate class images, or the missing ones
    python -m trainers caption SPEC.json   describe images with a caption model, or those that are missing
    python -m trainers TOOL SPEC.json      a file made out of files; the tools stand below
    python -m trainers layer-names FAMILY  every layer of a family, its block and its names in LoRA files, as a table
    python -m trainers clean-caches --days 30 FOLDER   remove what no run has used for 30 days from a folder of caches;
                                           runs do so at their start, after the days that their spec's memory says
    python -m trainers work RUN_FOLDER     the worker process of a node; talks in events

For several processes, put `accelerate launch --multi_gpu --num_processes N` before `trainers/__main__.py` instead of
`-m trainers`; on CPUs too, where accelerate's own --cpu would start only one.
"""
import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # started as a script, perhaps by an isolated Python that searches nowhere
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

# No run may wait for the network: every model part comes from the disk.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

if TYPE_CHECKING:
    from trainers.run_folder import Run


def main(arguments: list[str] | None = None) -> int:
    from trainers.process import worker
    from trainers.tools.file_tasks import TOOLS

    parser = argparse.ArgumentParser(prog="python -m trainers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("train", help="train the run of a spec").add_argument("spec", help="path of a spec.json")
    commands.add_parser("class-images", help="generate the class images of a spec").add_argument(
        "spec", help="path of a spec.json")
    commands.add_parser("caption", help="describe the images of a spec").add_argument("spec", help="path of a spec.json")
    for tool in TOOLS.values():
        commands.add_parser(tool.name, help=tool.help).add_argument("spec", help="path of a spec.json")
    commands.add_parser("work", help="worker process of a node").add_argument("folder", help="run folder")
    cleaning = commands.add_parser("clean-caches", help="remove cache files that no run has used for long")
    cleaning.add_argument("--days", type=float, default=30.0, help="days without use; 30 if not given")
    cleaning.add_argument("folder", help="folder of caches, for example output/finetune/.cache")
    from trainers import families
    naming = commands.add_parser("layer-names", help="the names of a family's layers in LoRA files, separated by tabs")
    naming.add_argument("family", choices=families.NAMES)
    options = parser.parse_args(arguments)
    if options.command == "clean-caches":
        return clean(Path(options.folder), options.days)
    if options.command == "layer-names":
        return print_layer_names(options.family)
    if options.command == "work":
        return worker.main(options.folder, piped=True)
    openers = {"train": open_training, "class-images": open_class_images, "caption": open_captioning}
    return perform(openers.get(options.command) or (lambda content: open_file_task(options.command, content)), options.spec)


def perform(open_folder: Callable[[bytes], "Run | None"], path: str) -> int:
    """Do what the spec at `path` asks for, in the folder that `open_folder(content)` returns; None: it is done."""
    from pydantic import ValidationError

    from trainers.errors import UserError
    from trainers.process import worker
    from trainers.spec import explain

    try:
        run = open_folder(Path(path).read_bytes())
    except OSError as problem:
        print(f"{path} cannot be read: {problem.strerror}.", file=sys.stderr)
        return 1
    except ValidationError as problem:
        print(explain(problem), file=sys.stderr)
        return 1
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 1
    return worker.main(str(run.folder), piped=False) if run else 0


def clean(folder: Path, days: float) -> int:
    from trainers.caches.tensor_cache import KINDS, clean_caches

    if days < 1:  # what a running run needs was marked as used when it began
        print(f"--days is {days:g}: it should be 1 or more.", file=sys.stderr)
        return 1
    if not any((folder / kind).is_dir() for kind in KINDS):
        print(f"{folder} is no folder of caches: none of {', '.join(KINDS)} is in it.", file=sys.stderr)
        return 1
    files, size = clean_caches(folder, days)
    print(f"removed {files} {'file' if files == 1 else 'files'}, {size / 1e6:.1f} MB")
    return 0


def print_layer_names(family: str) -> int:
    from trainers.artifacts.layer_names import family_names

    table = family_names(family)
    layers = [view for layer in table.layers for view in (layer, *dict.fromkeys(layer.views.values()))] if table else []
    programs = list(dict.fromkeys(program for layer in layers for program in layer.spellings()))
    print("block", "kernel", *programs, sep="\t")
    for layer in layers:
        names, kernel, split = layer.spellings(), "×".join(map(str, layer.kernel or ())) or "linear", layer.split
        rows = "" if split is None else " swapped" if split.of == 1 else f" rows {split.start}–{split.stop} of {split.of}"
        print(layer.block, kernel + rows, *(names.get(program, "") for program in programs), sep="\t")
    return 0


def open_training(content: bytes) -> "Run | None":
    from trainers.run_folder import open_run
    from trainers.spec import RunSpec

    run = open_run(RunSpec.model_validate_json(content))
    if run.report:
        print(f"{run.name} is finished: {run.artifact}")
        return None
    return run


def open_class_images(content: bytes) -> "Run | None":
    from trainers.sampling.class_images import class_dataset, images_of, open_folder
    from trainers.spec.class_images import ClassImagesSpec

    spec = ClassImagesSpec.model_validate_json(content)
    folder = open_folder(spec)
    if class_dataset(spec):
        print(f"all {spec.count} images are there: {images_of(folder)}")
        return None
    return folder


def open_captioning(content: bytes) -> "Run | None":
    from trainers.captioning.work import open_folder, texts_of
    from trainers.spec.captioning import CaptioningSpec

    spec = CaptioningSpec.model_validate_json(content)
    texts = texts_of(spec)
    if len(texts) == len(spec.dataset.images):
        for path, text in texts.items():
            print(f"{Path(path).name}: {text}")
        return None
    return open_folder(spec)


def open_file_task(task: str, content: bytes) -> "Run | None":
    from trainers.run_folder import open_run
    from trainers.tools.file_tasks import TOOLS

    run = open_run(TOOLS[task].spec.model_validate_json(content))
    if run.report:
        print(f"{run.name} is finished: {run.artifact}")
        return None
    return run


if __name__ == "__main__":
    sys.exit(main())
