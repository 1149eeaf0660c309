"""Folders as people have them: odd names of caption files, kohya's projects, links, names that nobody can read aloud."""
import json
import os
import unicodedata

import pytest
from finetune.trainers.data.captions import sidecars
from finetune.trainers.data.captions.caption_pairing import pair_captions
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.data.projects import class_folder
from finetune.trainers.data.sources import folder_state
from finetune.trainers.errors import UserError
from PIL import Image

NFD = "cafe\u0301"
BY_NAME = "read, repeats by name"


def image(path, color="red", size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def scan(root, subfolders="ignore", **fields):
    return scan_folder(str(root), "input/mine", subfolders=subfolders, **fields)


def captions(dataset) -> dict[str, str]:
    return {each.name: each.caption for each in dataset.images}


# ---- caption files -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, text", [
    ("a.jpg", "a.jpg.txt"), ("a.jpg", "A.TXT"), ("a.jpg", "A.Txt"), ("A.JPG", "a.txt"), ("a.jpg", "a.JPG.txt"),
    ("café.jpg", f"{NFD}.txt"), (f"{NFD}.jpg", "café.txt"), (f"{NFD}.jpg", "CAFÉ.jpg.txt"), ("a.jpg", "a.tags"),
    ("a.jpg", "A.caption"), ("a.b.jpg", "a.B.txt"),
])
def test_a_caption_file_that_clearly_means_an_image_is_read_and_named(tmp_path, name, text):
    image(tmp_path / name)
    (tmp_path / text).write_text("a cat", "utf-8")
    found = scan(tmp_path)
    assert captions(found) == {name: "a cat"}
    assert found.notes == (
        f"1 caption file is read, although the name is not that of an image with .txt or .caption: {text}",)


@pytest.mark.parametrize("names, texts, lost", [
    (["a.png"], ["b.txt", "readme.txt"], ["b.txt", "readme.txt"]), (["a.png"], ["a.txt", "A.txt"], ["A.txt"]),
    (["a.png"], ["a.txt", "a.png.txt"], ["a.png.txt"]), (["A.png", "a.jpg"], ["Á.txt"], ["Á.txt"]),
    (["Ab.png", "aB.png"], ["ab.txt"], ["ab.txt"]), (["a.png"], ["a.txt", "a.caption", "a.tags", "a.TXT"], []),
    (["a.png", "a.jpg"], ["a.txt"], []), (["a.png", "a.jpg"], ["A.TXT"], []), (["a.png", "A.png"], ["a.txt"], []),
    (["a.png", "a.jpg"], ["a.jpg.txt"], []), ([], ["a.txt"], ["a.txt"]), (["a.png.png", "a.png"], ["a.png.txt"], []),
    (["a.png", "A.png"], ["a.png.txt"], []),
])
def test_caption_files_that_belong_to_no_image(tmp_path, names, texts, lost):
    pairing = pair_captions([tmp_path / text for text in texts], [tmp_path / name for name in names])
    assert sorted(file.name for file in pairing.lost) == lost
    assert sorted({file.name for files in pairing.of.values() for file in files} | set(lost)) == sorted(texts)


def test_the_closest_name_counts(tmp_path):
    for name in ("a.png", "b.jpg", "b.png", "c.png"):
        image(tmp_path / name)
    for text in ("a.txt", "a.TXT", "A.txt", "a.png.txt", "b.jpg.txt", "B.TXT", "c.tags", "c.caption"):
        (tmp_path / text).write_text(text)
    found = scan(tmp_path)
    assert captions(found) == {"a.png": "a.txt", "b.jpg": "b.jpg.txt", "b.png": "B.TXT", "c.png": "c.caption"}
    assert any("2 caption files are not read" in note and "A.txt, a.png.txt" in note for note in found.notes)


def test_the_caption_of_an_image_that_cannot_be_read_is_not_lost(tmp_path):
    image(tmp_path / "a.png")
    for name in ("b.heic", "c.png"):
        (tmp_path / name).write_bytes(b"no image")
    for text in ("b.txt", "c.txt", "d.txt"):
        (tmp_path / text).write_text("text")
    lost = [note for note in scan(tmp_path).notes if "not read" in note]
    assert len(lost) == 1 and lost[0].endswith(": d.txt") and lost[0].startswith("1 caption file is not read")


def test_none_of_two_images_lists_two(tmp_path):
    for name in ("a.png", "b.jpg", "c.heic"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as problem:
        scan(tmp_path)
    assert str(problem.value) == (
        "None of the 2 images in 'input/mine' can be read: a.png: the image cannot be read (the file is empty); "
        "b.jpg: the image cannot be read (the file is empty).")
    for number in range(9):
        (tmp_path / f"d{number}.png").touch()
    with pytest.raises(UserError, match=r"None of the 11 images .*; and 8 more\.$"):
        scan(tmp_path)


# ---- projects of kohya's trainers ----------------------------------------------------------------------------------

@pytest.fixture(params=["reg", "regularization", "Regularization"])
def project(request, tmp_path):
    root = tmp_path / "proj"
    for name in ("img/10_ohwx cat/a.png", "img/5_ohwx/deep/b.png", f"{request.param}/1_cat/c.png", "model/sample/d.png",
                 "log/e.png"):
        image(root / name)
    (root / "img" / "10_ohwx cat" / "a.txt").write_text("ohwx cat on grass")
    return root, request.param


@pytest.mark.parametrize("subfolders, repeats", [("ignore", (10, 5)), (BY_NAME, (10, 5)), ("read", (1, 1))])
def test_a_project_is_its_images(project, subfolders, repeats):
    root, reg = project
    found = scan(root, subfolders)
    assert [(each.name, each.repeats) for each in found.images] == [
        ("img/10_ohwx cat/a.png", repeats[0]), ("img/5_ohwx/deep/b.png", repeats[1])]
    assert found.images[0].caption == "ohwx cat on grass"
    assert found.images[1].caption == ("" if subfolders == "read" else "ohwx")
    assert found.notes[0].startswith("the folder is a project of kohya's trainers: of it, img is read")
    assert f"choose proj/{reg} in another Load Image Dataset" in found.notes[1] and "class_images" in found.notes[1]
    assert class_folder(root) == reg
    classes = scan(root / reg, BY_NAME)
    assert [(each.name, each.caption) for each in classes.images] == [("1_cat/c.png", "cat")]
    state = folder_state(root, subfolders != "ignore")
    assert [path for path, _, _ in state] == [str(root / "img" / name) for name in (
        "10_ohwx cat/a.png", "10_ohwx cat/a.txt", "5_ohwx/deep/b.png")]


def test_regularization_images_beside_numbered_folders_are_not_trained(tmp_path):
    for name in ("10_ohwx/a.png", "reg/1_cat/b.png", "model/c.png"):
        image(tmp_path / name)
    found = scan(tmp_path, BY_NAME)
    assert [each.name for each in found.images] == ["10_ohwx/a.png", "model/c.png"]
    assert "reg holds regularization images" in found.notes[0] and class_folder(tmp_path) == "reg"


@pytest.mark.parametrize("names", [
    ("img/a.png", "log/b.png"), ("models/red.png", "sample/b.png"), ("reg/a.png", "cats/b.png"),
    ("img/10_x/a.png", "cats/b.png")])
def test_other_folders_are_no_project(tmp_path, names):
    for name in names:
        image(tmp_path / name)
    found = scan(tmp_path, "read")
    assert sorted(each.name for each in found.images) == sorted(names)
    assert not any("project" in note for note in found.notes)


def test_images_beside_a_project_stay_a_dataset_of_their_own(project):
    root, _ = project
    image(root / "cover.png")
    assert [each.name for each in scan(root).images] == ["cover.png"]
    found = scan(root, BY_NAME)
    assert len(found.images) == 2 and "1 image is not read, as img is beside it" in found.notes


def test_names_of_folders_count_at_any_depth(tmp_path):
    for name in ("a/b/1.png", "a/10_cat/2.png", "a/10_cat/sub/3.png", "a/10_cat/2_dog/4.png", "2024_05/5.png"):
        image(tmp_path / name)
    found = scan(tmp_path, BY_NAME)
    assert {each.name: (each.repeats, each.caption) for each in found.images} == {
        "2024_05/5.png": (2024, "05"), "a/10_cat/2.png": (10, "cat"), "a/10_cat/2_dog/4.png": (2, "dog"),
        "a/10_cat/sub/3.png": (10, "cat"), "a/b/1.png": (1, "")}
    assert "the folder 2024_05/ comes 2024 times in a round, as its name says; rename it if that is a date" in found.notes
    assert len(scan(tmp_path, "read").images) == 5


# ---- links ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def linked(tmp_path):
    """(dataset's folder, folder outside): every kind of file of the dataset leads out of it."""
    root, outside = tmp_path / "input" / "mine", tmp_path / "private"
    for name in ("a.png", "b.png", "sub/c.png"):
        image(root / name)
    for name in ("own.png", "b.png", "x/deep.png"):
        image(outside / name, "white")
    (outside / "secret.txt").write_text("a secret")
    (outside / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "a secret"}))
    for name, target in (("a.txt", "secret.txt"), ("d.png", "own.png"), ("b_mask.png", "b.png"), ("masks", "."),
                         ("folder", "x"), ("metadata.jsonl", "metadata.jsonl"), ("a.caption", "../../private/secret.txt")):
        (root / name).symlink_to(outside / target if not target.startswith("..") else target)
    return root, outside


def test_links_out_of_the_dataset_are_not_followed(linked):
    root, outside = linked
    found = scan(root, "read")
    assert captions(found) == {"a.png": "", "b.png": "", "sub/c.png": ""} and not any(each.mask for each in found.images)
    assert "secret" not in str(found).replace("secret.txt", "")
    for name in ("a.txt", "a.caption", "d.png", "b_mask.png", "metadata.jsonl"):
        assert f"skipped {name}: it is a link that leads out of the dataset's folder, and is not followed" in found.notes
    assert any("folder folder/: it is a link that leads out" in note for note in found.notes)
    assert any("folder masks: it is a link that leads out" in note for note in found.notes)
    assert not any(str(outside) in path or "folder" in path or "masks" in path for path, _, _ in folder_state(root, True))


def test_links_inside_the_dataset_are_followed(linked):
    root, _ = linked
    (root / "shared.txt").write_text("for all")
    (root / "b.txt").symlink_to("shared.txt")
    (root / "e.png").symlink_to(root / "sub" / "c.png")
    (root / "loop").symlink_to(".")
    (root / "gone").symlink_to("nowhere")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "self.txt").symlink_to("self.txt")
    found = scan(root, "read")
    assert captions(found)["b.png"] == "for all" and "e.png" in captions(found)
    assert any("folder loop/: it leads to one that is already read" in note for note in found.notes)
    for name in ("gone.txt", "self.txt"):
        assert f"skipped {name}: it is a link that leads nowhere" in found.notes


def test_linked_folders_are_followed_into_folders_of_the_host(linked):
    root, outside = linked
    (outside / "x" / "deep.txt").symlink_to(outside / "secret.txt")
    (outside / "x" / "near.png").symlink_to("deep.png")
    found = scan(root, "read", others=[outside])
    assert captions(found) == {"a.png": "", "b.png": "", "sub/c.png": "", "folder/deep.png": "", "folder/near.png": ""}
    assert any("skipped folder/deep.txt: it is a link that leads out" in note for note in found.notes)
    assert not scan(root, "read", others=[outside.with_name("privat")]).images[3:], "a prefix of a name is no parent"


def test_a_dataset_that_is_a_link_is_its_folder(linked, tmp_path):
    root, _ = linked
    (tmp_path / "link").symlink_to(root)
    (root / "b.txt").symlink_to(root / "real.txt")
    (root / "real.txt").write_text("real")
    assert captions(scan(tmp_path / "link", "read")) == {"a.png": "", "b.png": "real", "sub/c.png": ""}


def test_lines_of_metadata_that_point_out_are_compared_only(tmp_path):
    root = tmp_path / "mine"
    image(root / "a.png"), image(tmp_path / "b.png")
    names = ["../b.png", str(tmp_path / "b.png"), "a.png", "x/../../b.png"]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": name, "text": name}) for name in names))
    found = scan(root, "read")
    assert captions(found) == {"a.png": "a.png"}
    assert "captions of 3 images that are not in this dataset" in found.notes[0]


# ---- names ---------------------------------------------------------------------------------------------------------

def test_names_that_break_lines_are_shown_on_one(tmp_path):
    names = ["two\nlines", "tab\t", "turned\u202egnp", "nul", "con", "x" * 240, "bell\a", "a\u2028b"]
    for number, name in enumerate(names):
        image(tmp_path / "3_of\nall" / f"{name}.png", size=(16, 16 + number))
        (tmp_path / "3_of\nall" / f"{name}.jpg").touch()
    (tmp_path / "3_of\nall" / "lost\n.txt").write_text("x")
    found = scan_folder(str(tmp_path), "input/my\ncats", subfolders=BY_NAME, default_caption="a\nb")
    assert len(found.images) == len(names) and found.name == "input/my\ufffdcats"
    assert {each.caption for each in found.images} == {"of all"}
    for text in (*captions(found), *found.notes, found.name):
        assert all(sign.isprintable() for sign in text), text
    assert unicodedata.normalize("NFC", found.images[0].name) and all(os.path.exists(each.path) for each in found.images)


def test_write_captions_neither_reads_nor_writes_through_links(linked):
    root, outside = linked
    found = scan(root, trigger="ohwx")
    plan = sidecars.plan_write(found, [root])
    assert "secret" not in str(plan).replace("secret.txt", "")
    assert [change.file.name for change in plan.changes] == ["b.txt"]
    assert plan.notes == ("a.txt is a link that leads out of the dataset's folder: neither read nor written",)
    sidecars.write_sidecars(plan, [root])
    assert (outside / "secret.txt").read_text() == "a secret" and (root / "a.txt").is_symlink()
