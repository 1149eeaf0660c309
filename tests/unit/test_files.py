"""Files that appear whole, with the rights of any new file."""
import json
import os
import stat

import pytest
import torch
from finetune.trainers.data.captions import sidecars
from finetune.trainers.data.image_store import store_dataset
from finetune.trainers.errors import UserError
from finetune.trainers.files import place_copy, read_json, temporary_beside, write_json, write_tensors


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=(0o022, 0o002, 0o077))
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_new_files_have_the_rights_of_any_new_file(tmp_path, umask):
    (tmp_path / "usual").touch()
    usual = mode(tmp_path / "usual")
    write_json(tmp_path / "a.json", {"a": 1})
    with temporary_beside(tmp_path / "b.safetensors") as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".part-") and temporary.suffix == ".safetensors"
        temporary.write_bytes(b"b")
        os.replace(temporary, tmp_path / "b.safetensors")
    write_tensors(tmp_path / "c.safetensors", {"c": torch.zeros(1)})
    copy = place_copy(tmp_path / "b.safetensors", tmp_path / "loras", "mine")
    [image] = store_dataset([torch.zeros(8, 8, 3)], ["a"], [], tmp_path, "set").images
    files = [*(tmp_path / name for name in ("a.json", "b.safetensors", "c.safetensors", image.path)), copy]
    for path in files:
        assert oct(mode(path)) == oct(usual), path
    plan = sidecars.Plan((sidecars.Change(tmp_path / "c.txt", "c.png", None, "new"),), (), None, 0)
    [backup] = sidecars.write_sidecars(plan, [tmp_path])
    assert mode(tmp_path / "c.txt") == mode(backup / sidecars.JOURNAL) == usual


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError), temporary_beside(tmp_path / "a.json") as temporary:
        temporary.write_text("[2")
        raise ValueError
    assert read_json(tmp_path / "a.json") == [1] and [path.name for path in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UserError, match="The disk is full: a.json"), temporary_beside(tmp_path / "a.json"):
        raise OSError(28, os.strerror(28))
    assert json.loads((tmp_path / "a.json").read_text()) == [1]
