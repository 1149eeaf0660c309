"""The report of a dataset as images of one size: a page of figures and findings, then contact sheets with captions."""
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from ..data.images.image_files import read_image
from ..data.report.dataset_report import Report, advice_lines, aspects, buckets, size_line
from ..data.report.lint import cut_at, shortened
from ..errors import UserError
from ..vocabulary import Tokenizer
from ..words import counted
from .contact_sheets import spread
from .fonts import Color, Font, fitted, font_and_text

WIDTH, MARGIN, GAP = 1536, 32, 12
"""Pixels."""
MIDDLE = 640
"""Where the right column of the first page begins."""
COLUMNS = ((12, 4), (30, 6), (10**9, 8))
"""Up to how many images stand in how many columns."""
PER_PAGE = 64
SMALL, NORMAL, LARGE, TITLE = 14, 17, 20, 30
CAPTION_LINES = 3
INK, GRAY, FAINT, PAPER = (40, 40, 40), (120, 120, 120), (236, 238, 241), "white"
BLUE, ORANGE, RED = (31, 98, 189), (222, 120, 30), (196, 43, 43)
SHOWN_BARS, SHOWN_FINDINGS = 12, 14


def draw_pages(report: Report, most_sheets: int = 4, tokenizer: "Tokenizer | None" = None,
               room: int = 75) -> list[Image.Image]:
    """RGB pages of the same size: figures first, then up to `most_sheets` contact sheets of PER_PAGE images. Where not all
    images fit, those with findings are shown, and others evenly spread over the dataset.

    With `tokenizer`, what the text encoder does not see of a caption is drawn in red.
    """
    places = chosen(report, most_sheets * PER_PAGE)
    columns = next(columns for most, columns in COLUMNS if len(places) <= most)
    sheets = [places[start:start + PER_PAGE] for start in range(0, len(places), PER_PAGE)]
    rows = -(-min(PER_PAGE, len(places)) // columns)
    first = _figures(report)
    cell = _Cell((WIDTH - 2 * MARGIN + GAP) // columns - GAP, tokenizer, room)
    height = max(first.used, 2 * MARGIN + LARGE + rows * (cell.height + GAP)) if sheets else first.used
    pages = [first.finish(height)]
    for number, sheet in enumerate(sheets, start=1):
        page = _Page(height)
        page.text(MARGIN, MARGIN, f"{report.dataset.name}: sheet {number} of {len(sheets)}" + (
            f", {len(places)} of {len(report.crops)} images" if len(places) < len(report.crops) else ""), LARGE)
        for count, place in enumerate(sheet):
            cell.draw(page, report, place, MARGIN + count % columns * (cell.side + GAP),
                      2 * MARGIN + LARGE + count // columns * (cell.height + GAP))
        pages.append(page.finish(height))
    return pages


def chosen(report: Report, most: int) -> list[int]:
    """Places of the images that are shown, in their order."""
    marked, everything = sorted(report.marks), range(len(report.dataset.images))
    if len(everything) <= most:
        return list(everything)
    marked = spread(marked, most) if most > 1 else marked[:most]
    others = [place for place in everything if place not in set(report.marks)]
    return sorted([*marked, *(spread(others, most - len(marked)) if most - len(marked) > 1 else [])])


# ---- the first page ------------------------------------------------------------------------------------------------

def _figures(report: Report) -> "_Page":
    page = _Page(3000)
    page.text(MARGIN, MARGIN, report.dataset.name, TITLE, width=WIDTH - 2 * MARGIN)
    page.text(MARGIN, MARGIN + 44, size_line(report), LARGE, GRAY)
    top = MARGIN + 100
    left = _bars(page, top, "Shapes, width to height", [(name, number, str(number)) for name, number in aspects(report)])
    rows = buckets(report)
    left = _bars(page, left + 20, f"Buckets for {report.resolution} pixels, and the mean fraction that is cut away", [
        (f"{width} × {height}", number, f"{number}   cut {lost:.0%}") for (width, height), number, lost in rows])
    left = _bars(page, left + 20, "In so many captions", [
        (tag, number, str(number)) for tag, number in report.frequencies])
    right = _findings(page, top, report)
    page.text(MIDDLE, right + 20, "Advice by the number of images", LARGE)
    right += 56
    for line in advice_lines(report):
        right = page.paragraph(MIDDLE, right, line, NORMAL, WIDTH - MARGIN) + 8
    page.used = max(left, right) + MARGIN
    return page


def _bars(page: "_Page", top: int, title: str, rows: Sequence[tuple[str, int, str]]) -> int:
    """Horizontal bars with their names and figures. Returns where they end."""
    page.text(MARGIN, top, title, LARGE)
    top += 36
    longest = max((number for _, number, _ in rows), default=1)
    for name, number, figure in rows[:SHOWN_BARS]:
        page.text(MARGIN, top, name, NORMAL, width=180)
        page.box(MARGIN + 190, top + 3, MARGIN + 190 + max(2, 250 * number // longest), top + 19, BLUE)
        page.text(MARGIN + 200 + 250 * number // longest, top, figure, NORMAL, GRAY)
        top += 26
    if len(rows) > SHOWN_BARS:
        page.text(MARGIN, top, f"and {len(rows) - SHOWN_BARS} more", NORMAL, GRAY)
        top += 26
    return top


def _findings(page: "_Page", top: int, report: Report) -> int:
    lines = [(finding.kind, finding.text) for finding in report.findings]
    lines += [("note", f"{note}.") for note in report.dataset.notes]
    count = len(report.findings)
    page.text(MIDDLE, top, counted(count, "finding") if count else "Nothing to complain about", LARGE)
    top += 40
    for kind, text in lines[:SHOWN_FINDINGS]:
        page.box(MIDDLE, top + 3, MIDDLE + 5, top + 20, GRAY if kind == "note" else ORANGE)
        page.text(MIDDLE + 16, top, kind, NORMAL, GRAY if kind == "note" else ORANGE)
        top = page.paragraph(MIDDLE + 16, top + 23, text, NORMAL, WIDTH - MARGIN, most=4) + 10
    if len(lines) > SHOWN_FINDINGS:
        page.text(MIDDLE, top, f"and {len(lines) - SHOWN_FINDINGS} more, in the text", NORMAL, GRAY)
        top += 30
    return top


# ---- contact sheets ------------------------------------------------------------------------------------------------

class _Cell:
    """An image with its number and marks, its file name and its caption."""

    def __init__(self, side: int, tokenizer: "Tokenizer | None", room: int):
        self.side, self.tokenizer, self.room = side, tokenizer, room
        self.height = side + 26 + CAPTION_LINES * (SMALL + 5)

    def draw(self, page: "_Page", report: Report, place: int, left: int, top: int):
        image, marks = report.dataset.images[place], report.marks.get(place, [])
        page.box(left, top, left + self.side - 1, top + self.side - 1, FAINT)
        small = self._read(image.path, report.crops[place].original)
        if small:
            page.image.paste(small, (left + (self.side - small.width) // 2, top + (self.side - small.height) // 2))
        page.label(left, top, str(place + 1), INK)
        bottom = top + self.side
        for mark in reversed(marks):
            bottom -= SMALL + 9
            page.label(left, bottom, mark, RED if mark in ("unreadable", "no trigger", "trigger split") else ORANGE)
        if marks:
            page.draw.rectangle([left, top, left + self.side - 1, top + self.side - 1], outline=ORANGE, width=3)
        top += self.side + 4
        page.text(left, top, image.name, SMALL, GRAY, width=self.side)
        lost = cut_at(image.caption, self.tokenizer, self.room) if self.tokenizer else ""
        seen = " ".join(image.caption.split())
        seen = seen[:len(seen) - len(lost)].rstrip() if lost else seen
        # Of a caption that is cut, the place of the cut is worth more than its middle.
        seen = shortened(seen, 40) if lost else seen
        lines = page.paragraph(left, top + 20, seen or "(no caption)", SMALL, left + self.side,
                               INK if seen else RED, 2 if lost else CAPTION_LINES)
        if lost:
            page.paragraph(left, lines, f"cut: {lost}", SMALL, left + self.side, RED, 1)

    def _read(self, path: str, size: tuple[int, int]) -> Image.Image | None:
        try:
            image = read_image(Path(path))
        except (UserError, OSError):
            return None
        scale = self.side / max(size)
        if scale > 1:
            smoothly = max(size) > 128
            return image.resize([max(1, round(length * scale)) for length in image.size],
                                Image.Resampling.BICUBIC if smoothly else Image.Resampling.NEAREST)
        image.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return image


class _Page:
    def __init__(self, height: int):
        self.image = Image.new("RGB", (WIDTH, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.used = height

    def text(self, x: int, y: int, text: str, size: int, color: Color = INK, width: int = 0):
        """One line from its upper left corner, cut with an ellipsis where it is wider than `width`."""
        font, text = font_and_text(text, size)
        self.draw.text((x, y), fitted(self.draw, text, font, width) if width else text, color, font)

    def paragraph(self, x: int, y: int, text: str, size: int, right: int, color: Color = INK, most: int = 99) -> int:
        """Lines between `x` and `right`, `most` of them; returns where the next line would begin."""
        font, text = font_and_text(text, size)
        for line in wrapped(self.draw, text, font, right - x, most):
            self.draw.text((x, y), line, color, font)
            y += size + 5
        return y

    def box(self, left: int, top: int, right: int, bottom: int, color: Color):
        self.draw.rectangle([left, top, right, bottom], color)

    def label(self, left: int, top: int, text: str, color: Color):
        font, text = font_and_text(text, SMALL)
        self.box(left, top, left + round(self.draw.textlength(text, font)) + 9, top + SMALL + 7, color)
        self.draw.text((left + 5, top + 2), text, PAPER, font)

    def finish(self, height: int) -> Image.Image:
        return self.image.crop((0, 0, WIDTH, height))


def wrapped(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int, most: int) -> list[str]:
    """Text as lines of at most `width` pixels, broken between words, or within what is longer than a line. What does not
    fit into `most` lines is left out behind an ellipsis."""
    lines, line, words = [], "", text[:2000].split()
    while words and len(lines) < most:
        longer = f"{line} {words[0]}".strip()
        if draw.textlength(longer, font) <= width:
            line = longer
            words.pop(0)
        elif line:
            lines.append(line)
            line = ""
        else:
            head = fitted(draw, words[0], font, width, "")
            lines.append(head)
            words[0] = words[0][max(1, len(head)):]
    if line and len(lines) < most:
        lines.append(line)
    if words and lines:
        lines[-1] = fitted(draw, f"{lines[-1]} {words[0]}…", font, width)
    return lines
