"""Tensors on disk, one small file each, so that memory does not grow with the dataset and a second run encodes nothing.

Keys are hashes of everything that determines the content. Files appear whole or not at all, so an interrupted run and
two runs at once do no harm. A run marks the files that it needs as used; those that none has used for long are removed.
"""
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import UNFINISHED, write_tensors

LATENTS, CAPTIONS, MASKS = KINDS = ("latents", "captions", "masks")
"""Folders of tensor caches in the folder of caches."""
DAY = 24 * 60 * 60
"""Seconds. No file takes longer to write: older unfinished ones are those of killed runs."""


class TensorCache:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def key(*content) -> str:
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:40]

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self.path(key).exists()

    def use(self, keys: Iterable[str]) -> set[str]:
        """Mark entries as used now; returns the keys of those that are there. A run does this once, at its start."""
        there = set()
        with self._lock():
            for key in dict.fromkeys(keys):
                try:
                    os.utime(self.path(key))
                except FileNotFoundError:
                    continue
                except PermissionError:  # somebody else's, in a folder that people share
                    pass
                there.add(key)
        return there

    def put(self, key: str, tensors: Mapping[str, Tensor]):
        path = self.path(key)
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, {name: tensor.contiguous().cpu() for name, tensor in tensors.items()})

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors, on the CPU. Raises KeyError when they are not there or damaged; damaged files are removed."""
        try:
            tensors = load_file(self.path(key))
            self._keep(self.path(key))
            return tensors
        except FileNotFoundError:
            raise KeyError(key) from None
        except (SafetensorError, OSError):
            self.path(key).unlink(missing_ok=True)
            raise KeyError(key) from None

    def _keep(self, path: Path):
        """Mark an entry again in the course of a run that lasts for days."""
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY / 2:
                os.utime(path)

    def clean(self, days: float) -> tuple[int, int]:
        """Remove entries that no run has used for `days` days, and unfinished files older than a day. Returns how many files
        and how many bytes. Nothing else in the folder is touched."""
        files = size = 0
        with self._lock():  # an entry is either marked before, and then it is young, or found missing and made again
            for path in self.folder.glob("*/*.safetensors"):
                unfinished = path.name.startswith(UNFINISHED)
                if not unfinished and not re.fullmatch(r"[0-9a-f]{40}", path.stem):
                    continue
                with suppress(OSError):  # another process was faster, or holds it open (Windows)
                    state = path.stat()
                    if time.time() - state.st_mtime > (DAY if unfinished else days * DAY):
                        path.unlink()
                        files, size = files + 1, size + state.st_size
        return files, size

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")


def clean_caches(caches: Path, days: float) -> tuple[int, int]:
    """Clean all tensor caches in the folder of caches; class images and whatever else lies there stay. Returns how many
    files were removed, and their bytes."""
    cleaned = [TensorCache(caches / kind).clean(days) for kind in KINDS if (caches / kind).is_dir()]
    return sum(files for files, _ in cleaned), sum(size for _, size in cleaned)
