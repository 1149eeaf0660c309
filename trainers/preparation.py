"""Before the loop: encode every picture and caption once, keep the results on disk, free the encoders."""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from . import randomness
from .data.batches import BatchOrder, CachedPicture, Source, prior_batches
from .data.buckets import Crop, bucket_sizes, fit
from .data.caches import TensorCache
from .data.masks import MaskCache
from .data.pictures import crop_pixels, read_picture
from .data.split import split
from .data.triggers import trigger_notes
from .errors import UserError
from .families.protocol import Conditioning, Family, LatentFormat, TextEncoders
from .files import ensure_space
from .spec import Picture, RunSpec


@dataclass
class Prepared:
    """What the loop needs of the data. `held_out` are the pictures for validation, by digest. `text` and `vae` are there
    only if something still needs them."""

    subject: Source
    prior: Source | None
    prior_rate: float
    held_out: Mapping[str, CachedPicture]
    steps_per_epoch: float
    buckets: Mapping[tuple[int, int], int]
    latent_format: LatentFormat
    vae: nn.Module | None
    text: TextEncoders | None
    captions: "CaptionCache"
    preview_resolution: int
    notes: list[str]

    def conditioning(self, captions: Sequence[str]) -> Conditioning:
        return self.captions.batch(captions)


def prepare_data(spec: RunSpec, family: Family, dtype: torch.dtype, accelerator: Accelerator, keep_text: torch.dtype | None,
                 notes: Sequence[str], emit) -> Prepared:
    """Caches filled, notes written. Only the main process encodes; the others wait for its files. `keep_text` is the
    precision of text encoders that train, or None when captions can be encoded once."""
    training, form = spec.training, family.latent_format(spec.base)
    sizes = bucket_sizes(training.resolution, training.buckets)
    pictures = spec.dataset.pictures
    class_pictures = spec.prior.dataset.pictures if spec.prior else ()
    crops = {picture: fit(picture.size, sizes) for picture in (*pictures, *class_pictures)}
    trained, held_out = split(pictures, spec.validation.share)
    notes = [*spec.dataset.notes, *notes, *crop_notes(pictures, [crops[picture] for picture in pictures]),
             *mask_notes(spec), *held_out_notes(pictures, held_out)]
    masks = MaskCache(spec.folders.caches, form.downscale) if spec.objective.masked else None
    latents = LatentCache(spec, family, form)
    captions = CaptionCache(spec, family, dtype)
    vae = text = None
    if accelerator.is_main_process:
        if masks:
            masks.fill({picture: crops[picture] for picture in pictures}, emit)
        vae = latents.fill(crops, accelerator.device, emit)
        if spec.previews.every and spec.previews.prompts and vae is None:
            vae = family.load_vae(spec.base)
    tokenizers = family.load_tokenizers(spec.base)
    notes += length_notes(family, tokenizers, spec)
    notes += trigger_notes(spec.dataset, spec.prior and spec.prior.dataset, next(iter(tokenizers.values())))
    if keep_text is not None:
        text = load_text(spec, family, keep_text)
    elif accelerator.is_main_process:
        captions.fill(wanted_captions(spec), accelerator.device, emit)
    accelerator.wait_for_everyone()
    for note in notes:
        emit("note", text=note)

    def cached(picture: Picture, masks: MaskCache | None = None) -> CachedPicture:
        return CachedPicture(picture.caption, crops[picture], latents.reader(picture, crops[picture]),
                             masks.reader(picture, crops[picture]) if masks else None)

    def source(chosen: Sequence[Picture], batch_size: int, stream: int, masks: MaskCache | None = None) -> Source:
        order = BatchOrder([crops[picture].bucket for picture in chosen], [picture.repeats for picture in chosen],
                           batch_size, training.seed, stream)
        return Source([cached(picture, masks) for picture in chosen], order)

    subject, prior, rate = source(trained, training.batch_size, randomness.ORDER, masks), None, 0.0
    if spec.prior:
        size, rate = prior_batches(training.batch_size, spec.prior.ratio, accelerator.num_processes)
        prior = source(class_pictures, size, randomness.CLASS_ORDER)
    return Prepared(
        subject=subject, prior=prior, prior_rate=rate,
        held_out={picture.digest: cached(picture) for picture in held_out},
        steps_per_epoch=subject.order.batches_per_epoch / training.accumulation,
        buckets=Counter(crops[picture].bucket for picture in trained), latent_format=form,
        vae=vae.cpu() if vae is not None and spec.previews.every else None, text=text, captions=captions,
        preview_resolution=training.resolution // form.downscale * form.downscale, notes=notes,
    )


def load_text(spec: RunSpec, family: Family, dtype: torch.dtype) -> TextEncoders:
    text = family.load_text(spec.base, dtype)
    text.clip_skip = spec.training.clip_skip
    return text


def wanted_captions(spec: RunSpec) -> list[str]:
    """Every caption the run can ask for, once: the pictures', the empty one, the previews'."""
    captions = [picture.caption for picture in spec.dataset.pictures]
    captions += [picture.caption for picture in spec.prior.dataset.pictures] if spec.prior else []
    captions += [""] if spec.training.caption_dropout else []
    captions += [spec.previews.negative, *spec.previews.prompts] if spec.previews.every else []
    return list(dict.fromkeys(captions))


class LatentCache:
    def __init__(self, spec: RunSpec, family: Family, form: LatentFormat):
        self.spec, self.family, self.form = spec, family, form
        self.cache = TensorCache(Path(spec.folders.caches) / "latents")

    def key(self, picture: Picture, crop: Crop) -> str:
        return TensorCache.key(self.spec.base.fingerprint, picture.digest, crop.resized, crop.left, crop.top, crop.bucket)

    def reader(self, picture: Picture, crop: Crop):
        key = self.key(picture, crop)

        def read() -> torch.Tensor:
            try:
                return self.cache.get(key)["latents"]
            except KeyError:
                raise UserError(f"The cached latents of {picture.name!r} have disappeared from the cache folder during "
                                "the run. Queue again; they will be encoded anew.") from None
        return read

    def fill(self, crops: Mapping[Picture, Crop], device: torch.device, emit) -> nn.Module | None:
        """Encode what is missing. Returns the VAE if it was needed."""
        missing = [(picture, crop) for picture, crop in crops.items() if self.key(picture, crop) not in self.cache]
        if not missing:
            return None
        # float32 latents have 1 / 16 of the numbers of an RGB picture (4 · 1 / 64 against 1): 0.25 bytes a pixel.
        ensure_space(self.cache.folder, int(0.3 * sum(crop.bucket[0] * crop.bucket[1] for _, crop in missing)))
        emit("phase", text="loading the VAE")
        vae = self.family.load_vae(self.spec.base).to(device)
        for done, (picture, crop) in enumerate(missing, start=1):
            try:
                pixels = crop_pixels(read_picture(Path(picture.path)), crop)
            except UserError as problem:
                raise UserError(f"{problem}. It could be read when the run was queued; restore it, or queue again to "
                                "train without it.") from None
            latents = self.family.encode_pictures(vae, pixels[None].to(device), self.form)[0]
            self.cache.put(self.key(picture, crop), {"latents": latents})
            emit("encoding", what="pictures", done=done, total=len(missing))
        return vae


class CaptionCache:
    """Conditioning of captions, kept in the precision the text encoders ran in."""

    def __init__(self, spec: RunSpec, family: Family, dtype: torch.dtype):
        self.spec, self.family, self.dtype = spec, family, dtype
        self.cache = TensorCache(Path(spec.folders.caches) / "captions")

    def key(self, caption: str) -> str:
        return TensorCache.key(self.spec.base.fingerprint, str(self.dtype), self.spec.training.clip_skip, caption)

    def fill(self, captions: Sequence[str], device: torch.device, emit):
        """Encode what is missing, then free the encoders."""
        missing = [caption for caption in captions if self.key(caption) not in self.cache]
        if not missing:
            return
        emit("phase", text="loading the text encoders")
        text = load_text(self.spec, self.family, self.dtype).to(device)
        for done, caption in enumerate(missing, start=1):
            with torch.no_grad():
                encoded = self.family.encode_captions(text, [caption])
            self.cache.put(self.key(caption), {name: tensor[0] for name, tensor in encoded.items()})
            emit("encoding", what="captions", done=done, total=len(missing))

    def batch(self, captions: Sequence[str]) -> Conditioning:
        single = {caption: self._read(caption) for caption in dict.fromkeys(captions)}
        return {
            name: torch.stack([single[caption][name] for caption in captions]) for name in single[captions[0]]
        }

    def _read(self, caption: str) -> Conditioning:
        try:
            return self.cache.get(self.key(caption))
        except KeyError:
            raise UserError(f"The cached encoding of the caption {caption[:60]!r} has disappeared from the cache folder "
                            "during the run. Queue again; it will be encoded anew.") from None


def crop_notes(pictures: Sequence[Picture], crops: Sequence[Crop]) -> list[str]:
    """What people would want to know about their pictures before they wait for the result."""
    notes = []
    enlarged = [(crop.enlargement, picture.name) for picture, crop in zip(pictures, crops) if crop.enlargement > 1.2]
    if enlarged:
        factor, name = max(enlarged)
        notes.append(f"{len(enlarged)} of {len(pictures)} pictures are smaller than the training resolution and are "
                     f"enlarged, {name} the most ({factor:.1f} times)")
    cut = [(crop.kept, picture.name) for picture, crop in zip(pictures, crops) if crop.kept < 0.8]
    if cut:
        kept, name = min(cut)
        notes.append(f"{len(cut)} of {len(pictures)} pictures lose more than a fifth of their area to the crop, "
                     f"{name} the most ({1 - kept:.0%})")
    return notes


def mask_notes(spec: RunSpec) -> list[str]:
    """In a masked run, how many pictures have no mask."""
    pictures = spec.dataset.pictures
    without = [picture for picture in pictures if not picture.mask]
    if not spec.objective.masked or not without:
        return []
    return [f"{len(without)} of {len(pictures)} pictures have no mask and count everywhere, {without[0].name} for example"]


def held_out_notes(pictures: Sequence[Picture], held_out: Sequence[Picture]) -> list[str]:
    """Which pictures are not trained; people may want to exchange them."""
    if not held_out:
        return []
    names = ", ".join(picture.name for picture in held_out[:3]) + (", …" if len(held_out) > 3 else "")
    return [f"{len(held_out)} of {len(pictures)} pictures are held out for validation and not trained: {names}"]


def length_notes(family: Family, tokenizers: Mapping[str, object], spec: RunSpec) -> list[str]:
    """Which captions are cut because they have more tokens than the text encoder takes."""
    long = [(count, picture.name, room) for picture in spec.dataset.pictures
            for count, room in [family.token_count(tokenizers, picture.caption)] if count > room]
    if not long:
        return []
    count, name, room = max(long)
    return [f"{len(long)} captions are longer than the {room} tokens that the text encoder takes and are cut, "
            f"that of {name} the most ({count} tokens)"]
