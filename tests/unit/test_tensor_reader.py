"""The one reader of foreign safetensors files: numbers that are none, and headers that lie."""
import pytest
import torch
from finetune.trainers.artifacts.tensor_files import require_finite
from finetune.trainers.errors import UserError


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
