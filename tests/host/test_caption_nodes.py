"""The caption nodes and the report inside ComfyUI: what caption_nodes.py found, in a process of its own."""

import pytest


@pytest.fixture(scope="module")
def results(found_by):
    return found_by("caption_nodes")


def test_editing_nodes_in_a_row(results):
    editing = results["editing"]
    assert editing["tags"] == ["film, a ohwx dog no. 0", "film, a ohwx dog no. 1", "ohwx, film"]
    assert editing["captions"] == ["film, a ohwx dog no. 0", "mine", "ohwx, film"] and editing["trigger"] == "ohwx"
    lines = ["0.png: film, a ohwx dog no. 0", "1.png: mine", "2.png: ohwx, film"]
    assert editing["text"] == "\n".join(lines) and editing["ui"]["captions"] == lines
    assert editing["ui"]["text"] == [editing["shown"]]
    assert "1.png: film, a ohwx dog no. 1 → mine" in editing["shown"] and "'other.png: lost' names no" in editing["shown"]
    assert editing["files"] == {"0.txt": "a dog 0", "1.txt": "a dog 1"}, "editing touches no file"
    assert "trigger is empty" in editing["refused"][0] and "missing ) at position 2" in editing["refused"][1]


def test_captions_are_written_once_and_taken_back_one_by_one(results):
    writing = results["writing"]
    assert writing["untouched"] and "would be written: 2" in writing["looked"]
    assert "a dog 0 → a dog dog 0" in writing["looked"]
    assert writing["once"] == {"0.txt": "a dog dog 0\n", "1.txt": "a dog dog 1\n"}
    assert "were written: 2" in writing["first"] and "Backup: mine/.caption_backups/" in writing["first"]
    assert writing["same"] and "2 captions were written by the same nodes before" in writing["again"]
    assert writing["goes on"] == ["a dog dog 0", "a dog dog 1", ""], "what is trained is what the files say"
    assert writing["twice"] == {"0.txt": "a a dog dog 0\n", "1.txt": "a a dog dog 1\n"}, "another edit is another write"
    assert "would be restored: 2" in writing["look"] and "were restored: 2" in writing["undone"]
    assert writing["after one undo"] and writing["after two"] and writing["a mark of its own"]
    assert writing["nothing left"].startswith("Nothing was written into the folder 'mine'")


def test_only_own_dataset_folders_are_written(results):
    refusals = results["refusals"]
    assert "came with the pack" in refusals["examples"]
    assert "is a link out of ComfyUI's folders" in refusals["linked"], "only the host's settings name folders outside"
    assert refusals["named"] == "nothing" and refusals["named caption"] == "ohwx, a dog 0\n", "the host's settings name it"
    mine, *others = refusals["places"]
    assert mine == "mine" and len(others) == 5 and all("is not in a folder of ComfyUI's input" in each for each in others)
    assert refusals["actions"][0].startswith("action is 'all'") and refusals["actions"][1].startswith("action is 'all'")
    assert "is not there" in refusals["actions"][2]


def test_folders_are_offered_and_read_as_far_as_they_are_the_hosts(results):
    found = results["folders"]
    assert found["choices"] == [f"input/{name}" for name in ("deep", "linked", "mine", "proj", "proj/reg", "two\nlines")]
    assert found["undo"] == ["input/proj"]
    assert found["project"] == ["img/10_ohwx/a.png"] and found["classes"] == ["1_dog/b.png"]
    assert found["linked"] == ["0.png", "a/b/c/1.png", "shared/a.png"] and set(found["captions"]) == {""}
    assert "Skipped 0.txt: it is a link that leads out of the dataset's folder" in found["report"]
    assert "folder private/: it is a link that leads out" in found["report"]
    assert "input/two\ufffdlines" in found["broken lines"] and len(found["broken lines"].splitlines()) == 2
    linked, *others = found["refused"]
    assert "is a link out of ComfyUI's folders" in linked and all("is not there" in each for each in others)


def test_the_report_is_a_batch_of_pages_and_a_text(results):
    report = results["report"]
    pages, height, width, channels = report["shape"]
    assert (pages, width, channels) == (2, 1536, 3) and report["dtype"] == "torch.float32" and report["range"] == [0.0, 1.0]
    assert report["saved"] == [[width, height]] * 2 and report["ui"] and report["pages with no sheets"] == 1
    assert report["same text with a base"]
    for words in ("- tiny: 3 images have", "- empty caption: 1 image has", "- missing trigger: 2 images have"):
        assert words in report["text"]
