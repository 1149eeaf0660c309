"""Before the loop: encode every image and caption once, keep the results on disk, free the encoders."""
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from ..events import Emit, NoteEvent, PhaseEvent
from ..families.conditioning import Conditioning
from ..families.protocol import Family, LatentFormat, TextEncoders
from ..memory.placement import Placement
from ..spec import DatasetImage, RunSpec
from ..words import clause, counted
from .batches import BatchOrder, CachedImage, CachedView, Source, prior_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Prepared:
    """What the loop needs of the data. `trained` are the subject's images without those `held_out`, which are the images
    for validation, by digest. `text`, the encoders that train, and `vae` are there only if something still needs them."""

    family: Family
    trained: Sequence[DatasetImage]
    subject: Source
    prior: Source | None
    prior_rate: float
    held_out: Mapping[str, CachedImage]
    steps_per_epoch: float
    buckets: Mapping[tuple[int, int], int]
    latent_format: LatentFormat
    vae: nn.Module | None
    text: TextEncoders | None
    captions: CaptionCache
    preview_resolution: int
    guidance: float | None
    """What a model with distilled guidance is told; None for all others."""
    notes: list[str]

    def conditioning(self, captions: Sequence[str], crops: Sequence[Crop]) -> Conditioning:
        """What is known before a step, on the CPU: of the captions what text encoders that do not train say."""
        known = self.family.crop_conditioning(crops)
        if self.guidance is not None:
            known = known | Conditioning.guidance(self.guidance, len(crops))
        return known | self.captions.batch(captions)


def prepare_data(spec: RunSpec, family: Family, placement: Placement, accelerator: Accelerator,
                 trained_text: Collection[str], hidden_words: Collection[str], notes: Sequence[str], emit: Emit) -> Prepared:
    """Caches filled, notes written. Only the main process encodes; the others wait for its files. Captions cannot be encoded
    once by text encoders that are trained; the others do not see `hidden_words`."""
    training, form = spec.training, family.latent_format(spec.base)
    sizes = bucket_sizes(training.resolution, training.buckets, form.multiple)
    images = spec.dataset.images
    class_images = spec.prior.dataset.images if spec.prior else ()
    crops = {image: fit(image.size, sizes) for image in (*images, *class_images)}
    trained, held_out = split(images, spec.validation.fraction)
    views = {image: views_of(image, crops[image]) for image in (*trained, *class_images)}
    plain = {image: [View(crops[image])] for image in held_out}
    notes = [*spec.dataset.notes, *notes, *crop_notes(images, [crops[image] for image in images]),
             *mask_notes(spec), *held_out_notes(images, held_out), *variation_notes(trained)]
    masks = MaskCache(spec.folders.caches, form.downscale) if spec.objective.masked else None
    latents = LatentCache(spec, family, form)
    captions = CaptionCache(spec, family, placement, trained_text, hidden_words)
    vae = text = None
    if accelerator.is_main_process:
        if masks:
            seen = {**{image: views[image] for image in trained}, **plain}
            masks.fill([(image, view.crop) for image, each in seen.items() for view in each], emit)
        vae = latents.fill([(image, view) for group in (views, plain) for image, each in group.items() for view in each],
                           accelerator.device, emit)
        if spec.previews.every and spec.previews.prompts and vae is None:
            vae = family.load_vae(spec.base)
    tokenizers = family.load_tokenizers(spec.base)
    distilled = family.sampler(spec.base).guidance == "distilled"
    notes += [*length_notes(family, tokenizers, spec), *unread_notes(family, spec, distilled)]
    varying = any(image.variation.varies for image in (*trained, *class_images))
    notes += trigger_notes(spec.dataset, spec.prior and spec.prior.dataset, next(iter(tokenizers.values())))
    if trained_text:
        text = load_text(spec, family, placement.base, trained_text)
    if captions.frozen:
        if varying:
            emit(PhaseEvent(text="loading the text encoders", stage="captions"))
            size = captions.keep_encoders()
            notes.append("captions change from step to step, so they are encoded as they come: the text encoders stay in "
                         f"memory ({size / 1e6:,.0f} MB), and steps take a little longer")
        if accelerator.is_main_process:
            captions.fill(wanted_captions(spec, held_out), emit)
    if accelerator.is_main_process:
        tidy(spec, emit)
    accelerator.wait_for_everyone()
    for note in notes:
        emit(NoteEvent(text=note))

    def cached(image: DatasetImage, views: Sequence[View], masks: MaskCache | None) -> CachedImage:
        return CachedImage(image.caption, [
            CachedView(view.crop, latents.reader(image, view), masks.reader(image, view.crop) if masks else None)
            for view in views
        ], image.variation, image.weight)

    def source(chosen: Sequence[DatasetImage], batch_size: int, stream: int, masks: MaskCache | None = None) -> Source:
        order = BatchOrder([crops[image].bucket for image in chosen], [image.repeats for image in chosen],
                           batch_size, training.seed, stream)
        return Source([cached(image, views[image], masks) for image in chosen], order)

    subject, prior, rate = source(trained, training.batch_size, randomness.ORDER, masks), None, 0.0
    if spec.prior:
        size, rate = prior_batches(training.batch_size, spec.prior.ratio, accelerator.num_processes)
        prior = source(class_images, size, randomness.CLASS_ORDER)
    return Prepared(
        family=family, trained=trained, subject=subject, prior=prior, prior_rate=rate,
        held_out={image.digest: cached(image, plain[image], masks) for image in held_out},
        steps_per_epoch=subject.order.batches_per_epoch / training.accumulation,
        buckets=Counter(crops[image].bucket for image in trained), latent_format=form,
        vae=vae.cpu() if vae is not None and spec.previews.every else None, text=text, captions=captions,
        preview_resolution=training.resolution, guidance=training.guidance if distilled else None, notes=notes,
    )


def wanted_captions(spec: RunSpec, held_out: Sequence[DatasetImage]) -> list[str]:
    """Every caption that can be known before the run, once: those of images whose captions stay as they are, the empty
    one, the previews'. Held-out images are looked at with their plain captions."""
    images = [*spec.dataset.images, *(spec.prior.dataset.images if spec.prior else ())]
    captions = [image.variation.longest(image.caption) for image in images if not image.variation.varies]
    captions += [image.caption for image in held_out]
    captions += [""] if spec.training.caption_dropout else []
    captions += [spec.previews.negative, *spec.previews.prompts] if spec.previews.every else []
    return list(dict.fromkeys(captions))


def crop_notes(images: Sequence[DatasetImage], crops: Sequence[Crop]) -> list[str]:
    """What people would want to know about their images before they wait for the result."""
    notes = []
    enlarged = [(crop.enlargement, image.name) for image, crop in zip(images, crops) if crop.enlargement > 1.2]
    if enlarged:
        factor, name = max(enlarged)
        notes.append(clause(len(enlarged), "image", "are smaller than the training resolution and thus enlarged, "
                            f"{name} the most ({factor:.1f} times)", len(images)))
    cut = [(crop.kept, image.name) for image, crop in zip(images, crops) if crop.kept < 0.8]
    if cut:
        kept, name = min(cut)
        notes.append(clause(len(cut), "image", f"lose more than a fifth of the area to the crop, {name} the most "
                            f"({1 - kept:.0%})", len(images)))
    return notes


def mask_notes(spec: RunSpec) -> list[str]:
    """In a masked run, how many images have no mask."""
    images = spec.dataset.images
    without = [image for image in images if not image.mask]
    if not spec.objective.masked or not without:
        return []
    return [clause(len(without), "image", f"have no mask, so that all of it counts, {without[0].name} for example",
                   len(images))]


def held_out_notes(images: Sequence[DatasetImage], held_out: Sequence[DatasetImage]) -> list[str]:
    """Which images are not trained; people may want to exchange them."""
    if not held_out:
        return []
    names = ", ".join(image.name for image in held_out[:3]) + (", …" if len(held_out) > 3 else "")
    return [clause(len(held_out), "image", f"are held out for validation and not trained: {names}", len(images))]


def variation_notes(images: Sequence[DatasetImage]) -> list[str]:
    """Where captions have no tags that a shuffle or a dropout of tags could move or leave out."""
    wanted = [image for image in images if image.variation.shuffle or image.variation.tag_dropout]
    still = [image for image in wanted
             if len(image.variation.tags(image.caption)[1]) < (1 if image.variation.tag_dropout else 2)]
    if not still:
        return []
    variation = still[0].variation
    return [clause(len(still), "caption", "do not vary, as there are too few tags behind those kept in front "
                   f"({variation.keep_tags}), separated by {variation.separator!r}: that of {still[0].name} for example",
                   len(wanted))]


def unread_notes(family: Family, spec: RunSpec, distilled: bool) -> list[str]:
    """Settings that this base does not read."""
    notes = []
    if spec.training.guidance != 1 and not distilled:
        notes.append(f"training_guidance is not read: {spec.base.name} has no input for guidance, as models with distilled "
                     "guidance have, for example Flux.1 [dev]")
    if spec.training.clip_skip and not family.reads_clip_skip(spec.base):
        notes.append(f"clip_skip is not read: {family.title} has no CLIP, or reads what its last layer says of the whole "
                     "caption")
    if spec.training.text_length and not family.reads_text_length(spec.base):
        notes.append(f"text_length is not read: {spec.base.name} has no T5 text encoder, and others take captions as they "
                     "are")
    return notes


def tidy(spec: RunSpec, emit: Emit):
    """Remove what no run has used for long; what this one needs has just been marked as used."""
    files, size = clean_caches(Path(spec.folders.caches), spec.memory.cache_days)
    if files:
        emit(PhaseEvent(text=f"removed {counted(files, 'cache file')} ({size / 1e6:,.0f} MB) that no run has used for "
                             f"{counted(spec.memory.cache_days, 'day')}"))


def length_notes(family: Family, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], spec: RunSpec) -> list[str]:
    """Which captions are cut because they have more tokens than the text encoder takes, in their longest template. T5 takes
    any number, unless text_length cuts; language models take any."""
    length = spec.training.text_length if family.reads_text_length(spec.base) else 0
    counts = [(*family.token_count(tokenizers, image.variation.longest(image.caption)), image.name)
              for image in spec.dataset.images]
    if length:
        counts = [(count, length - 1, name) for count, _, name in counts]  # one is the end
    long = [each for each in counts if each[0] > each[1]]
    if not long:
        return []
    count, room, name = max(long)
    cut = length or family.cuts_captions(spec.base)
    fate = "the text encoder takes, and cut" if cut else "the model was made for, and read whole, as by ComfyUI"
    return [clause(len(long), "caption", f"are longer than the {room} tokens that {fate}, that of {name} the most ({count} "
                   "tokens)")]
