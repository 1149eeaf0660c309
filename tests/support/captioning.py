"""Captioning tasks for the tests."""
from pathlib import Path

import torch
from finetune.trainers import spec as specs
from finetune.trainers.captioning import load
from finetune.trainers.captioning.model_folders import inspect_folder
from finetune.trainers.captioning.work import caption_images
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.spec.captioning import CaptioningSpec
from support.tiny_captioners import KINDS


def ask(folder: Path, images: Path, caches: Path, captions: str = "", **parts) -> CaptioningSpec:
    """A spec for the model at `folder`, named after its maker; keyword arguments are its settings, but for those of the
    spec itself and of decoding."""
    kind = KINDS.get(folder.name, folder.name)
    own = {name: parts.pop(name) for name in ("batch_size", "precision", "device") if name in parts}
    settings = {"kind": kind, **parts}
    if kind != "tagger":
        names = ("maximum_tokens", "beams", "repetition_penalty", "temperature", "top_p", "caption_seed")
        settings["decoding"] = {"maximum_tokens": 12, **{name: settings.pop(name) for name in names if name in settings}}
    if kind == "vision_language":
        settings.setdefault("instruction", "a photo of the dog")
    fields = dict(
        model=settings, folder=inspect_folder(kind, folder, folder.name), device="cpu",
        dataset=scan_folder(str(images), "images", default_caption=captions),
        folders=specs.FolderSpec(runs=str(caches / "runs"), caches=str(caches)))
    return specs.checked(CaptioningSpec, **{**fields, **own})


def describe(spec: CaptioningSpec, images, dtype=torch.float32) -> list:
    """What the model says, without work and cache."""
    captioner = load(spec, torch.device("cpu"), dtype)
    try:
        return captioner.describe(images)
    finally:
        captioner.close()


def work(spec: CaptioningSpec, **arguments) -> list:
    """The events of the work in this process."""
    events = []
    caption_images(spec, events.append, **arguments)
    return events
