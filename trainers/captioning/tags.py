"""Lists of tags, and how the tags that were found are written."""
import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..spec.captioning import TaggerSpec

CATEGORIES = {"0": "general", "4": "character", "9": "rating"}
"""Danbooru's numbers, as they stand in selected_tags.csv. Others (artists, copyrights) are no description."""
FACES = frozenset({
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^", "o_o",
    "u_u", "x_x", "|_|", "||_||",
})
"""Tags that are faces, whose underscores belong to them (list of the stable-diffusion-webui-wd14-tagger)."""


@dataclass(frozen=True)
class Tag:
    name: str
    category: str


def read_tags(folder: Path, name: str) -> list[Tag]:
    """The tags of a tagger in the order of its output. `selected_tags.csv` is SmilingWolf's (tag_id, name, category,
    count), `tags.txt` DeepDanbooru's, a tag a line, ratings as rating:…, with characters in `tags-character.txt`.

    Raises UserError when the list cannot be read.
    """
    table = folder / "selected_tags.csv"
    try:
        if table.is_file():
            with open(table, encoding="utf-8-sig", newline="") as file:
                tags = [Tag(row["name"], CATEGORIES.get(row["category"], "other")) for row in csv.DictReader(file)]
        else:
            tags = _plain_tags(folder)
    except (OSError, ValueError, KeyError, csv.Error):
        tags = []
    if not tags:
        raise UserError(f"The list of tags of {name!r} cannot be read: selected_tags.csv needs the columns name and "
                        "category, tags.txt a tag a line. Download it again.")
    return tags


def _plain_tags(folder: Path) -> list[Tag]:
    def lines(file: str) -> list[str]:
        path = folder / file
        return path.read_text(encoding="utf-8-sig").split() if path.is_file() else []

    characters = set(lines("tags-character.txt"))
    return [Tag(line, "rating" if line.startswith("rating:") else "character" if line in characters else "general")
            for line in lines("tags.txt")]


def tags_of(settings: TaggerSpec, finding: list) -> list[str]:
    """The tags of an image as its caption shall hold them; `finding` is a list of [tag, category, probability]."""
    thresholds = {"general": settings.general_threshold if settings.general else 2,
                  "character": settings.character_threshold if settings.characters else 2}
    excluded = {plain(tag) for tag in settings.exclude}
    found = [(name, category, probability) for name, category, probability in finding
             if probability >= thresholds.get(category, 2) and plain(name) not in excluded]
    found.sort(key=lambda each: -each[2])
    if settings.most:
        found = found[:settings.most]
    if settings.order == "characters first":
        found.sort(key=lambda each: each[1] != "character")
    elif settings.order == "alphabet":
        found.sort(key=lambda each: each[0])
    tags = [written(name, settings) for name, _, _ in found]
    ratings = [(probability, name) for name, category, probability in finding if category == "rating"]
    if settings.rating and ratings:
        tags.append(f"rating:{max(ratings)[1].removeprefix('rating:')}")
    return tags


def written(tag: str, settings: TaggerSpec) -> str:
    text = tag if settings.underscores or tag in FACES else tag.replace("_", " ")
    return text.replace("(", r"\(").replace(")", r"\)") if settings.escape else text


def plain(tag: str) -> str:
    """A tag as people may write it anywhere."""
    return tag.strip().lower().replace("_", " ").replace(r"\(", "(").replace(r"\)", ")")
