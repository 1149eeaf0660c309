"""A library of embeddings: a JSON file that maps names to files, trigger words and bases.

    {"format": "embedding library", "version": 1,
     "embeddings": {"ember": {"file": "styles/ember.safetensors", "trigger": "ohwx", "base": "…", "vectors": 4}}}

Files are relative to the embeddings folders of whoever loads it, so a library can be shared together with its files.
"""
import json
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Callable, Literal

from pydantic import Field, ValidationError, field_validator

from ..errors import UserError
from ..spec.part import Part, explain

LARGEST = 4_000_000
"""Bytes; about 20 000 entries."""
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\W_][^\x00-\x1f\x7f:\\/<>\"|?*]*$")]


class Entry(Part):
    file: str = Field(min_length=1, max_length=300)
    trigger: str = Field("", max_length=200)
    base: str = Field("", max_length=200)
    vectors: int = Field(1, ge=1, le=75)

    @field_validator("file")
    @classmethod
    def _file_stays_in_its_folder(cls, file):
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

    def fill(self, prompt: str, call: Callable[[str], str]) -> str:
        """The prompt with the names of entries, as whole words, replaced by `call(file)`; the longest name wins. What
        already reads `embedding:…` stays."""
        names = sorted(self.embeddings, key=len, reverse=True)
        files = {name.lower(): self.embeddings[name].file for name in names}
        whole = (rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names)
        pattern = re.compile("|".join([r"embedding:\S+", *whole]), re.IGNORECASE)
        return pattern.sub(lambda found: call(files[found[0].lower()]) if found[0].lower() in files else found[0], prompt)


def read_library(path: Path) -> Library:
    """Raises UserError with what is wrong: unreadable, of another kind, or with names that leave the embeddings folder."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path.name} is no embedding library: it is larger than {LARGEST / 1e6:g} MB.")
    try:
        return Library.model_validate_json(path.read_bytes())
    except ValidationError as problem:
        raise UserError(f"{path.name} cannot be used as an embedding library. {explain(problem)}") from None
