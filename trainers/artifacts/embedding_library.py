"""A library of embeddings: a JSON file that maps names to files, trigger words and bases.

    {"format": "embedding library", "version": 1,
     "embeddings": {"ember": {"file": "styles/ember.safetensors", "trigger": "ohwx", "base": "…", "vectors": 4}}}

Files are relative to the embeddings folders of whoever loads it, so a library can be shared together with its files.
"""
import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator

from ..errors import UserError, reason_of
from ..spec.part import Part, explain
from ..words import is_whole

LARGEST = 4_000_000
"""Bytes; about 20 000 entries."""
LONGEST = 200
"""Characters of what a file says about itself."""


def _can_be_called(name: str) -> str:
    if not re.fullmatch(r"[^\W_][^\x00-\x1f\x7f:\\/<>\"|?*]{0,99}", name):
        raise ValueError(f"{name[:100]!r} cannot be a name in prompts; begin with a letter or digit, use at most 100 "
                         "characters and none of : \\ / < > \" | ? *")
    return name


Name = Annotated[str, AfterValidator(_can_be_called)]


class Entry(Part):
    file: str = Field(min_length=1, max_length=300)
    trigger: str = Field(default="", max_length=LONGEST)
    base: str = Field(default="", max_length=LONGEST)
    vectors: int = Field(default=1, ge=1, le=75)

    @field_validator("file")
    @classmethod
    def _file_stays_in_its_folder(cls, file: str) -> str:
        windows, parts = PureWindowsPath(file), PurePosixPath(file.replace("\\", "/")).parts
        if (windows.drive or windows.root or file.startswith(("/", "~")) or ".." in parts or "\x00" in file
                or windows.suffix.lower() not in (".safetensors", ".pt", ".bin")):
            raise ValueError(f"{file!r} is no file inside the embeddings folder; write a relative path to a .safetensors, "
                             ".pt or .bin file")
        return file.replace("\\", "/")


class Library(Part):
    format: Literal["embedding library"] = "embedding library"
    version: Literal[1] = 1
    embeddings: dict[Name, Entry] = Field(min_length=1)

    def text(self) -> str:
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=False)

    @cached_property
    def _files(self) -> dict[str, str]:
        """Names → files; in small letters too, where no other entry is called so."""
        exact = {name: entry.file for name, entry in self.embeddings.items()}
        return {**{_small(name): file for name, file in exact.items()}, **exact}

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """Of the names that begin with a letter, the longest first."""
        lengths: dict[str, set[int]] = {}
        for name in self.embeddings:
            lengths.setdefault(_small(name[0]), set()).add(len(name))
        return {letter: sorted(each, reverse=True) for letter, each in lengths.items()}

    def fill(self, prompt: str, call: Callable[[str], str]) -> str:
        """The prompt with the names of entries, as whole words, replaced by `call(file)`; the longest name wins. What
        already reads `embedding:…` stays, and so does a place `{}`.

        Names are looked up at the beginnings of words: the time does not grow with the number of entries.
        """
        small, pieces, place = _small(prompt), [], 0
        while found := _BEGINNING.search(prompt, place):
            start = found.start()
            end, file = (found.end(), None) if found["kept"] else self._longest(prompt, small, start)
            pieces += [prompt[place:start], prompt[start:end] if file is None else call(file)]
            place = end
        return "".join([*pieces, prompt[place:]])

    def _longest(self, prompt: str, small: str, start: int) -> tuple[int, str | None]:
        """(end, file) of the longest name that stands at a place; (the next place, None) where there is none."""
        for length in self._lengths.get(small[start], ()):
            end = start + length
            file = self._files.get(prompt[start:end]) or self._files.get(small[start:end])
            if file and end <= len(prompt) and is_whole(prompt, start, end):
                return end, file
        return start + 1, None


_BEGINNING = re.compile(r"(?P<kept>embedding:\S+|\{\}\S*)|[^\W_]", re.IGNORECASE)


def _small(text: str) -> str:
    """In small letters, each of which stays one."""
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)


def read_library(path: Path) -> Library:
    """Raises UserError with what is wrong: unreadable, of another kind, or with names that leave the embeddings folder."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path.name} is no embedding library: it is larger than {LARGEST / 1e6:g} MB.")
        return Library.model_validate_json(path.read_bytes())
    except OSError as problem:
        raise UserError(f"The embedding library {path.name} cannot be read: {reason_of(problem)}.") from None
    except ValidationError as problem:
        raise UserError(f"{path.name} cannot be used as an embedding library. {explain(problem)}") from None
