"""Before the loop: encode every picture and caption once, keep the results on disk, free the encoders."""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from .. import randomness
from ..caches.encoding import CaptionCache, LatentCache, load_text
from ..caches.latent_masks import MaskCache
from ..caches.tensor_cache import clean_caches
from ..data.captions.trigger_advice import trigger_notes
from ..data.images.augmentation import View, views_of
from ..data.images.buckets import Crop, bucket_sizes, fit
from ..data.split import split
from ..families.protocol import Conditioning, Family, LatentFormat, TextEncoders
from ..spec import Picture, RunSpec
from ..words import clause, counted
from .batches import BatchOrder, CachedPicture, CachedView, Source, prior_batches


@dataclass
class Prepared:
    """What the loop needs of the data. `trained` are the subject's pictures without those `held_out`, which are the pictures
    for validation, by digest. `text` and `vae` are there only if something still needs them."""

    trained: Sequence[Picture]
    subject: Source
    prior: Source | None
    prior_rate: float
    held_out: Mapping[str, CachedPicture]
    steps_per_epoch: float
    buckets: Mapping[tuple[int, int], int]
    latent_format: LatentFormat
    vae: nn.Module | None
    text: TextEncoders | None
    captions: CaptionCache
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
    views = {picture: views_of(picture, crops[picture]) for picture in (*trained, *class_pictures)}
    plain = {picture: [View(crops[picture])] for picture in held_out}
    notes = [*spec.dataset.notes, *notes, *crop_notes(pictures, [crops[picture] for picture in pictures]),
             *mask_notes(spec), *held_out_notes(pictures, held_out), *variation_notes(trained)]
    masks = MaskCache(spec.folders.caches, form.downscale) if spec.objective.masked else None
    latents = LatentCache(spec, family, form)
    captions = CaptionCache(spec, family, dtype)
    vae = text = None
    if accelerator.is_main_process:
        if masks:
            seen = {**{picture: views[picture] for picture in trained}, **plain}
            masks.fill([(picture, view.crop) for picture, each in seen.items() for view in each], emit)
        vae = latents.fill([(picture, view) for group in (views, plain) for picture, each in group.items() for view in each],
                           accelerator.device, emit)
        if spec.previews.every and spec.previews.prompts and vae is None:
            vae = family.load_vae(spec.base)
    tokenizers = family.load_tokenizers(spec.base)
    notes += length_notes(family, tokenizers, spec)
    varying = any(picture.variation.varies for picture in (*trained, *class_pictures))
    notes += trigger_notes(spec.dataset, spec.prior and spec.prior.dataset, next(iter(tokenizers.values())))
    if keep_text is not None:
        text = load_text(spec, family, keep_text)
    else:
        if varying:
            emit("phase", text="loading the text encoders", stage="captions")
            size = captions.keep_encoders(accelerator.device)
            notes.append("captions change from step to step, so they are encoded as they come: the text encoders stay in "
                         f"memory ({size / 1e6:,.0f} MB), and steps take a little longer")
        if accelerator.is_main_process:
            captions.fill(wanted_captions(spec, held_out), accelerator.device, emit)
    if accelerator.is_main_process:
        tidy(spec, emit)
    accelerator.wait_for_everyone()
    for note in notes:
        emit("note", text=note)

    def cached(picture: Picture, views: Sequence[View], masks: MaskCache | None) -> CachedPicture:
        return CachedPicture(picture.caption, [
            CachedView(view.crop, latents.reader(picture, view), masks.reader(picture, view.crop) if masks else None)
            for view in views
        ], picture.variation, picture.weight)

    def source(chosen: Sequence[Picture], batch_size: int, stream: int, masks: MaskCache | None = None) -> Source:
        order = BatchOrder([crops[picture].bucket for picture in chosen], [picture.repeats for picture in chosen],
                           batch_size, training.seed, stream)
        return Source([cached(picture, views[picture], masks) for picture in chosen], order)

    subject, prior, rate = source(trained, training.batch_size, randomness.ORDER, masks), None, 0.0
    if spec.prior:
        size, rate = prior_batches(training.batch_size, spec.prior.ratio, accelerator.num_processes)
        prior = source(class_pictures, size, randomness.CLASS_ORDER)
    return Prepared(
        trained=trained, subject=subject, prior=prior, prior_rate=rate,
        held_out={picture.digest: cached(picture, plain[picture], masks) for picture in held_out},
        steps_per_epoch=subject.order.batches_per_epoch / training.accumulation,
        buckets=Counter(crops[picture].bucket for picture in trained), latent_format=form,
        vae=vae.cpu() if vae is not None and spec.previews.every else None, text=text, captions=captions,
        preview_resolution=training.resolution // form.downscale * form.downscale, notes=notes,
    )


def wanted_captions(spec: RunSpec, held_out: Sequence[Picture]) -> list[str]:
    """Every caption that can be known before the run, once: those of pictures whose captions stay as they are, the empty
    one, the previews'. Held-out pictures are looked at with their plain captions."""
    pictures = [*spec.dataset.pictures, *(spec.prior.dataset.pictures if spec.prior else ())]
    captions = [picture.variation.longest(picture.caption) for picture in pictures if not picture.variation.varies]
    captions += [picture.caption for picture in held_out]
    captions += [""] if spec.training.caption_dropout else []
    captions += [spec.previews.negative, *spec.previews.prompts] if spec.previews.every else []
    return list(dict.fromkeys(captions))


def crop_notes(pictures: Sequence[Picture], crops: Sequence[Crop]) -> list[str]:
    """What people would want to know about their pictures before they wait for the result."""
    notes = []
    enlarged = [(crop.enlargement, picture.name) for picture, crop in zip(pictures, crops) if crop.enlargement > 1.2]
    if enlarged:
        factor, name = max(enlarged)
        notes.append(clause(len(enlarged), "picture", "are smaller than the training resolution and thus enlarged, "
                            f"{name} the most ({factor:.1f} times)", len(pictures)))
    cut = [(crop.kept, picture.name) for picture, crop in zip(pictures, crops) if crop.kept < 0.8]
    if cut:
        kept, name = min(cut)
        notes.append(clause(len(cut), "picture", f"lose more than a fifth of the area to the crop, {name} the most "
                            f"({1 - kept:.0%})", len(pictures)))
    return notes


def mask_notes(spec: RunSpec) -> list[str]:
    """In a masked run, how many pictures have no mask."""
    pictures = spec.dataset.pictures
    without = [picture for picture in pictures if not picture.mask]
    if not spec.objective.masked or not without:
        return []
    return [clause(len(without), "picture", f"have no mask, so that all of it counts, {without[0].name} for example",
                   len(pictures))]


def held_out_notes(pictures: Sequence[Picture], held_out: Sequence[Picture]) -> list[str]:
    """Which pictures are not trained; people may want to exchange them."""
    if not held_out:
        return []
    names = ", ".join(picture.name for picture in held_out[:3]) + (", …" if len(held_out) > 3 else "")
    return [clause(len(held_out), "picture", f"are held out for validation and not trained: {names}", len(pictures))]


def variation_notes(pictures: Sequence[Picture]) -> list[str]:
    """Where captions have no tags that a shuffle or a dropout of tags could move or leave out."""
    wanted = [picture for picture in pictures if picture.variation.shuffle or picture.variation.tag_dropout]
    still = [picture for picture in wanted
             if len(picture.variation.tags(picture.caption)[1]) < (1 if picture.variation.tag_dropout else 2)]
    if not still:
        return []
    variation = still[0].variation
    return [clause(len(still), "caption", "do not vary, as there are too few tags behind those kept in front "
                   f"({variation.keep_tags}), separated by {variation.separator!r}: that of {still[0].name} for example",
                   len(wanted))]


def tidy(spec: RunSpec, emit):
    """Remove what no run has used for long; what this one needs has just been marked as used."""
    files, size = clean_caches(Path(spec.folders.caches), spec.memory.cache_days)
    if files:
        emit("phase", text=f"removed {counted(files, 'cache file')} ({size / 1e6:,.0f} MB) that no run has used for "
                           f"{counted(spec.memory.cache_days, 'day')}")


def length_notes(family: Family, tokenizers: Mapping[str, object], spec: RunSpec) -> list[str]:
    """Which captions are cut because they have more tokens than the text encoder takes, in their longest template."""
    long = [(count, picture.name, room) for picture in spec.dataset.pictures
            for count, room in [family.token_count(tokenizers, picture.variation.longest(picture.caption))] if count > room]
    if not long:
        return []
    count, name, room = max(long)
    return [clause(len(long), "caption", f"are longer than the {room} tokens that the text encoder takes, and cut, that of "
                   f"{name} the most ({count} tokens)")]
