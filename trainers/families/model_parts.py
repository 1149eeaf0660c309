"""The components of a base model: which file or folder holds each, under which prefix, and what is in it."""
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..artifacts.tensor_files import Entry, finite
from ..artifacts.tensor_header import data_start, read_header
from ..artifacts.weights import Weights
from ..errors import UserError
from ..files import write_json
from ..spec import BaseModelSpec, ComponentSpec
from ..spec.base_model import PredictionType
from .weight_files import weight_files

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
"""Components that are words and no weights."""
AT_ONCE = 1 << 24
"""Bytes that are read at once for a hash."""


@dataclass(frozen=True)
class ModelPart:
    """One component. `title` is what people call the model, for sentences."""

    name: str
    path: Path
    prefix: str
    title: str

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def files(self) -> list[Path]:
        """The files its weights, or a tokenizer's words, are read from. Raises UserError when there are none, or a shard is
        missing."""
        if self.name in TOKENIZERS:
            return sorted(file for file in self.path.iterdir() if file.suffix in (".json", ".txt", ".model"))
        return weight_files(self.path.parent, self.path.name, self.title).files if self.is_folder else [self.path]

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Its tensors by their names without the prefix, scales worked in, converted to `dtype` while they are read.
        Raises UserError where a value is not finite."""
        found = {}
        for file, entry in self._stored():
            found[entry.name.removeprefix(self.prefix)] = finite(entry, file).tensor(dtype)
        return found

    def entries(self) -> dict[str, Entry]:
        """The same, each read when it is asked for."""
        return {entry.name.removeprefix(self.prefix): entry for _, entry in self._stored()}

    def _stored(self) -> Iterator[tuple[str, Entry]]:
        """(name of the file, entry) of every tensor."""
        for file in self.files:
            weights = Weights.of_file(file)
            yield from ((weights.title, entry) for name, entry in weights.entries.items() if name.startswith(self.prefix))

    def fingerprint(self, memory: Path) -> str:
        """SHA-256 over names, types, shapes and bytes of its tensors, wherever they lie: the same component in another
        checkpoint has the same. Gigabytes are read once: `memory` is a folder that remembers it for paths, sizes and times
        of the files, in a hundred bytes each."""
        files = self.files
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        known = memory / f"{_sha256(json.dumps([stats, self.prefix]).encode())[:40]}.json"
        with suppress(OSError, ValueError, TypeError):
            return str(json.loads(known.read_text(encoding="utf-8"))["sha256"])
        found = self._content_hash(files)
        memory.mkdir(parents=True, exist_ok=True)
        write_json(known, {"sha256": found})
        return found

    def _content_hash(self, files: list[Path]) -> str:
        if self.name in TOKENIZERS:
            return _sha256(b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files))
        where = {name.removeprefix(self.prefix): (file, data_start(file), facts) for file in files
                 for name, facts in read_header(file)[0].items() if name.startswith(self.prefix)}
        total = hashlib.sha256()
        for name in sorted(where):
            file, start, facts = where[name]
            begin, end = facts["data_offsets"]
            total.update(json.dumps([name, facts["dtype"], facts["shape"]]).encode())
            with open(file, "rb") as stream:
                stream.seek(start + begin)
                left = end - begin
                while left and (piece := stream.read(min(AT_ONCE, left))):
                    total.update(piece)
                    left -= len(piece)
        return total.hexdigest()


@dataclass(frozen=True)
class ModelSource:
    """What somebody chose as a base: a checkpoint, a diffusers folder, or a denoiser with `others`, the files that hold its
    text encoders and its VAE. `configs` is a folder of component configs, or empty."""

    path: Path
    name: str
    configs: str = ""
    others: tuple[Path, ...] = ()

    @property
    def layout(self) -> Literal["single_file", "diffusers", "separate_files"]:
        return "diffusers" if self.path.is_dir() else "separate_files" if self.others else "single_file"


@dataclass(frozen=True)
class Recognized:
    """What a family found in a `ModelSource` of its own. `files` is everything that is read, for the fingerprint."""

    prediction_type: PredictionType
    components: tuple[ComponentSpec, ...]
    files: tuple[Path, ...]
    zero_terminal_snr: bool = False
    storage: str = ""


@dataclass(frozen=True)
class ModelParts:
    """All components of a base that are loaded, by name."""

    title: str
    parts: Mapping[str, ModelPart]

    @classmethod
    def of(cls, base: BaseModelSpec) -> "ModelParts":
        return cls(base.name, {each.name: ModelPart(each.name, Path(each.path), each.prefix, base.name)
                               for each in base.components})

    def __getitem__(self, name: str) -> ModelPart:
        """Raises UserError when the model has no such component."""
        if name not in self.parts:
            raise UserError(f"{self.title!r} holds no {name.replace('_', ' ')}. Choose the base model again.")
        return self.parts[name]

    def __contains__(self, name: str) -> bool:
        return name in self.parts


def in_folder(folder: Path, names: Iterable[str]) -> tuple[ComponentSpec, ...]:
    """The components of a diffusers folder, tokenizers among them where they are there."""
    tokenizers = (name for name in TOKENIZERS if (folder / name).is_dir())
    return tuple(ComponentSpec(name=name, path=str(folder / name)) for name in (*names, *tokenizers))


def in_file(path: Path, prefixes: Mapping[str, str]) -> tuple[ComponentSpec, ...]:
    """The components of a single file, by name → prefix."""
    return tuple(ComponentSpec(name=name, path=str(path), prefix=prefix) for name, prefix in prefixes.items())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
