"""Sums of LoRA files are the sums of what they change, whatever their makers called the factors."""
import itertools
import json

import pytest
import torch
from finetune.trainers.artifacts.lora_file import read_lora
from finetune.trainers.errors import UserError
from finetune.trainers.tools.merging import Resize, change_of, merge
from safetensors.torch import save_file

OUT, IN = 12, 10
SEEDS = itertools.count(1)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(next(SEEDS)))


def kohya(key, rank=3, alpha=1.5, kernel=()):
    down, up = random(rank, IN, *kernel), random(OUT, rank, *[1] * len(kernel))
    change = alpha / rank * (up.flatten(1) @ down.flatten(1)).reshape(OUT, IN, *kernel)
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}, change


def loha(key, rank=2, alpha=1.0):
    a, b, c, d = random(OUT, rank), random(rank, IN), random(OUT, rank), random(rank, IN)
    tensors = {f"{key}.hada_w1_a": a, f"{key}.hada_w1_b": b, f"{key}.hada_w2_a": c, f"{key}.hada_w2_b": d,
               f"{key}.alpha": torch.tensor(alpha)}
    return tensors, torch.stack([alpha / rank * sum(a[o, r] * b[r] for r in range(rank))
                                 * sum(c[o, r] * d[r] for r in range(rank)) for o in range(OUT)])


def lokr(key, rank=2, alpha=1.0):
    small, a, b = random(3, 2), random(OUT // 3, rank), random(rank, IN // 2)
    tensors = {f"{key}.lokr_w1": small, f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b, f"{key}.alpha": torch.tensor(alpha)}
    large = alpha / rank * a @ b
    return tensors, torch.cat([torch.cat([small[i, j] * large for j in range(2)], dim=1) for i in range(3)])


def written(folder, name, tensors, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors", metadata)
    return read_lora(folder / f"{name}.safetensors")


def test_joined_factors_are_the_sum(tmp_path):
    one, first = kohya("lora_unet_a", rank=3)
    two, second = kohya("lora_unet_a", rank=5, alpha=4.0)
    only, third = kohya("lora_te_b", rank=2, kernel=(3, 3))
    files = [written(tmp_path, "one", one), written(tmp_path, "two", {**two, **only})]
    merged = {weight.key: weight for weight, _ in merge(files, [0.7, -1.2], [0.7, 0.5])}
    assert len(merged["lora_unet_a"].down) == 8 and len(merged["lora_te_b"].down) == 2
    torch.testing.assert_close(change_of(merged["lora_unet_a"]), 0.7 * first - 1.2 * second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(change_of(merged["lora_te_b"]), 0.5 * third, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [loha, lokr])
def test_products_are_merged_by_what_they_change(make, tmp_path):
    one, first = kohya("lora_unet_a")
    two, second = make("lora_unet_a")
    merged, _energy = next(merge([written(tmp_path, "one", one), written(tmp_path, "two", two)], [1.0, 0.5]))
    torch.testing.assert_close(change_of(merged), first + 0.5 * second, rtol=1e-4, atol=1e-4)


def test_a_smaller_rank_is_the_best_of_its_rank(tmp_path):
    (one, first), (two, second) = kohya("lora_unet_a", rank=4), kohya("lora_unet_a", rank=4)
    files = [written(tmp_path, "one", one), written(tmp_path, "two", two)]
    merged, _energy = next(merge(files, [1.0, 1.0], resize=Resize("fixed", rank=3)))
    left, values, right = torch.linalg.svd(first + second)
    best = left[:, :3] * values[:3] @ right[:3]
    torch.testing.assert_close(change_of(merged), best, rtol=1e-4, atol=1e-4)
    assert len(merged.down) == 3


@pytest.mark.parametrize("down, up, alpha", [
    (".lora_A.weight", ".lora_B.weight", False), (".lora.down.weight", ".lora.up.weight", False),
    ("_lora.down.weight", "_lora.up.weight", True), (".lora_A.default.weight", ".lora_B.default.weight", True),
])
def test_factors_by_other_names(down, up, alpha, tmp_path):
    tensors, change = kohya("x", rank=3, alpha=1.5 if alpha else 3.0)
    renamed = {f"unet.x{down}": tensors["x.lora_down.weight"], f"unet.x{up}": tensors["x.lora_up.weight"],
               **({"unet.x.alpha": tensors["x.alpha"]} if alpha else {})}
    layer = written(tmp_path, "other", renamed).layers["unet.x"]
    torch.testing.assert_close(layer.change(), change)


def test_alpha_that_is_only_in_the_metadata(tmp_path):
    """diffusers 0.35 writes peft's configuration into the header, and no alpha tensors."""
    tensors, change = kohya("x", rank=3, alpha=1.5)
    renamed = {"unet.x.lora_A.weight": tensors["x.lora_down.weight"], "unet.x.lora_B.weight": tensors["x.lora_up.weight"]}
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 3, "unet.lora_alpha": 1.5, "unet.alpha_pattern": {}})}
    torch.testing.assert_close(written(tmp_path, "peft", renamed, metadata).layers["unet.x"].change(), change)


def test_what_cannot_be_merged_says_why(tmp_path):
    one, _ = kohya("lora_unet_a")
    dora = written(tmp_path, "dora", {**one, "lora_unet_a.dora_scale": torch.ones(1, IN)})
    with pytest.raises(UserError, match="is a DoRA layer"):
        next(merge([dora], [1.0]))
    wider = {**one, "lora_unet_a.lora_down.weight": random(3, IN + 1)}
    with pytest.raises(UserError, match="different base models"):
        next(merge([written(tmp_path, "one", one), written(tmp_path, "wider", wider)], [1.0, 1.0]))
    with pytest.raises(UserError, match="holds no LoRA layers"):
        written(tmp_path, "none", {"something": torch.ones(2)})


def test_strength_zero_leaves_a_file_out(tmp_path):
    (one, first), (two, _) = kohya("lora_unet_a"), kohya("lora_unet_a")
    merged, _energy = next(merge([written(tmp_path, "one", one), written(tmp_path, "two", two)], [1.0, 0.0]))
    torch.testing.assert_close(change_of(merged), first)
    assert len(merged.down) == 3
