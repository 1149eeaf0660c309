"""What an extracted LoRA keeps of a change, as an image and as a table."""
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..reports import ExtractedLayer, ExtractionReport
from .fonts import Color, font_and_text

FILE = "report.png"
WIDTH, MARGIN, ROW, SCALE = 960, 24, 22, 2
"""Pixels; drawn SCALE times larger and then reduced, for smooth lines."""
BAR_LEFT, BAR_RIGHT, FIGURES = 150, 560, 580
RANKS = 150
"""Height of the plot of ranks."""
INK, FAINT, GRID = (40, 40, 40), (130, 130, 130), (228, 228, 228)
KEPT, LOST, RANK = (31, 98, 189), (240, 190, 160), (20, 130, 100)
BITS = {"fp32": 32, "fp16": 16, "bf16": 16}
ORDER = ("BASE", "IN", "MID", "OUT")
"""Then blocks of transformers, whose names are in the order of the data flow, and EXTRA."""


def blocks_of(rows: Sequence[ExtractedLayer], precision: str) -> dict[str, dict]:
    """Block → its fraction of the whole change, how much of that the file keeps, and the smallest and largest rank."""
    whole, found = sum(row.energy for row in rows), {}
    for row in rows:
        block = found.setdefault(row.block, {"layers": 0, "energy": 0.0, "kept": 0.0, "ranks": []})
        block["layers"] += 1
        block["energy"] += row.energy
        block["kept"] += row.energy * row.kept[precision]
        block["ranks"].append(row.rank)
    return {name: {"layers": block["layers"], "fraction": block["energy"] / whole, "kept": block["kept"] / block["energy"],
                   "ranks": (min(block["ranks"]), max(block["ranks"]))} for name, block in sorted(found.items(), key=_order)}


def _order(item: tuple[str, dict]) -> tuple:
    """Text encoders, then the denoiser in the order of the data flow."""
    name = item[0]
    place = next((place for place, start in enumerate(ORDER) if name.startswith(start)), len(ORDER) + (name == "EXTRA"))
    digits = "".join(letter for letter in name if letter.isdigit())
    return place, name.rstrip("0123456789"), int(digits or 0)


def sizes(report: ExtractionReport) -> dict[str, float]:
    """Megabytes that the factors take in each precision."""
    stored = sum(row.bytes for row in report.rows) / BITS[report.precision]
    return {precision: stored * bits / 1e6 for precision, bits in BITS.items()}


def residual(kept: float) -> float:
    """‖change - LoRA‖ / ‖change‖."""
    return max(0.0, 1 - kept) ** 0.5


def spread(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[-1] else f"{ranks[0]} to {ranks[-1]}"


def table(report: ExtractionReport) -> str:
    """Tab-free columns for people: blocks, then precisions."""
    lines = [f"{'block':<18}{'layers':>7}{'rank':>10}{'of change':>11}{'kept':>9}{'residual':>10}"]
    for name, block in blocks_of(report.rows, report.precision).items():
        lines.append(f"{name:<18}{block['layers']:>7}{spread(block['ranks']):>10}{block['fraction']:>11.1%}{block['kept']:>9.2%}"
                     f"{residual(block['kept']):>10.2%}")
    lines += ["", f"{'precision':<18}{'MB':>7}{'':>21}{'kept':>9}{'residual':>10}"]
    for precision, size in sizes(report).items():
        kept = report.kept[precision]
        lines.append(f"{precision:<18}{size:>7.2f}{'':>21}{kept:>9.3%}{residual(kept):>10.3%}")
    return "\n".join(lines)


def draw(report: ExtractionReport) -> Image.Image:
    """The report of `extraction.extract` on one page: blocks, precisions, and the rank of every layer."""
    blocks = blocks_of(report.rows, report.precision)
    height = 110 + ROW * len(blocks) + 130 + RANKS + 60
    page = _Page(height)
    kept = report.kept[report.precision]
    page.text(MARGIN, 26, _short(f"{report.tuned} minus {report.base}", 80), size=18)
    page.text(MARGIN, 52, f"{report.layers} layers, rank {spread(sorted(row.rank for row in report.rows))}, "
              f"{report.bytes / 1e6:.2f} MB in {report.precision}: keeps {kept:.2%} of the change's energy, residual "
              f"{residual(kept):.1%} of its length", FAINT)
    top = 92
    for x, words, anchor in ((MARGIN, "block", "lm"), (BAR_LEFT, "kept energy", "lm"), (FIGURES + 70, "kept", "rm"),
                             (FIGURES + 150, "residual", "rm"), (FIGURES + 240, "rank", "rm"),
                             (FIGURES + 350, "of the change", "rm")):
        page.text(x, top - 16, words, FAINT, anchor)
    for number, (name, block) in enumerate(blocks.items()):
        y = top + ROW * number + ROW / 2
        page.text(MARGIN, y, _short(name, 16))
        split = BAR_LEFT + (BAR_RIGHT - BAR_LEFT) * max(0.0, min(1.0, block["kept"]))
        page.box(BAR_LEFT, y - 6, BAR_RIGHT, y + 6, LOST)
        page.box(BAR_LEFT, y - 6, split, y + 6, KEPT)
        for x, words in ((70, f"{block['kept']:.2%}"), (150, f"{residual(block['kept']):.1%}"),
                         (240, spread(block["ranks"])), (350, f"{block['fraction']:.1%}")):
            page.text(FIGURES + x, y, words, INK, "rm")
    _precisions(page, top + ROW * len(blocks) + 36, report)
    _ranks(page, height - RANKS - 40, [row.rank for row in report.rows])
    return page.finish()


def _precisions(page: "_Page", top: float, report: ExtractionReport):
    page.text(MARGIN, top, "the same factors in", FAINT)
    for number, (precision, size) in enumerate(sizes(report).items()):
        x, kept = MARGIN + 190 + 245 * number, report.kept[precision]
        chosen = precision == report.precision
        page.text(x, top, f"{precision}{' (this file)' if chosen else ''}", KEPT if chosen else INK)
        page.text(x, top + 22, f"{size:.2f} MB", INK)
        page.text(x, top + 44, f"kept {kept:.3%}, residual {residual(kept):.2%}", INK)


def _ranks(page: "_Page", top: float, ranks: Sequence[int]):
    """One bar a layer, in the file's order."""
    page.text(MARGIN, top - 18, "rank of every layer, in the file's order", FAINT)
    left, right, highest = MARGIN + 40, WIDTH - MARGIN, max(ranks)
    for value in sorted({0, highest // 2, highest}):
        y = top + RANKS * (1 - value / highest)
        page.box(left, y, right, y + 0.5, GRID)
        page.text(left - 8, y, str(value), FAINT, "rm")
    width = (right - left) / len(ranks)
    for number, rank in enumerate(ranks):
        page.box(left + width * number, top + RANKS * (1 - rank / highest),
                 left + width * (number + 1) - min(1.0, width / 4), top + RANKS, RANK)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most - 3] + "..."


class _Page:
    def __init__(self, height: int):
        self.height = height
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, color: Color = INK, anchor: str = "lm", size: int = 14):
        font, words = font_and_text(words, size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), words, color, font, anchor=anchor)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color):
        self.draw.rectangle([left * SCALE, top * SCALE, max(left, right) * SCALE, bottom * SCALE], color)

    def finish(self) -> Image.Image:
        return self.image.resize((WIDTH, self.height), Image.Resampling.LANCZOS)
