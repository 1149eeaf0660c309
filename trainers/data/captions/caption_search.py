"""Where the caption of an image comes from, and what people should know of it."""
from collections import Counter
from pathlib import Path

from ...words import clause, counted, listed, one_line, shown
from ..sources import Folder
from .caption_files import Metadata, comparable, read_caption_file, read_metadata

SHARED = "belong to several images"
EMPTY = "are empty, which counts as missing"


class CaptionSearch:
    """Finds the captions of a dataset's images, folder by folder from the top down.

    A `.txt` file beside the image goes before a `.caption` file, this before a line of the nearest `metadata.jsonl`, this
    before the name of an `N_name` folder, and all before the default caption. An empty caption counts as none.
    """

    def __init__(self, default: str):
        self.default = one_line(default)
        self.metadata: dict[str, Metadata] = {}
        self.named: set[tuple[str, str]] = set()
        """(folder, name) of the lines in metadata files whose images were found."""
        self.texts: dict[Path, str] = {}
        self.remarks: dict[str, list[str]] = {}
        """Remark → names of the caption files it is about."""
        self.sources: Counter[str] = Counter()
        self.inexact: list[str] = []
        self.lost: list[str] = []

    def enter(self, folder: Folder):
        """Get to know a folder before its images and the folders in it are asked for."""
        if folder.metadata:
            self.metadata[folder.name] = read_metadata(folder.metadata)
        self.inexact += [folder.name + file.name for file in folder.captions.inexact]
        self.lost += [folder.name + file.name for file in folder.captions.lost]

    def of(self, folder: Folder, image: Path) -> str:
        """The caption of an image of a folder, on one line, "" for none."""
        texts = [self._text(folder, file) for file in folder.captions.of.get(image.name, ())]
        found = {"file": next(filter(None, texts), ""), "metadata": self._described(folder, image),
                 "folder": one_line(folder.caption)}
        source = next((name for name, caption in found.items() if caption), "none")
        self.sources[source] += 1
        return found.get(source, self.default)

    def notes(self, count: int, trigger: str) -> list[str]:
        """What is to be known of the captions of `count` images."""
        notes = [clause(len(names), "caption file", f"{remark}: {listed(names)}")
                 for remark, names in self.remarks.items()]
        if self.inexact:
            notes.append(clause(len(self.inexact), "caption file", "are read, although the name is not that of an image "
                                f"with .txt or .caption: {listed(self.inexact)}"))
        if self.lost:
            notes.append(clause(len(self.lost), "caption file", "are not read, because no image has such a name, or "
                                f"it has another one: {listed(self.lost)}"))
        for above, metadata in self.metadata.items():
            notes += [f"{shown(above)}metadata.jsonl: {problem}" for problem in metadata.problems]
            lost = [name for name in metadata.captions if (above, name) not in self.named]
            if lost:
                notes.append(f"{shown(above)}metadata.jsonl has captions of {counted(len(lost), 'image')} that "
                             f"{'is' if len(lost) == 1 else 'are'} not in this dataset: {listed(lost)}")
        if self.sources["folder"]:
            notes.append(clause(
                self.sources["folder"], "image", "have no caption; the name of the folder is taken", count))
        if self.sources["none"]:
            instead = f"caption {self.default!r}" if self.default else "trigger word alone" if trigger else "empty caption"
            notes.append(clause(self.sources["none"], "image", f"have no caption file; the {instead} is taken", count))
        return notes

    def _described(self, folder: Folder, image: Path) -> str:
        """The caption in the nearest metadata file that knows the image."""
        parts = folder.name.split("/")[:-1]
        for depth in range(len(parts), -1, -1):
            above = "".join(f"{part}/" for part in parts[:depth])
            name = comparable((folder.name + image.name).removeprefix(above))
            if name in getattr(self.metadata.get(above), "captions", ()):
                self.named.add((above, name))
                return self.metadata[above].captions[name]
        return ""

    def _text(self, folder: Folder, file: Path) -> str:
        name = folder.name + file.name
        if file in self.texts:
            self._remark(SHARED, name)
            return self.texts[file]
        try:
            text, remarks = read_caption_file(file)
        except OSError as problem:
            text, remarks = "", (f"cannot be read ({problem.strerror})",)
        for remark in remarks or (() if text else (EMPTY,)):
            self._remark(remark, name)
        self.texts[file] = text
        return text

    def _remark(self, remark: str, name: str):
        names = self.remarks.setdefault(remark, [])
        if name not in names:
            names.append(name)
