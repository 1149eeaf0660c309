"""Forty difficult files and more: each is used with the right pixels and caption, or named; none is fatal."""
from pathlib import Path

import numpy as np
import pytest
from finetune.trainers.data.images.image_files import read_image
from finetune.trainers.data.manifest import scan_folder
from support.zoo import make_zoo


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """(root, what must be kept, what must be named, the dataset)"""
    root = tmp_path_factory.mktemp("zoo")
    kept, named = make_zoo(root)
    dataset = scan_folder(str(root), "zoo", subfolders="read, repeats by name")
    return root, kept, named, dataset


def test_there_are_more_than_forty(zoo):
    _, kept, named, _ = zoo
    assert len(kept) + len(named) > 80


def test_what_is_used_has_its_size_its_color_and_its_caption(zoo):
    root, kept, _, dataset = zoo
    found = {str(Path(image.path).relative_to(root)): image for image in dataset.images}
    assert found.keys() == kept.keys()
    for name, expected in kept.items():
        image = found[name]
        assert image.size == expected.size and image.caption == expected.caption, name
        pixels = read_image(Path(image.path), image.background)
        assert pixels.mode == "RGB" and pixels.size == expected.size, name
        difference = np.abs(np.array(pixels.getpixel((0, 0))) - expected.color).max()
        assert difference <= expected.tolerance, (name, pixels.getpixel((0, 0)))


def test_what_is_not_used_is_named_with_its_reason(zoo, monkeypatch):
    root, kept, named, _ = zoo
    monkeypatch.setattr("finetune.trainers.data.manifest.MOST_SKIPPED", 1000)
    notes = scan_folder(str(root), "zoo", subfolders="read, repeats by name").notes
    for name, words in named.items():
        assert any(name in note and words in note for note in notes), (name, words, notes)
    text = "\n".join(notes)
    assert not any("\n" in note for note in notes)
    assert f"4 of {len(kept)} images have several frames or pages, of which only the first is used: moving.apng" in text
    assert f"2 of {len(kept)} images have a color profile that cannot be used" in text
    assert "1 caption file belongs to several images: both.txt" in text
    for silent in ("DS_Store", "._one", "Thumbs", "notes.md", "passwd.txt"):
        assert silent not in text


def test_repeats_follow_the_names_of_folders(zoo):
    _, _, _, dataset = zoo
    repeats = {image.name: image.repeats for image in dataset.images}
    assert repeats["10_ohwx cat/one.png"] == repeats["10_/one.png"] == 10 and repeats["one.png"] == 1
    masks = {image.name: Path(image.mask).parts[-2:] for image in dataset.images if image.mask}
    assert masks["10_ohwx cat/masks_too.png"] == ("masks", "masks_too.png")


def test_without_subfolders_only_the_folder_itself_is_read(zoo):
    root, kept, *_ = zoo
    dataset = scan_folder(str(root), "zoo")
    assert len(dataset.images) == sum("/" not in name for name in kept)
    assert "skipped directory.png: it is a folder" in dataset.notes
