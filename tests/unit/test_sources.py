"""Datasets from folders in folders, from tensors, from other datasets: captions, repeats, weights, sides."""
import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.data import image_store
from finetune.trainers.data.captions.caption_files import decode, read_caption_file, read_metadata
from finetune.trainers.data.combining import Concept, combine, divide, share_lines
from finetune.trainers.data.image_store import captions_of, store_dataset
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.sources import folder_state
from finetune.trainers.errors import UserError
from PIL import Image
from support import tiny


def image(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), color).save(path)
    return path


def dataset(name, count=2, trigger="", start=0, **fields):
    return specs.DatasetSpec(name=name, trigger=trigger, images=tuple(
        specs.DatasetImage(path="p", name=f"{number}.png", caption=trigger, size=(8, 8), digest=f"{start + number}",
                           **fields)
        for number in range(count)))


# ---- captions in files ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("data, text, noted", [
    ("naïve".encode(), "naïve", False), ("naïve".encode("utf-8-sig"), "naïve", False),
    ("naïve €".encode("cp1252"), "naïve €", True), ("猫".encode("utf-16"), "猫", False),
    ("cat".encode("utf-16-be"), "cat", False), (b"", "", False), (b"\0", "", True), (b"\xff", "ÿ", True),
    ("\ufeff猫".encode("utf-16-be"), "猫", False), (b"\x81", "\x81", True),
])
def test_bytes_become_text(data, text, noted):
    found, remarks = decode(data)
    assert found == text and bool(remarks) == noted


def test_a_cut_does_not_make_a_file_look_like_another_encoding(tmp_path):
    for shift in range(4):
        (tmp_path / "a.txt").write_bytes(b"x" * shift + "猫".encode() * 30_000)
        caption, remarks = read_caption_file(tmp_path / "a.txt")
        assert set(caption) <= {"x", "猫"} and len(caption) == 10_000 and len(remarks) == 1


def test_lines_of_metadata(tmp_path):
    file = tmp_path / "metadata.jsonl"
    lines = [{"file_name": "a.png", "text": "first"}, {"file_name": "a.png", "text": "later"},
             {"file_name": "b.png", "caption": "b", "prompt": "not this"}, {"file_name": "sub\\c.png", "prompt": "c"},
             {"file_name": "cafe\u0301.png", "text": "half \ud800 of a sign"}, {"file_name": "d.png"}]
    file.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    found = read_metadata(file)
    assert found.captions == {"a.png": "later", "b.png": "b", "sub/c.png": "c", "café.png": "half ? of a sign"}
    assert len(found.problems) == 1 and "1 line is passed over, line 6 for example" in found.problems[0]


GOOD = '{"file_name": "a.png", "text": "a cat"}'
ODD_METADATA = {
    "deep": (GOOD + "\n" + '{"file_name":' + "[" * 90_000, "1 line is passed over, line 2"),
    "wrong types": ("\n".join([GOOD, "[]", "null", "3", '"x"', '{"file_name": 3, "text": "b"}',
                               '{"file_name": "b.png", "text": ["c"]}', '{"file_name": null, "text": "b"}',
                               '{"file_name": "b.png", "text": 1e999}', "9" * 9000]), "9 lines are passed over, line 2"),
    "a line that ends late": (GOOD + "\n" + "x" * 3_000_000 + "\n" + GOOD.replace("a.png", "b.png"),
                              "line 2 is passed over: it is longer than 1000000 bytes"),
    "a name of a megabyte": (GOOD + '\n{"file_name": "' + "x" * 990_000 + '", "text": "b"}', ""),
}


@pytest.mark.parametrize("text, said", ODD_METADATA.values(), ids=ODD_METADATA)
def test_odd_lines_of_metadata_cost_no_more_than_themselves(text, said, tmp_path):
    (tmp_path / "metadata.jsonl").write_text(text, "utf-8")
    found = read_metadata(tmp_path / "metadata.jsonl")
    assert found.captions["a.png"] == "a cat" and ("b.png" in found.captions) == ("ends" in said or "longer" in said)
    assert said in " ".join(found.problems)


def test_metadata_of_gigabytes_is_read_to_a_limit(tmp_path):
    file = tmp_path / "metadata.jsonl"
    file.write_text(GOOD + "\n")
    os.truncate(file, 20_000_000_000)
    tracemalloc.start()
    found = read_metadata(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.captions == {"a.png": "a cat"} and peak < 20_000_000
    assert len(found.problems) == 2 and "line 2 is passed over" in found.problems[0] and "is too long" in found.problems[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_metadata_in_every_encoding(encoding, tmp_path):
    text = "" if encoding in ("utf-16-le", "utf-16-be") else "é"
    lines = [json.dumps({"file_name": name, "text": f"cat {text}".strip()}, ensure_ascii=False)
             for name in ("a.png", "b.png")]
    (tmp_path / "metadata.jsonl").write_bytes("\n".join(lines).encode(encoding))
    assert read_metadata(tmp_path / "metadata.jsonl").captions == dict.fromkeys(("a.png", "b.png"), f"cat {text}".strip())


def test_metadata_that_are_no_file(tmp_path):
    os.mkfifo(tmp_path / "metadata.jsonl")
    assert read_metadata(tmp_path / "metadata.jsonl").problems == ["cannot be read (it is no file)"]


# ---- folders -------------------------------------------------------------------------------------------------------

def test_precedence_of_captions(tmp_path):
    for name in ("text", "caption", "line", "near", "name", "empty"):
        image(tmp_path / "3_a_dog" / f"{name}.png", (name == "near" and "blue") or "red")
    image(tmp_path / "plain.png")
    folder = tmp_path / "3_a_dog"
    (folder / "text.txt").write_text("by text")
    (folder / "text.caption").write_text("never")
    (folder / "caption.caption").write_text("by caption")
    (folder / "empty.txt").touch()
    far = {"text": "never", "caption": "never", "line": "by line", "near": "never", "plain": "in the root"}
    (tmp_path / "metadata.jsonl").write_text("\n".join(
        json.dumps({"file_name": f"{'' if stem == 'plain' else '3_a_dog/'}{stem}.png", "text": text})
        for stem, text in far.items()))
    (folder / "metadata.jsonl").write_text('{"file_name": "near.png", "text": "by the near line"}')
    found = scan_folder(str(tmp_path), "data", "", 2, "default", subfolders="read, repeats by name")
    assert {each.name: (each.caption, each.repeats) for each in found.images} == {
        "3_a_dog/text.png": ("by text", 6), "3_a_dog/caption.png": ("by caption", 6), "3_a_dog/line.png": ("by line", 6),
        "3_a_dog/near.png": ("by the near line", 6), "3_a_dog/name.png": ("a_dog", 6), "3_a_dog/empty.png": ("a_dog", 6),
        "plain.png": ("in the root", 2)}
    assert "1 caption file is empty, which counts as missing: 3_a_dog/empty.txt" in found.notes
    assert "2 of 7 images have no caption; the name of the folder is taken" in found.notes
    assert "1 image lies in no folder with a name like 10_cat, which means 2 times" in found.notes
    names = {each.name: each for each in scan_folder(str(tmp_path), "data", subfolders="read").images}
    assert names["3_a_dog/name.png"].repeats == 1 and names["3_a_dog/name.png"].caption == ""
    root = scan_folder(str(tmp_path), "data")
    assert [each.name for each in root.images] == ["plain.png"]
    assert any("captions of 4 images that are not in this dataset" in note for note in root.notes)


def test_behind_an_empty_caption_file_the_next_one_counts(tmp_path):
    image(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "a.caption").write_text("a dog")
    assert scan_folder(str(tmp_path), "data", default_caption="never").images[0].caption == "a dog"


def test_too_many_repeats_are_cut_with_a_word(tmp_path):
    image(tmp_path / "9999_cat" / "a.png")
    found = scan_folder(str(tmp_path), "data", repeats=2, subfolders="read, repeats by name")
    assert found.images[0].repeats == 10_000 and "come 10000 times, which is the most" in "\n".join(found.notes)


def test_masks_belong_to_images_of_their_own_folder(tmp_path):
    for folder in ("", "one/", "two/"):
        image(tmp_path / f"{folder}a.png")
    image(tmp_path / "one" / "masks" / "a.png", "white")
    image(tmp_path / "two" / "a_mask.png", "white")
    found = {each.name: each.mask for each in scan_folder(str(tmp_path), "data", subfolders="read").images}
    assert found == {"a.png": "", "one/a.png": str(tmp_path / "one" / "masks" / "a.png"),
                     "two/a.png": str(tmp_path / "two" / "a_mask.png")}


def test_many_skipped_files_are_counted(tmp_path):
    image(tmp_path / "good.png")
    for number in range(30):
        (tmp_path / f"bad_{number:02}.png").write_bytes(b"bad")
    notes = scan_folder(str(tmp_path), "data").notes
    assert sum(note.startswith("skipped") for note in notes) == 20 and "10 more files are skipped for such reasons" in notes


def test_images_in_folders_alone_are_hinted_at(tmp_path):
    image(tmp_path / "sub" / "a.png")
    with pytest.raises(UserError, match="if they lie in folders inside it, set subfolders to read"):
        scan_folder(str(tmp_path), "data")


def test_the_background_is_that_of_transparent_images_only(tmp_path):
    image(tmp_path / "opaque.png")
    Image.new("RGBA", (16, 16), (255, 0, 0, 9)).save(tmp_path / "clear.png")
    found = scan_folder(str(tmp_path), "data", background="#102030")
    assert {each.name: each.background for each in found.images} == {"opaque.png": "#ffffff", "clear.png": "#102030"}


def test_the_state_of_a_folder_follows_every_file_that_counts(tmp_path):
    image(tmp_path / "sub" / "masks" / "a.png")
    image(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "metadata.jsonl").touch()
    (tmp_path / "nowhere.png").symlink_to("missing.png")
    states = [folder_state(tmp_path, True)]
    assert len(states[0]) == 3 and folder_state(tmp_path, False) == [] and folder_state(tmp_path, True) == states[0]
    for change in (lambda: (tmp_path / "sub" / "a.txt").write_text("a"), lambda: image(tmp_path / "sub" / "b.png"),
                   lambda: os.utime(tmp_path / "sub" / "masks" / "a.png", (1, 1)),
                   lambda: (tmp_path / "sub" / "metadata.jsonl").write_text("{}")):
        change()
        states.append(folder_state(tmp_path, True))
        assert states[-1] != states[-2]


# ---- tensors -------------------------------------------------------------------------------------------------------

def test_captions_are_one_for_all_or_one_each():
    assert captions_of("a cat\n", 3) == ["a cat"] * 3
    assert captions_of("a\n\nc", 3) == ["a", "", "c"] and captions_of("a\n\nb", 2) == ["a", "b"]
    assert captions_of("", 2) == ["", ""] and captions_of("a", 1) == ["a"]
    with pytest.raises(UserError, match="captions has 2 lines for 3 images"):
        captions_of("a\nb", 3)


def test_images_are_stored_once_and_keep_their_pixels(tmp_path):
    values = torch.arange(2 * 8 * 6 * 3).reshape(2, 8, 6, 3) / 287
    found = store_dataset(list(values), ["a", ""], [torch.ones(8, 6)], tmp_path, "set", "ohwx", 3)
    assert [(each.name, each.caption, each.size, each.repeats) for each in found.images] == [
        ("set 1.png", "ohwx, a", (6, 8), 3), ("set 2.png", "ohwx", (6, 8), 3)]
    for each, expected in zip(found.images, values):
        stored_values = np.asarray(Image.open(each.path), dtype=int)
        np.testing.assert_array_equal(stored_values, np.floor(expected.numpy().astype(np.float64) * 255 + 0.5))
        assert np.asarray(Image.open(each.mask)).min() == 255
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert len(files) == 3
    assert store_dataset(list(values), ["a", ""], [torch.ones(8, 6)], tmp_path, "set", "ohwx", 3) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == files
    damaged = next(iter(files))
    damaged.write_bytes(b"half")
    assert store_dataset(list(values), ["a", ""], [torch.ones(8, 6)], tmp_path, "set", "ohwx", 3) == found


def test_transparent_images_are_their_own_masks(tmp_path):
    image = torch.ones(8, 8, 4)
    image[:, :4, 3] = 0
    [only] = store_dataset([image], ["a"], [], tmp_path, "set").images
    assert only.mask == only.path and only.mask_digest == only.digest


@pytest.mark.parametrize("images, masks, words", [
    (torch.ones(3, 8, 8, 3), torch.ones(2, 8, 8), "2 masks for 3 images"),
    (torch.ones(1, 8, 8, 3), torch.ones(1, 8, 4), "has 4×8 pixels and the image 8×8"),
    (torch.ones(1, 8, 8, 2), (), "has 2 channels"),
])
def test_images_that_do_not_fit_are_refused(tmp_path, images, masks, words):
    with pytest.raises(UserError, match=words):
        store_dataset(list(images), [""] * len(images), list(masks), tmp_path, "set")


def test_odd_values_become_pixels():
    values = image_store.eight_bit(torch.tensor([[float("nan"), -3.0, 7.0, 0.5]]))
    assert values.tolist() == [[0, 0, 255, 128]]


# ---- other datasets ------------------------------------------------------------------------------------------------

def test_combination_multiplies_repeats_and_weights_and_tells_shares():
    cat, dog = dataset("cat", 2, "ohwx", repeats=2, weight=2.0), dataset("dog", 4, "ohwx", 10)
    parts = [Concept(cat, 3, 0.5), Concept(dog, 1, 0.5)]
    whole = combine(parts)
    assert [(each.name, each.repeats, each.weight) for each in whole.images] == [
        ("cat/0.png", 6, 1.0), ("cat/1.png", 6, 1.0), ("dog/0.png", 1, 0.5), ("dog/1.png", 1, 0.5), ("2.png", 1, 0.5),
        ("3.png", 1, 0.5)]
    assert whole.trigger == "ohwx" and whole.name == "cat + dog" and whole.notes == ()
    # 12 of 16 images; 12 · 1.0 of 12 · 1.0 + 4 · 0.5 = 14 of the loss
    assert share_lines(parts) == ["cat: 12 of 16 images of an epoch (75%), 86% of the loss",
                                  "dog: 4 of 16 images of an epoch (25%), 14% of the loss"]
    again = combine([Concept(whole), Concept(dataset("bird", 1, "ohwx", 99))])
    assert len(again.images) == 7 and again.images[0].name == "cat/0.png"


def test_copies_and_different_triggers_are_told():
    whole = combine([
        Concept(dataset("cat", 2, "ohwx")), Concept(dataset("dog", 3, "sks")), Concept(dataset("style", 1, "", 50))])
    assert whole.trigger == "" and {each.caption for each in whole.images} == {"ohwx", "sks", ""}
    notes = "\n".join(whole.notes)
    assert "different triggers ('ohwx', 'sks', none)" in notes
    assert "2 of 6 images are copies of others and count twice, dog/0.png of cat/0.png for example" in notes


def test_combinations_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="No dataset is connected"):
        combine([])
    with pytest.raises(UserError, match="would come 20000 times"):
        combine([Concept(dataset("cat", repeats=20), 1000)])
    with pytest.raises(UserError, match="would have the weight 400"):
        combine([Concept(dataset("cat", weight=20.0), 1, 20.0)])
    assert share_lines([Concept(dataset("cat"), 1, 0.0)])[-1] == "All weights are 0: nothing would be learned"


def test_division_is_stable_and_disjoint():
    trained, held_out = divide(dataset("cat", 200), 0.2)
    sides = {each.digest for each in trained.images}, {each.digest for each in held_out.images}
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 200 and 20 <= len(sides[1]) <= 60
    more_trained, more_held_out = divide(dataset("cat", 300), 0.2)
    assert sides[0] <= {each.digest for each in more_trained.images}
    assert sides[1] <= {each.digest for each in more_held_out.images}
    assert (trained.name, held_out.name) == ("cat (training)", "cat (held out)")
    with pytest.raises(UserError, match="a single image, or only copies of one"):
        divide(dataset("cat", 1), 0.2)


def test_a_folder_trains_as_the_sum_of_its_folders(tmp_path):
    """Two folders combined are the folder that holds both, but for names and notes."""
    tiny.make_images(tmp_path / "2_a", 2)
    tiny.make_images(tmp_path / "3_b", 3, (32, 64))
    whole = scan_folder(str(tmp_path), "whole", subfolders="read, repeats by name")
    parts = [Concept(scan_folder(str(tmp_path / name), name), repeats) for name, repeats in (("2_a", 2), ("3_b", 3))]
    sum_of = combine(parts)
    assert [each.model_copy(update={"name": ""}) for each in whole.images] == [
        each.model_copy(update={"name": ""}) for each in sum_of.images]
