"""What denoisers are told beside the latents: joined, padded, masked and kept."""
import pytest
import torch
from finetune.trainers.families.conditioning import Conditioning
from safetensors.torch import load, save


def of_length(tokens: int, start: float = 1.0, **others) -> Conditioning:
    values = torch.arange(tokens * 2, dtype=torch.float32).reshape(1, tokens, 2) + start
    return Conditioning({"hidden": values, "pooled": torch.full((1, 3), start), **others})


def test_equal_lengths_are_joined_as_they_are():
    parts = [of_length(4, start) for start in (1.0, 9.0, 5.0)]
    joined = Conditioning.collated(parts)
    assert not joined.masks and joined.lengths("hidden") == (4, 4, 4)
    for name in ("hidden", "pooled"):
        assert torch.equal(joined[name], torch.stack([part[name][0] for part in parts]))


def test_different_lengths_are_padded_behind_and_masked():
    """Also token ids [batch, tokens], which have no width; and the mask of a part that brought one stays in it."""
    short, long = of_length(2, ids=torch.tensor([[7, 8]])), of_length(5, 20.0, ids=torch.tensor([[1, 2, 3, 4, 5]]))
    inner = Conditioning(of_length(3, 40.0, ids=torch.tensor([[6, 6, 6]])).tensors,
                         {"hidden": torch.tensor([[True, False, True]])})
    joined = Conditioning.collated([short, long, inner])
    assert joined["hidden"].shape == (3, 5, 2) and joined["pooled"].tolist() == [[1.0] * 3, [20.0] * 3, [40.0] * 3]
    assert joined["ids"].tolist() == [[7, 8, 0, 0, 0], [1, 2, 3, 4, 5], [6, 6, 6, 0, 0]]
    assert torch.equal(joined["hidden"][0, :2], short["hidden"][0]) and not joined["hidden"][0, 2:].any()
    assert torch.equal(joined["hidden"][1], long["hidden"][0])
    assert joined.masks["hidden"].dtype == torch.bool and joined.masks["hidden"].tolist() == [
        [True, True, False, False, False], [True] * 5, [True, False, True, False, False]]
    assert joined.lengths("hidden") == (2, 5, 2) and joined.lengths("ids") == (2, 5, 3)
    assert set(joined.masks) == {"hidden", "ids"}


def test_two_encoders_have_masks_of_their_own():
    def part(first: int, second: int) -> Conditioning:
        return Conditioning({"clip": torch.ones((1, first, 4)), "t5": torch.ones((1, second, 6))})

    joined = Conditioning.collated([part(3, 7), part(3, 2)])
    assert set(joined.masks) == {"t5"} and joined.lengths("clip") == (3, 3) and joined.lengths("t5") == (7, 2)
    twice = Conditioning.collated([joined, part(5, 1)])
    assert twice.lengths("clip") == (3, 3, 5) and twice.lengths("t5") == (7, 2, 1)


def test_parts_that_differ_in_more_than_their_length_do_not_fit():
    narrow, wide = (Conditioning({"hidden": torch.ones((1, 3, width))}) for width in (4, 5))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        Conditioning.collated([narrow, wide])


def test_an_entry_of_the_cache_is_the_batch_of_one_again():
    masked = Conditioning(of_length(3).tensors, {"hidden": torch.tensor([[True, True, False]])})
    for whole in (of_length(3), masked):
        again = Conditioning.of_entry(load(save(whole.entry())))
        for kept, known in ((again.tensors, whole.tensors), (again.masks, whole.masks)):
            assert kept.keys() == known.keys() and all(torch.equal(kept[name], known[name]) for name in known)
            assert all(kept[name].dtype == known[name].dtype for name in known)


def test_masks_go_where_the_tensors_go():
    joined = Conditioning.collated([of_length(2), of_length(4, 9.0)])
    assert joined.repeated(2).lengths("hidden") == (2, 2, 4, 4)
    assert joined.repeated(2)["pooled"][:, 0].tolist() == [1.0, 1.0, 9.0, 9.0]
    moved = joined.to(torch.device("meta"))
    assert {each.device.type for each in (*moved.tensors.values(), *moved.masks.values())} == {"meta"}
    both = joined | Conditioning({"sizes": torch.zeros((2, 6))})
    assert set(both.tensors) == {"hidden", "pooled", "sizes"} and both.masks == joined.masks and "sizes" not in joined
