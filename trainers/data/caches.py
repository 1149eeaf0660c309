"""Tensors on disk, one small file each, so that memory does not grow with the dataset and a second run encodes nothing.

Keys are hashes of everything that determines the content. Files appear whole or not at all, so an interrupted run and
two runs at once do no harm.
"""
import hashlib
import json
import os
from pathlib import Path
from typing import Mapping

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import temporary_beside


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

    def put(self, key: str, tensors: Mapping[str, Tensor]):
        path = self.path(key)
        path.parent.mkdir(exist_ok=True)
        with temporary_beside(path) as temporary:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
            os.replace(temporary, path)

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors, on the CPU. Raises KeyError when they are not there or damaged; damaged files are removed."""
        try:
            return load_file(self.path(key))
        except FileNotFoundError:
            raise KeyError(key) from None
        except (SafetensorError, OSError):
            self.path(key).unlink(missing_ok=True)
            raise KeyError(key) from None
