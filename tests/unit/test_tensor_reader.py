"""The one reader of foreign safetensors files: numbers that are none, and headers that lie."""
import os

import pytest
import torch
from finetune.trainers.artifacts.changes import shape_of
from finetune.trainers.artifacts.tensor_files import require_finite, require_room
from finetune.trainers.errors import UserError
from finetune.trainers.stacking.inspection import change_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_with_file_and_tensor(dtype, bad):
    tensor = torch.ones(3, 5)
    tensor[1, 2] = bad
    with pytest.raises(UserError, match="up.weight holds values that are not numbers in 'cat.safetensors'"):
        require_finite(tensor.to(dtype), "up.weight", "cat.safetensors")


@pytest.mark.parametrize("tensor", [
    torch.zeros(0), torch.tensor(2.5), torch.full((4,), 65504.0, dtype=torch.float16), torch.arange(3),
    torch.tensor([3e38, -3e38]), torch.ones(2, dtype=torch.float8_e4m3fn), torch.tensor([True])])
def test_finite_values_pass_as_they_are(tensor):
    assert require_finite(tensor, "a", "b") is tensor


def test_a_file_that_is_larger_than_the_memory_is_not_read_at_once(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match="'huge.safetensors' has 1099.5 GB, and only 16.0 GB of memory are free"):
        require_room(path, 16_000_000_000)
    require_room(path, 2**40)


UP, DOWN, MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


@pytest.mark.parametrize("shapes", [
    {UP: (1 << 20, 1), DOWN: (1, 1 << 20)}, {"hada_w1_a": (1 << 15, 1), "hada_w1_b": (1, 1 << 15), "hada_w2_a": (1 << 15, 1),
                                             "hada_w2_b": (1, 1 << 15)},
    {"lokr_w1": (1 << 15, 1), "lokr_w2": (1, 1 << 15)},
    {UP: (1 << 12, 1, 1, 1), DOWN: (1, 1 << 12, 1, 1), MID: (1, 1, 99, 99)},
    {UP: (4, 2)}, {DOWN: (2, 4)}, {UP: (4, 2), DOWN: (3, 4)}, {UP: (), DOWN: (2, 4)}, {UP: (4, 2), DOWN: (2,)},
    {UP: (4, 2, 1, 1), DOWN: (2, 4, 3, 3), MID: (2, 2, 3, 3)}, {"hada_w1_a": (4, 2)}, {"lokr_w1": (2, 2)}])
def test_factors_that_make_no_change_that_a_model_could_have(shapes):
    assert shape_of(shapes) is None


def test_the_largest_layers_of_models_are_in_reach():
    assert shape_of({UP: (32128, 64), DOWN: (64, 8192)}) == (32128, 8192)


@pytest.mark.parametrize("parts, norm", [
    ({"diff": (4, 4)}, 4.0), ({UP: (4, 2), DOWN: (2, 4)}, 8.0),
    ({"hada_w1_a": (4, 1), "hada_w1_b": (1, 4), "hada_w2_a": (4, 1), "hada_w2_b": (1, 4)}, 4.0),
    ({UP: (4, 1, 1, 1), DOWN: (1, 4, 1, 1), MID: (1, 1, 2, 2)}, 8.0)])
def test_a_layer_of_two_kinds_counts_as_the_first(parts, norm):
    """Whatever else lies beside it, whole or not."""
    tensors = {part: torch.ones(shape) for part, shape in parts.items()}
    rest = {"lokr_w1": torch.ones(2, 2), "lokr_w2_a": torch.ones(2, 1)}
    assert change_norm(tensors) == change_norm({**tensors, **rest}) == pytest.approx(norm)
