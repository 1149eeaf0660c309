"""Captions in files: one text file beside each image, or a `metadata.jsonl` for a folder (Hugging Face's imagefolder)."""
import codecs
import errno
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ...words import clause, one_line

METADATA_FILE = "metadata.jsonl"
CAPTION_FIELDS = ("text", "caption", "prompt")
"""Fields of a line of `metadata.jsonl` that hold the caption, the first that is there."""
LONGEST_CAPTION = 10_000
"""Characters. Text encoders read some 300."""
LONGEST_LINE, MOST_LINES, MOST_BYTES = 1_000_000, 2_000_000, 256_000_000
"""Bytes of a line, lines, and bytes of a `metadata.jsonl`: one of two million images has 200 MB."""
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

OTHER_ENCODING = "are not UTF-8, but read as Windows-1252; look whether the captions are right, and save them as UTF-8"
ZERO_BYTES = "hold zero bytes, as no text file does; these are left out"
TOO_LONG = f"hold more than {LONGEST_CAPTION} characters, of which the rest is left out"


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    """(text, remarks on how it was read). UTF-8 and UTF-16 by their marks, else UTF-8, else UTF-16 if every second byte of
    what looks like Western text is zero, else Windows-1252, of which any byte is a letter or another sign."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, errors="replace"), ()
    if encoding := _utf16(data):
        return data.decode(encoding), ()
    remarks = (ZERO_BYTES,) if 0 in data else ()
    data = data.replace(b"\0", b"")
    try:
        return data.decode("utf-8"), remarks
    except UnicodeDecodeError:
        # Latin-1 takes the five bytes that Windows-1252 leaves open.
        text = "".join(_windows_character(byte) for byte in data)
        return text, (*remarks, OTHER_ENCODING)


def _utf16(data: bytes) -> str | None:
    """The byte order of UTF-16 without a mark: every second byte of what looks like Western text is zero."""
    if len(data) > 1 and len(data) % 2 == 0:
        for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if not any(data[start::2]) and all(data[1 - start::2]):
                return encoding
    return None


def _windows_character(byte: int) -> str:
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


def read_caption_file(path: Path) -> tuple[str, tuple[str, ...]]:
    """(caption on one line, remarks on the file). Raises OSError for a file that cannot be read."""
    most = 4 * LONGEST_CAPTION  # bytes; no character of UTF-8 has more than four
    with open(path, "rb") as file:
        data = file.read(most + 1)
    cut = len(data) > most
    if cut:  # without the beginning of a character of UTF-8, which would make the file look like another encoding
        data = re.sub(rb"[\xc0-\xff][\x80-\xbf]{0,3}\Z", b"", data)
    text, remarks = decode(data)
    caption = one_line(text)
    if cut or len(caption) > LONGEST_CAPTION:
        caption, remarks = caption[:LONGEST_CAPTION].rstrip(), (*remarks, TOO_LONG)
    return caption, remarks


@dataclass
class Metadata:
    """The captions of a `metadata.jsonl`, by file name relative to its folder, and what is wrong with it."""

    captions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_metadata(path: Path) -> Metadata:
    """Lines like {"file_name": "cat.png", "text": "a cat"}. Of two lines for one image, the later counts. The names are
    only ever compared with those of images that were found, so it does not matter where they point to."""
    found, broken = Metadata(), []
    try:
        for number, line in enumerate(_lines(path, found.problems), start=1):
            if line.strip() and not _take(line, found.captions):
                broken.append(number)
    except OSError as problem:
        found.problems.append(f"cannot be read ({problem.strerror})")
    if broken:
        found.problems.append(clause(len(broken), "line", f"are passed over, line {broken[0]} for example: a line must look "
                                     'like {"file_name": "cat.png", "text": "a cat"}'))
    return found


def _take(line: str, captions: dict[str, str]) -> bool:
    """Add what a line says; False when it says nothing that can be read."""
    try:
        entry = json.loads(line)
        name = entry["file_name"]
        caption = next((entry[each] for each in CAPTION_FIELDS if entry.get(each) is not None), None)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    if not isinstance(name, str) or not isinstance(caption, str):
        return False
    captions[comparable(name)] = one_line(caption)[:LONGEST_CAPTION].rstrip()
    return True


def _lines(path: Path, problems: list[str]) -> Iterator[str]:
    """The lines of a text file in UTF-8, UTF-16 or Windows-1252, one in memory at a time; a line that is too long is empty.
    What was odd comes to `problems` at the end. Raises OSError."""
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")
    remarks: dict[str, None] = {}
    with open(path, "rb") as file:
        start = file.read(4096)
        file.seek(0)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or _utf16(start[:len(start) // 2 * 2]):
            yield from decode(file.read(MOST_BYTES))[0].split("\n")
        else:
            number = 0
            while number < MOST_LINES and file.tell() < MOST_BYTES and (data := file.readline(LONGEST_LINE)):
                number += 1
                if len(data) == LONGEST_LINE and not data.endswith(b"\n"):
                    _skip_line(file)
                    remarks[f"line {number} is passed over: it is longer than {LONGEST_LINE} bytes"] = None
                    data = b""
                line, found = decode(data)
                remarks |= dict.fromkeys(found)
                yield line
        if file.read(1):
            remarks[f"is too long and was read to its {file.tell() - 1}th byte"] = None
    problems += list(remarks)[:3]


def _skip_line(file: BinaryIO):
    """Read on to the end of a line, or to the limit of the file."""
    while file.tell() < MOST_BYTES and (data := file.readline(LONGEST_LINE)) and not data.endswith(b"\n"):
        pass


def comparable(name: str) -> str:
    """A relative file name as it is looked up: macOS writes accents as signs of their own."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name.replace("\\", "/"))))
