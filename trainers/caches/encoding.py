"""What is encoded once and kept on disk: images as latents, captions as conditioning."""
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cached_property
from os import cpu_count
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn

from ..data.images.augmentation import View, view_pixels
from ..data.images.image_files import pixel_key, read_image
from ..errors import UserError
from ..events import Emit, EncodingEvent, PhaseEvent
from ..families.conditioning import Conditioning
from ..families.protocol import Family, LatentFormat, TextEncoders
from ..files import ensure_space
from ..memory.placement import Place, Placement, assign
from ..read_ahead import ahead
from ..spec import DatasetImage, RunSpec
from .freed_memory import give_back_freed_memory
from .tensor_cache import CAPTIONS, LATENTS, TensorCache

THREADS = min(4, cpu_count() or 1)
"""Images that are read at once. Each is in memory whole for a moment, whatever its size."""
AHEAD = 2 * THREADS
"""Jobs that are begun before their turn."""
VIEWS_PER_JOB = 8
"""Variants that one reading of an image serves; their pixels wait in memory for their turn."""
PIXELS_AT_ONCE, IMAGES_AT_ONCE = 512 * 512, 4
"""Limits of what is encoded together: images of 512 × 512 keep a device busy one by one, and smaller ones never take more
memory than that. On the CPU they are always encoded one by one: it gains nothing there from batches, and keeps prepared
code for every shape that it has met."""

ONE_THREAD_BELOW = 256 * 256
"""Pixels. Smaller images are encoded by one thread of the CPU: more gain nothing, and take processors from the readers,
20 instead of 26 ms for an image of 64 × 64 on two processors."""

TIDY_EVERY = 10
"""Images after which freed memory is given back; it takes some milliseconds."""

FINGERPRINTS = "fingerprints"
"""Folder in the folder of caches that remembers what components hold."""

Job = tuple[DatasetImage, list[View]]


class LatentCache:
    def __init__(self, spec: RunSpec, family: Family, form: LatentFormat):
        self.spec, self.family, self.form = spec, family, form
        self.cache = TensorCache(Path(spec.folders.caches) / LATENTS)

    @cached_property
    def identity(self) -> Sequence:
        return self.family.latent_identity(self.spec.base, Path(self.spec.folders.caches) / FINGERPRINTS)

    def key(self, image: DatasetImage, view: View) -> str:
        return TensorCache.key(self.identity, pixel_key(image), view.crop.key, view.appearance)

    def reader(self, image: DatasetImage, view: View) -> Callable[[], Tensor]:
        key = self.key(image, view)

        def read() -> Tensor:
            try:
                return self.cache.get(key)["latents"]
            except KeyError:
                raise UserError(f"The cached latents of {image.name!r} have disappeared from the cache folder during "
                                "the run. Queue again; they will be encoded anew.") from None
        return read

    def fill(self, views: Iterable[tuple[DatasetImage, View]], device: torch.device, emit: Emit) -> nn.Module | None:
        """Encode what is missing. Returns the VAE if it was needed. `emit` may raise to stop; what is encoded stays."""
        wanted = {self.key(image, view): (image, view) for image, view in views}
        there = self.cache.use(wanted)
        missing = [wanted[key] for key in wanted if key not in there]
        if not missing:
            return None
        # float32 latents have 1 / 16 of the numbers of an RGB image (4 · 1 / 64 against 1): 0.25 bytes a pixel.
        ensure_space(self.cache.folder, int(0.3 * sum(area(view) for _, view in missing)))
        emit(PhaseEvent(text="loading the VAE", stage="images"))
        vae, done = self.family.load_vae(self.spec.base).to(device), 0
        with ThreadPoolExecutor(THREADS) as pool, closing(ahead(pool, read_views, jobs_of(missing), AHEAD)) as jobs:
            for batch in batches_of(jobs, 1 if device.type == "cpu" else IMAGES_AT_ONCE):
                latents = self._encode(vae, [pixels for _, _, pixels in batch], device)
                for (image, view, _), each in zip(batch, latents, strict=True):
                    self.cache.put(self.key(image, view), {"latents": each})
                for _ in batch:
                    done += 1
                    emit(EncodingEvent(what="images", done=done, total=len(missing)))
                    if done % TIDY_EVERY == 0 or done == len(missing):
                        give_back_freed_memory()
        return vae

    def _encode(self, vae: nn.Module, pixels: Sequence[Tensor], device: torch.device) -> Tensor:
        """uint8 [3, height, width] of one size → float32 latents [batch, channels, …] on the CPU."""
        scaled = torch.stack(list(pixels)).to(device).float() / 127.5 - 1
        small = device.type == "cpu" and scaled[0, 0].numel() < ONE_THREAD_BELOW
        with threads(1 if small else torch.get_num_threads()):
            return self.family.encode_images(vae, scaled, self.form).cpu()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def area(view: View) -> int:
    return view.crop.bucket[0] * view.crop.bucket[1]


def jobs_of(missing: Iterable[tuple[DatasetImage, View]]) -> list[Job]:
    """One job for each reading of a file; those of one bucket follow each other."""
    by_image: dict[DatasetImage, list[View]] = {}
    for image, view in missing:
        by_image.setdefault(image, []).append(view)
    jobs = [(image, views[start:start + VIEWS_PER_JOB])
            for image, views in by_image.items() for start in range(0, len(views), VIEWS_PER_JOB)]
    return sorted(jobs, key=lambda job: job[1][0].crop.bucket)


def read_views(job: Job) -> list[tuple[DatasetImage, View, Tensor]]:
    image, views = job
    wanted = tuple(max(sides) for sides in zip(*(view.crop.resized for view in views)))
    try:
        opened = read_image(Path(image.path), image.background, wanted)
    except UserError as problem:
        raise UserError(f"{problem}. It could be read when the run was queued; restore it, or queue again to train without "
                        "it.") from None
    return [(image, view, view_pixels(opened, view)) for view in views]


def batches_of(jobs: Iterable[list[tuple[DatasetImage, View, Tensor]]],
               most: int) -> Iterator[list[tuple[DatasetImage, View, Tensor]]]:
    """What can be encoded together: views of one size, up to `most` of them and the limit of their area."""
    batch = []
    for image, view, pixels in (each for job in jobs for each in job):
        room = min(most, max(1, PIXELS_AT_ONCE // area(view)))
        if batch and (len(batch) >= room or view.crop.bucket != batch[0][1].crop.bucket):
            yield batch
            batch = []
        batch.append((image, view, pixels))
    if batch:
        yield batch


class CaptionCache:
    """Conditioning of captions, kept in the precision the text encoders ran in.

    Captions that change from step to step cannot all be known beforehand: `keep_encoders` keeps the encoders in memory, and
    what is not on disk is encoded when it is asked for. It is not written: a long run would fill the disk with captions that
    never come again, and encoding one takes a small part of a step. Captions are always encoded one by one, so that the
    same caption has the same bits whichever way it comes.

    Text encoders in `trained` are left out: what the others say is then kept as it is, labeled, and joined in every step.
    Those do not see the words in `hidden`.
    """

    def __init__(self, spec: RunSpec, family: Family, placement: Placement, trained: Collection[str] = (),
                 hidden: Collection[str] = ()):
        self.spec, self.family, self.placement = spec, family, placement
        self.trained, self.hidden = trained, hidden
        self.frozen = [name for name in family.encoder_names(spec.base) if name not in trained]
        self.join = Conditioning.labeled if trained else family.joined
        self.cache = TensorCache(Path(spec.folders.caches) / CAPTIONS)
        self.text: TextEncoders | None = None
        self.encoding = Lock()  # a preview may ask while micro-batches are read ahead, and tokenizers serve one thread only

    @cached_property
    def identity(self) -> Sequence:
        return self.family.caption_identity(self.spec.base, Path(self.spec.folders.caches) / FINGERPRINTS)

    def key(self, caption: str) -> str:
        training = self.spec.training
        length = [training.text_length] if training.text_length else []  # entries from before there was a choice stay valid
        stored = [] if self.placement.text_storage == "same" else [self.placement.text_storage]
        partly = [self.frozen, sorted(self.hidden)] if self.trained else []
        return TensorCache.key(self.identity, str(self.placement.frozen), training.clip_skip, *length, *stored, *partly,
                               caption)

    def keep_encoders(self) -> int:
        """Load the text encoders for good; returns their bytes."""
        self.text = self._load().to(self.placement.device)
        return sum(each.numel() * each.element_size() for each in self.text.parameters())

    def _load(self) -> TextEncoders:
        text = load_text(self.spec, self.family, self.placement.frozen, self.frozen, self.placement.text_keeper)
        text.aliases = dict.fromkeys(self.hidden, "")
        return text

    def fill(self, captions: Sequence[str], emit: Emit):
        """Encode what is missing, then free the encoders, unless they are kept."""
        keys = {caption: self.key(caption) for caption in captions}
        there = self.cache.use(keys.values())
        missing = [caption for caption, key in keys.items() if key not in there]
        if not missing:
            return
        emit(PhaseEvent(text="loading the text encoders", stage="captions"))
        each = (self._encode(self.text, caption) for caption in missing) if self.text else encoded(
            self.family, self._load(), missing, self.placement, self.join)
        for done, (caption, conditioning) in enumerate(zip(missing, each, strict=True), start=1):
            self.cache.put(keys[caption], conditioning.entry())
            emit(EncodingEvent(what="captions", done=done, total=len(missing)))

    def batch(self, captions: Sequence[str]) -> Conditioning:
        """On the CPU; nothing where all text encoders train."""
        if not self.frozen:
            return Conditioning()
        single = {caption: self._single(caption) for caption in dict.fromkeys(captions)}
        return Conditioning.collated([single[caption] for caption in captions])

    def _single(self, caption: str) -> Conditioning:
        try:
            return Conditioning.of_entry(self.cache.get(self.key(caption)))
        except KeyError:
            if self.text is not None:
                return self._encode(self.text, caption).to(torch.device("cpu"))
            raise UserError(f"The cached encoding of the caption {caption[:60]!r} has disappeared from the cache folder "
                            "during the run. Queue again; it will be encoded anew.") from None

    def _encode(self, text: TextEncoders, caption: str) -> Conditioning:
        """Outside of any autocast, as if nothing else ran: previews ask from inside one."""
        device = next(text.parameters()).device
        with self.encoding, torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.join({name: self.family.encode_with(text, name, [caption]) for name in text.encoders})


@torch.no_grad()
def encoded(family: Family, text: TextEncoders, captions: Sequence[str], placement: Placement,
            join: Callable[[Mapping[str, Conditioning]], Conditioning] | None = None) -> Iterator[Conditioning]:
    """The conditioning of each caption, on the CPU, joined as the family does if not by `join`. Text encoders are on the
    device one at a time."""
    join = join or family.joined
    for start in range(0, len(captions), placement.captions_at_once):
        said: dict[str, dict[str, Conditioning]] = {}
        chosen = captions[start:start + placement.captions_at_once]
        for name, encoder in text.encoders.items():
            with placement.lent(encoder), torch.autocast(placement.device.type, enabled=False):
                for caption in chosen:
                    states = family.encode_with(text, name, [caption]).to(torch.device("cpu"))
                    said.setdefault(caption, {})[name] = states
        yield from (join(said[caption]) for caption in chosen)


def load_text(spec: RunSpec, family: Family, dtype: torch.dtype, only: Collection[str],
              place: Place = assign) -> TextEncoders:
    """Some of the text encoders of a run, set as it says."""
    text = family.load_text(spec.base, dtype, only, place)
    text.clip_skip, text.text_length = spec.training.clip_skip, spec.training.text_length
    return text
