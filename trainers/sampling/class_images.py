"""Class images for prior preservation, made by the base itself, kept on disk and only ever added to.

    <caches>/class_images/<prompt>-<key>/
        spec.json events.jsonl log.txt    as in the folder of a run
        images/00000.png, 00000.txt …   image i and its caption, the prompt

The key is a hash of everything that determines the images but their count, so a larger count makes the missing ones.
"""
import os
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from .. import families, randomness
from ..caches.encoding import encoded
from ..caches.tensor_cache import TensorCache
from ..data.manifest import scan_folder
from ..errors import Cancelled, UserError
from ..events import ClassImagesEvent, Emit, PhaseEvent
from ..files import UNFINISHED, ensure_space, remove_unfinished, temporary_beside, write_json
from ..memory.placement import Placement
from ..run_folder import Run
from ..spec import DatasetSpec
from ..spec.class_images import ClassImagesSpec

FORMAT = 1
"""Raised when the same spec would give other images."""


def open_folder(spec: ClassImagesSpec) -> Run:
    """The folder of these images, with the spec in it as it is asked for now."""
    key = TensorCache.key(FORMAT, spec.base.fingerprint, spec.base.family, spec.base.prediction_type, spec.prompt,
                          spec.negative, spec.resolution, *steps_and_guidance(spec), spec.image_seed)[:12]
    words = re.sub(r"[^\w]+", "_", spec.prompt).strip("_")[:40]
    folder = Run(Path(spec.folders.caches) / "class_images" / f"{words}-{key}".lstrip("-"))
    images_of(folder).mkdir(parents=True, exist_ok=True)
    write_json(folder.spec_path, spec.model_dump(mode="json"))
    return folder


def steps_and_guidance(spec: ClassImagesSpec) -> tuple[int, float]:
    """Those of the spec, or what is usual for the base."""
    usual = families.get(spec.base.family).usual_sampling(spec.base)
    return spec.sampler_steps or usual.steps, spec.guidance or usual.guidance


def images_of(folder: Run) -> Path:
    return folder.folder / "images"


def class_dataset(spec: ClassImagesSpec, on_progress: Callable[[int, int], None] = lambda done, total: None,
                  ) -> DatasetSpec | None:
    """The images that are asked for, as a dataset, if all of them are there."""
    dataset = _found(open_folder(spec), spec, on_progress)
    return dataset if dataset is not None and len(dataset.images) == spec.count else None


def _found(folder: Run, spec: ClassImagesSpec, on_progress: Callable[[int, int], None] = lambda done, total: None,
           ) -> DatasetSpec | None:
    """Those of the images that are there and whole; None when there are none."""
    wanted = {file_name(number) for number in range(spec.count)}
    try:
        dataset = scan_folder(str(images_of(folder)), spec.prompt, default_caption=spec.prompt, on_progress=on_progress)
    except UserError:
        return None
    images = tuple(image for image in dataset.images if image.name in wanted)
    return DatasetSpec(name=f"class images: {spec.prompt}"[:200], images=images) if images else None


def file_name(number: int) -> str:
    return f"{number:05}.png"


def make_class_images(spec: ClassImagesSpec, emit: Emit, stop_requested: Callable[[], bool] = lambda: False) -> DatasetSpec:
    """Make the images that are missing. Events: "phase", and "class_images" with done, total and the path of the newest.

    Raises UserError with a sentence, or Cancelled between two batches; what is made stays.
    """
    folder = open_folder(spec)
    found = _found(folder, spec)
    there = {image.name for image in found.images} if found else set()
    missing = [number for number in range(spec.count) if file_name(number) not in there]
    if missing:
        # PNG images take at most about the 3 bytes of their pixels.
        ensure_space(folder.folder, 3 * spec.resolution**2 * len(missing))
        _make(spec, images_of(folder), missing, emit, stop_requested)
        found = _found(folder, spec)
    if found is None:
        raise UserError(f"The class images of {spec.prompt!r} have disappeared from {images_of(folder)} while they were "
                        "made. Queue again.")
    return found


def _make(spec: ClassImagesSpec, folder: Path, missing: list[int], emit: Emit, stop_requested: Callable[[], bool]):
    from ..accelerator import accelerated, dtype_of  # seconds of imports, which a node that finds all images is spared
    from .previews import make_images

    remove_unfinished(folder.glob(f"{UNFINISHED}*"))  # of a process that was killed; whoever calls holds the lock
    family = families.get(spec.base.family)
    latent_format = family.latent_format(spec.base)
    with accelerated(spec) as accelerator:
        device, dtype = accelerator.device, dtype_of(accelerator)
        emit(PhaseEvent(text="loading the text encoders", stage="captions"))
        placement = Placement.of(spec.memory, device, dtype, folder=Path(spec.folders.caches))
        text = family.load_text(spec.base, dtype, place=placement.text_keeper)
        positive, negative = encoded(family, text, [spec.prompt, spec.negative], placement)
        del text
        emit(PhaseEvent(text="loading the denoiser", stage="denoiser"))
        denoiser = family.load_denoiser(spec.base, dtype, placement.keeper).to(device)
        vae = family.load_vae(spec.base).to(device)
        emit(PhaseEvent(text="generating the first images", stage="sampling"))
        for start in range(0, len(missing), spec.batch_size):
            if stop_requested():
                raise Cancelled
            numbers = missing[start:start + spec.batch_size]
            generators = [randomness.generator(spec.image_seed, randomness.CLASS_IMAGES, number) for number in numbers]
            with accelerator.autocast():
                images = make_images(
                    family, denoiser, vae, latent_format, family.sampler(spec.base), positive, negative, generators,
                    *steps_and_guidance(spec), spec.resolution, device)
            for number, image in zip(numbers, images, strict=True):
                path = folder / file_name(number)
                _save(path, spec.prompt, image)
            emit(ClassImagesEvent(done=spec.count - len(missing) + start + len(numbers), total=spec.count, path=str(path)))


def _save(path: Path, caption: str, image: Image.Image):
    """The caption first: where there is an image, its caption is there too."""
    if not path.with_suffix(".txt").exists():  # people may have improved it
        with temporary_beside(path.with_suffix(".txt")) as temporary:
            temporary.write_text(caption, encoding="utf-8")
            os.replace(temporary, path.with_suffix(".txt"))
    with temporary_beside(path) as temporary:
        image.save(temporary)
        os.replace(temporary, path)
