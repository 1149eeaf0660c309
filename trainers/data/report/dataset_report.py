"""A dataset examined: what is in it, what is wrong with it, and what it would do for training."""
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...spec import DatasetSpec
from ...vocabulary import Tokenizer
from ...words import clause, counted
from ..combining import size_range
from ..images.buckets import Crop, bucket_sizes, fit
from .advice import advice
from .image_quality import (
    BLOCKY,
    COMPRESSED_QUALITY,
    CROPPED,
    ENLARGED,
    Finding,
    Measured,
    blurred,
    compressed,
    measure,
    odd_mode,
)
from .lint import CLIP_TOKENS, count, frequencies, lint
from .near_duplicates import similar_groups

THREADS = min(4, os.cpu_count() or 1)
"""Images decoded at once: a large one takes hundreds of megabytes."""
ASPECTS = ((0.4, "< 2:5"), (0.6, "1:2"), (0.72, "2:3"), (0.9, "3:4"), (1.12, "1:1"), (1.4, "4:3"), (1.65, "3:2"),
           (2.5, "2:1"), (float("inf"), "> 5:2"))
"""Up to which width over height an image is of which shape."""


@dataclass(frozen=True)
class Report:
    """`measured` and `crops` are in the order of the images; None for an image that cannot be read any more."""

    dataset: DatasetSpec
    trigger: str
    resolution: int
    measured: tuple[Measured | None, ...]
    crops: tuple[Crop, ...]
    findings: tuple[Finding, ...]
    frequencies: tuple[tuple[str, int], ...]

    @property
    def marks(self) -> dict[int, list[str]]:
        """Place of an image → what its findings are called on the contact sheet."""
        marks: dict[int, list[str]] = {}
        for finding in self.findings:
            for place in finding.images if finding.mark else ():
                marks.setdefault(place, []).append(finding.mark)
        return marks


def examine(dataset: DatasetSpec, resolution: int, tokenizer: Tokenizer, trigger: str = "", room: int = CLIP_TOKENS,
            on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
            multiple: int = 8, cut: bool = True) -> Report:
    """Measure all images and judge them and their captions, for training at `resolution`, a multiple of `multiple`.

    `trigger` is looked for where it is given, else the dataset's. `tokenizer`, `room` and `cut` are those of
    `lint`. Memory does not grow with the images: about 2 kB of each are kept.
    """
    images, measured = dataset.images, []
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for done, each in enumerate(pool.map(measure, (image.path for image in images)), start=1):
                measured.append(each)
                on_progress("looking at images", done, len(images))
        finally:
            pool.shutdown(cancel_futures=True)
    sizes = bucket_sizes(resolution, multiple=multiple)
    crops = tuple(fit(image.size, sizes) for image in images)
    trigger = trigger or dataset.trigger
    findings = [*copies(dataset, measured, lambda done, total: on_progress("comparing images", done, total)),
                *image_findings(measured, crops, resolution)]
    on_progress("checking captions", len(images), len(images))
    findings += lint(dataset, trigger, tokenizer, room, cut)
    return Report(dataset, trigger, resolution, tuple(measured), crops, tuple(findings),
                  tuple(frequencies([image.caption for image in images])))


# ---- findings on images ------------------------------------------------------------------------------------------

def copies(dataset: DatasetSpec, measured: Sequence[Measured | None],
           on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Finding]:
    """Files with the same content, and images that are the same to the eye."""
    images, by_digest = dataset.images, {}
    for place, image in enumerate(images):
        by_digest.setdefault(image.digest, []).append(place)
    same = [tuple(places) for places in by_digest.values() if len(places) > 1]
    firsts = [places[0] for places in by_digest.values()]
    alike = similar_groups([measured[place] and measured[place].fingerprint for place in firsts], on_progress)
    near = [tuple(firsts[place] for place in group) for group in alike]
    advice_for = "They count as often as they are there. Keep one, or use repeats."
    findings = []
    for kind, mark, groups, what in (("duplicates", "duplicate", same, "are in the dataset more than once"),
                                     ("near-duplicates", "near-duplicate", near, "look almost alike")):
        if groups:
            places = tuple(place for group in groups for place in group)
            text = f"{clause(len(places), 'image', what)}: {listed_groups(groups)}. {advice_for}"
            findings.append(Finding(kind, mark, text, places))
    return findings


def listed_groups(groups: Sequence[Sequence[int]], shown: int = 6) -> str:
    lines = [" = ".join(f"No. {place + 1}" for place in group[:8]) + (" = …" if len(group) > 8 else "") for group in groups]
    return "; ".join(lines[:shown]) + (f"; and {len(lines) - shown} more groups" if len(lines) > shown else "")


def image_findings(measured: Sequence[Measured | None], crops: Sequence[Crop], resolution: int) -> list[Finding]:
    """What is wrong with single images: kinds in the order of how much they harm."""
    known = [(place, each) for place, each in enumerate(measured) if each]
    found = [
        ("unreadable", "unreadable", tuple(place for place, each in enumerate(measured) if not each),
         "changed or went away since the folder was read. Queue again."),
        ("blurred", "blurred", blurred(measured),
         "no sharp edges, measured by the Laplacian at 512 pixels, by itself or beside the others. Blur is learned too."),
        ("tiny", "tiny", tuple(place for place, crop in enumerate(crops) if crop.enlargement > ENLARGED),
         f"to be enlarged for {resolution} pixels, up to {max(crop.enlargement for crop in crops):.1f} times, which teaches "
         "blur. Use larger originals or a lower resolution."),
        ("over-compressed", "compressed", tuple(place for place, each in known if compressed(each)),
         f"strong JPEG compression (quality below {COMPRESSED_QUALITY}, or steps at 8 × 8 blocks above {BLOCKY:g} times the "
         "others). Its blocks are learned too."),
        ("cropped", "cropped", tuple(place for place, crop in enumerate(crops) if crop.kept < CROPPED),
         f"more than {1 - CROPPED:.0%} cut away by the bucket, up to {1 - min(crop.kept for crop in crops):.0%}. Crop by "
         "hand what should stay."),
    ]
    findings = [Finding(kind, mark, f"{count(places)} {words}", places) for kind, mark, places, words in found if places]
    return findings + mode_findings(known)


MODES = {
    "16 bit": "more than 8 bits a channel: the finer steps are dropped.",
    "CMYK": "colors for printing (CMYK): they are converted and may look different. Save as RGB to be sure.",
    "LAB": "colors in Lab: they are converted. Save as RGB to be sure.",
    "animated": "several frames: only the first is trained.",
    "transparent": "transparent parts: a background color shows through, unless they are the mask.",
    "palette": "a palette of at most 256 colors: smooth areas may show bands.",
    "gray": "no color. Among colored images, say so in the caption.",
}


def mode_findings(known: Sequence[tuple[int, Measured]]) -> list[Finding]:
    """Unusual color modes. A dataset of nothing but gray images is one on purpose."""
    modes: dict[str, list[int]] = {}
    for place, each in known:
        if mode := odd_mode(each):
            modes.setdefault(mode, []).append(place)
    if len(modes.get("gray", [])) == len(known):
        modes.pop("gray", None)
    return [Finding("color mode", mode, f"{count(modes[mode])} {words}", tuple(modes[mode]))
            for mode, words in MODES.items() if mode in modes]


# ---- figures -------------------------------------------------------------------------------------------------------

def aspects(report: Report) -> list[tuple[str, int]]:
    """How many images have about which shape, from tall to wide."""
    counts = Counter(next(name for most, name in ASPECTS if image.size[0] / image.size[1] <= most)
                     for image in report.dataset.images)
    return [(name, counts[name]) for _, name in ASPECTS if counts[name]]


def buckets(report: Report) -> list[tuple[tuple[int, int], int, float]]:
    """(bucket, images in it, mean fraction of their area that is cut away), the fullest first."""
    lost: dict[tuple[int, int], list[float]] = {}
    for crop in report.crops:
        lost.setdefault(crop.bucket, []).append(1 - crop.kept)
    return sorted(((bucket, len(each), sum(each) / len(each)) for bucket, each in lost.items()), key=lambda row: -row[1])


def size_line(report: Report) -> str:
    images = report.dataset.images
    seen = sum(image.repeats for image in images)
    masks, captions = sum(bool(each.mask) for each in images), sum(bool(each.caption) for each in images)
    parts = [f"{counted(len(images), 'image')} of {size_range(images)}", f"{captions} with captions"]
    parts += [f"{seen} in a round with repeats"] if seen != len(images) else []
    parts += [f"{masks} with masks"] if masks else []
    return ", ".join(parts)


def advice_lines(report: Report) -> list[str]:
    return advice(len(report.dataset.images), sum(image.repeats for image in report.dataset.images))


def as_text(report: Report, shown: int = 30) -> str:
    """The whole report in words: findings with the names of their images, figures, tags, advice."""
    names = [image.name for image in report.dataset.images]
    lines = [f"{report.dataset.name}: {size_line(report)}.", ""]
    lines += [f"{counted(len(report.findings), 'finding')}:" if report.findings else "Nothing to complain about."]
    for finding in report.findings:
        lines.append(f"- {finding.kind}: {finding.text}")
        if finding.images:
            rest = len(finding.images) - shown
            lines.append("  " + ", ".join(f"{names[place]} (No. {place + 1})" for place in finding.images[:shown])
                         + (f" and {rest} more" if rest > 0 else ""))
    lines += [f"- note: {note}" for note in report.dataset.notes]
    lines += ["", "Shapes: " + ", ".join(f"{name} {number}" for name, number in aspects(report)),
              f"Buckets at {report.resolution}: " + ", ".join(
                  f"{width}×{height} {number} (cut {lost:.0%})"
                  for (width, height), number, lost in buckets(report)[:shown])]
    once = sum(number == 1 for _, number in report.frequencies)
    lines += ["Most frequent in captions: " + (", ".join(f"{tag} {number}" for tag, number in report.frequencies[:shown])
                                               or "nothing"),
              f"{len(report.frequencies)} different ones, {once} of them only once", "", "Advice:"]
    return "\n".join(lines + [f"- {line}" for line in advice_lines(report)])
