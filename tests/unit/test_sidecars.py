"""Captions written beside images and taken back: what is on the disk, byte by byte."""
import json

import pytest
from finetune.trainers.data.captions import sidecars
from finetune.trainers.data.captions.caption_editing import place_trigger
from finetune.trainers.data.captions.sidecars import BACKUPS, last_write, plan_write, undo_last_write, write_sidecars
from finetune.trainers.data.captions.text_replacement import Replacement, replace_in_captions
from finetune.trainers.data.manifest import scan_folder
from finetune.trainers.errors import UserError
from PIL import Image
from support import tiny


@pytest.fixture
def folder(tmp_path):
    """Three images: a caption with odd bytes and line ends, one in a .caption file, and one without."""
    folder = tiny.make_images(tmp_path / "mine", 3)
    (folder / "square_0.txt").write_bytes(b"\xef\xbb\xbfa dog \xff\r\n with lines\r\n\r\n")
    (folder / "square_1.txt").rename(folder / "square_1.caption")
    (folder / "square_2.txt").unlink()
    return folder


def files(folder) -> dict:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and BACKUPS not in path.parts}


def read(folder):
    return scan_folder(str(folder), "mine")


def write(folder, dataset, only_missing=False, edits=""):
    plan = plan_write(dataset, [folder], only_missing, edits)
    return plan, write_sidecars(plan, [folder], edits)


def test_written_captions_are_read_back_and_undone_byte_by_byte(folder):
    before = files(folder)
    wanted = place_trigger(read(folder), "ohwx", "front")
    plan, [backup] = write(folder, wanted)
    assert [change.file.name for change in plan.changes] == ["square_0.txt", "square_1.caption", "square_2.txt"]
    assert [image.caption for image in read(folder).images] == [image.caption for image in wanted.images]
    assert (folder / "square_2.txt").read_bytes() == b"ohwx\n" and not (folder / "square_1.txt").exists()
    assert (backup / "square_0.txt").read_bytes() == before["square_0.txt"]
    undo = undo_last_write(folder)
    assert undo.restored == ("square_0.txt", "square_1.caption") and undo.removed == ("square_2.txt",)
    assert files(folder) == before
    assert not list(folder.rglob(".part-*"))
    with pytest.raises(UserError, match="Nothing was written into the folder 'mine'"):
        undo_last_write(folder)


def test_writes_are_taken_back_one_by_one(folder):
    states, dataset = [files(folder)], read(folder)
    for trigger in ("one", "two", "three"):
        dataset = place_trigger(dataset, trigger, "front")
        write(folder, dataset)
        states.append(files(folder))
    assert len(list((folder / BACKUPS).iterdir())) == 3 and last_write(folder).earlier == 2
    for state in reversed(states[:-1]):
        undo_last_write(folder)
        assert files(folder) == state
    write(folder, place_trigger(dataset, "four", "front"))
    undo_last_write(folder)
    assert files(folder) == states[0] and last_write(folder) is None


def test_files_changed_by_hand_since_are_named_and_kept(folder):
    write(folder, place_trigger(read(folder), "ohwx", "front"))
    (folder / "square_0.txt").write_text("better by hand")
    (folder / "square_2.txt").unlink()
    written = files(folder)
    with pytest.raises(UserError, match="in 'mine' 1 file was changed after the write of .*: square_0.txt"):
        undo_last_write(folder)
    assert files(folder) == written
    undo = undo_last_write(folder, keep_changed=True)
    assert undo.changed_since == ("square_0.txt",)
    assert (folder / "square_0.txt").read_text() == "better by hand"
    assert (folder / "square_1.caption").read_text() == "a square, number 1" and not (folder / "square_2.txt").exists()


def test_only_missing(folder):
    before = files(folder)
    plan, _ = write(folder, place_trigger(read(folder), "ohwx", "front"), only_missing=True)
    assert [change.file.name for change in plan.changes] == ["square_2.txt"] and plan.unchanged == 2
    after = files(folder)
    assert after.pop("square_2.txt") == b"ohwx\n" and after == before


def test_nothing_is_written_where_nothing_changed(folder):
    before = files(folder)
    plan, backups = write(folder, read(folder))
    assert plan.changes == () and backups == [] and files(folder) == before and not (folder / BACKUPS).exists()


def test_the_same_edits_are_not_made_twice(folder):
    """Queued again, the graph reads what it wrote and edits it once more: a dog → a dog and dog → …"""
    def edit(dataset):
        return replace_in_captions(dataset, Replacement("square", "square square"))

    write(folder, edit(read(folder)), edits="graph")
    once, first = files(folder), [image.caption for image in read(folder).images]
    plan, backups = write(folder, edit(read(folder)), edits="graph")
    assert backups == [] and files(folder) == once and "1 caption was written by the same nodes" in plan.notes[0]
    assert [image.caption for image in plan.dataset.images] == first, "what goes on is what the files say"
    # A new image is written; those from before stay, in this and in the next queue.
    Image.new("RGB", (64, 64)).save(folder / "square_3.png")
    (folder / "square_3.txt").write_text("a square")
    for changed in (1, 0):
        plan, _ = write(folder, edit(read(folder)), edits="graph")
        assert [change.new for change in plan.changes] == ["a square square"][:changed]
    # Other edits are other edits, and so are the same ones on a file that was changed by hand.
    assert len(plan_write(edit(read(folder)), [folder], edits="other").changes) == 2
    (folder / "square_1.caption").write_text("my square")
    assert [change.new for change in plan_write(edit(read(folder)), [folder], edits="graph").changes] == ["my square square"]


def test_after_an_undo_the_same_edits_are_made_again(folder):
    wanted = replace_in_captions(read(folder), Replacement("square", "box"))
    write(folder, wanted, edits="graph")
    undo_last_write(folder)
    assert len(write(folder, wanted, edits="graph")[0].changes) == 1


def test_images_that_share_a_caption_file(folder):
    Image.new("RGB", (64, 64)).save(folder / "square_1.jpg")
    dataset = read(folder)
    same = place_trigger(dataset, "ohwx", "front")
    assert [change.file.name for change in plan_write(same, [folder]).changes].count("square_1.caption") == 1
    other = same.model_copy(update={"images": tuple(
        image.model_copy(update={"caption": "other"}) if image.name == "square_1.jpg" else image
        for image in same.images)})
    plan = plan_write(other, [folder])
    assert [change.file.name for change in plan.changes] == ["square_0.txt", "square_2.txt"]
    assert plan.notes == ("square_1.jpg and square_1.png share the file square_1.caption and have different captions: not "
                          "written; rename one of the images",)


def test_a_write_that_was_cut_off_is_taken_back_like_any_other(folder, monkeypatch):
    before, replace, captions = files(folder), sidecars.os.replace, []

    def die_at_the_second(source, target):
        captions.extend([target] * (target.suffix in (".txt", ".caption")))
        if len(captions) == 2:
            raise AssertionError("the power went")
        replace(source, target)

    monkeypatch.setattr(sidecars.os, "replace", die_at_the_second)
    with pytest.raises(AssertionError, match="the power went"):
        write(folder, place_trigger(read(folder), "ohwx", "front"))
    monkeypatch.undo()
    assert files(folder) != before
    undo_last_write(folder)
    assert files(folder) == before


def test_a_journal_cannot_reach_outside_its_folder(folder, tmp_path):
    write(folder, place_trigger(read(folder), "ohwx", "front"))
    [journal] = (folder / BACKUPS).glob("*/journal.json")
    content = json.loads(journal.read_text())
    (tmp_path / "precious.txt").write_text("precious")
    content["files"].append({"file": "../precious.txt", "before": None, "text": "",
                             "after": sidecars.digest(tmp_path / "precious.txt")})
    journal.write_text(json.dumps(content))
    with pytest.raises(UserError, match="lies outside it"):
        undo_last_write(folder)
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_a_damaged_backup_stops_the_undo_before_it_begins(folder):
    _, [backup] = write(folder, place_trigger(read(folder), "ohwx", "front"))
    (backup / "square_1.caption").write_text("damaged")
    written = files(folder)
    with pytest.raises(UserError, match="square_1.caption is damaged or missing"):
        undo_last_write(folder)
    assert files(folder) == written


def test_subfolders_and_several_folders_have_backups_of_their_own(folder, tmp_path):
    tiny.make_images(folder / "sub", 1)
    other = tiny.make_images(tmp_path / "other", 1)
    before = files(folder), files(other)
    images = tuple(image for where in (folder, folder / "sub", other) for image in read(where).images)
    dataset = place_trigger(read(folder).model_copy(update={"images": images}), "ohwx", "front")
    plan = plan_write(dataset, [folder, other])
    assert len(plan.changes) == 5
    assert [backup.parent.parent for backup in write_sidecars(plan, [folder, other])] == [folder, other]
    assert (folder / "sub" / "square_0.txt").read_bytes() == b"ohwx, a square, number 0\n"
    assert undo_last_write(folder).restored == ("square_0.txt", "square_1.caption", "sub/square_0.txt")
    assert files(folder) == before[0] and files(other) != before[1]
    undo_last_write(other)
    assert files(other) == before[1]


def test_rights_of_a_file_stay_and_new_ones_are_ordinary(folder):
    (folder / "square_0.txt").chmod(0o640)
    (folder / "ordinary").touch()
    write(folder, place_trigger(read(folder), "ohwx", "front"))
    assert (folder / "square_0.txt").stat().st_mode & 0o777 == 0o640
    assert (folder / "square_2.txt").stat().st_mode == (folder / "ordinary").stat().st_mode
