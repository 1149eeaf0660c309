"""Describing images, and keeping what was said of each, so that no image is ever described twice alike.

    <caches>/caption_texts/ab/<key>.json     what a model said of an image
    <caches>/captioning/<model>-<key>/       spec.json events.jsonl log.txt, as in the folder of a run

The first key is a hash of the image's content, the model's files and the settings it listens to; the second of the whole
question. Files appear whole or not at all, so an interrupted run and two runs at once do no harm.
"""
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from PIL import Image

from ..caches.tensor_cache import TensorCache
from ..data.images.image_files import read_image
from ..errors import Cancelled, UserError
from ..events import CaptionedEvent, Emit, NoteEvent, PhaseEvent
from ..files import ensure_space, read_json, write_json
from ..optional_packages import require_packages
from ..randomness import derive
from ..run_folder import Run
from ..spec import DatasetImage
from ..spec.captioning import CaptionerSpec, CaptioningSpec, SpeakerSpec, SpeakingSpec
from . import Captioner, Finding, load, text_of
from .devices import choose_device, choose_dtype, is_out_of_memory

FORMAT = 1
"""Raised when the same model and settings would say something else of an image."""
FINDING_BYTES = 20_000
"""Room that a finding takes at most on the disk; a tagger names some hundred tags."""


class Findings:
    """What the model of a spec said of images."""

    def __init__(self, spec: CaptioningSpec):
        self.spec, self.folder = spec, Path(spec.folders.caches) / "caption_texts"

    def path(self, image: DatasetImage) -> Path:
        key = TensorCache.key(FORMAT, self.spec.folder.fingerprint, self.spec.model.decisive(),
                              self.spec.precision, image.digest, image.background)
        return self.folder / key[:2] / f"{key}.json"

    def get(self, image: DatasetImage) -> Finding | None:
        """None when it is not there or damaged."""
        content = read_json(self.path(image))
        finding = content.get("finding") if isinstance(content, dict) else None
        if self.spec.model.kind == "tagger":
            return finding if isinstance(finding, list) and all(map(_is_row, finding)) else None
        return finding if isinstance(finding, str) else None

    def put(self, image: DatasetImage, finding: Finding):
        path = self.path(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"image": image.name, "model": self.spec.folder.name, "finding": finding})


def _is_row(row: object) -> bool:
    return isinstance(row, list) and [type(value) for value in row] in ([str, str, float], [str, str, int])


def texts_of(spec: CaptioningSpec) -> dict[str, str]:
    """What there is for the spec's images already, by their paths."""
    findings = Findings(spec)
    found = ((image, findings.get(image)) for image in spec.dataset.images)
    return {image.path: text_of(spec.model, finding) for image, finding in found if finding is not None}


def open_folder(spec: CaptioningSpec) -> Run:
    """The folder in which a worker process answers this question, with the spec in it."""
    question = [spec.folder.fingerprint, spec.model.decisive(), spec.precision,
                [(image.digest, image.background) for image in spec.dataset.images]]
    key = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:12]
    words = re.sub(r"[^\w]+", "_", spec.folder.name).strip("_")[:40]
    folder = Run(Path(spec.folders.caches) / "captioning" / f"{words}-{key}".lstrip("-"))
    folder.folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.spec_path, spec.model_dump(mode="json"))
    return folder


def caption_images(spec: CaptioningSpec, emit: Emit, stop_requested: Callable[[], bool] = lambda: False) -> int:
    """Describe the images that were not yet; returns how many those were. Events: "phase", "note", and "captioned" with
    done, total, path and caption.

    Raises UserError with a sentence, or Cancelled between two batches; what was said stays.
    """
    findings = Findings(spec)
    missing = {findings.path(image): image for image in spec.dataset.images if findings.get(image) is None}
    if missing:
        require_packages(spec)
        findings.folder.mkdir(parents=True, exist_ok=True)
        ensure_space(findings.folder, FINDING_BYTES * len(missing))
        _describe(spec, findings, list(missing.values()), emit, stop_requested)
    return len(missing)


def _describe(spec: CaptioningSpec, findings: Findings, missing: Sequence[DatasetImage], emit: Emit,
              stop_requested: Callable[[], bool]):
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.precision, device)
    with ThreadPoolExecutor() as pool:
        emit(PhaseEvent(text=f"loading {spec.folder.name}", stage="loading"))
        captioner = load(spec, device, dtype)
        told = _tell(captioner, 0, emit)
        emit(PhaseEvent(text="describing the first images", stage="describing"))
        try:
            done, size = 0, 1 if picks_at_random(spec.model) else spec.batch_size
            while done < len(missing):
                if stop_requested():
                    raise Cancelled
                batch = missing[done:done + size]
                with seeded(spec, batch[0]):
                    said = attempt(captioner, list(pool.map(read, batch)))
                if said is None:
                    size = _halved(size, spec, emit)
                    continue
                told = _tell(captioner, told, emit)
                for image, finding in zip(batch, said, strict=True):
                    findings.put(image, finding)
                    done += 1
                    emit(CaptionedEvent(done=done, total=len(missing), path=image.path,
                                        caption=text_of(spec.model, finding)))
        finally:
            captioner.close()


def _tell(captioner: Captioner, told: int, emit: Emit) -> int:
    """Emit the captioner's notes behind the first `told`; returns how many are told now."""
    for note in captioner.notes[told:]:
        emit(NoteEvent(text=note))
    return len(captioner.notes)


def read(image: DatasetImage) -> Image.Image:
    try:
        return read_image(Path(image.path), image.background)
    except UserError as problem:
        raise UserError(f"{problem}. It could be read when the dataset was loaded; restore it, or queue again to go on "
                        "without it.") from None


def attempt(captioner: Captioner, images: Sequence[Image.Image]) -> Sequence[Finding] | None:
    """What the model says of the images; None when they are too many for the memory."""
    try:
        return captioner.describe(images)
    except Exception as problem:
        if len(images) == 1 or not is_out_of_memory(problem):
            raise
        return None


def _halved(size: int, spec: CaptioningSpec, emit: Emit) -> int:
    """After `attempt` has returned: as long as its exception lives, it holds what filled the memory."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    emit(NoteEvent(text=f"the memory is too small for {size} images at once; going on with {size // 2}. Lower batch_size to "
                        "save the time of trying"))
    return size // 2


def picks_at_random(model: CaptionerSpec) -> TypeGuard[SpeakerSpec]:
    """Whether words are picked at random: then every image is described alone, by numbers of its own."""
    return isinstance(model, SpeakingSpec) and model.decoding.temperature > 0


@contextmanager
def seeded(spec: CaptioningSpec, image: DatasetImage):
    """Randomness of (caption_seed, image), where words are picked at random; the generators are as before afterwards."""
    if not picks_at_random(spec.model):
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(derive(spec.model.decoding.caption_seed, int(image.digest[:16], 16)))
        yield
