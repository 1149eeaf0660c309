"""What fits into a GPU's memory."""
import pytest
from finetune.trainers.families.memory_presets import SIZES, fitted, fitting_memory, in_words
from finetune.trainers.families.recognition import recognize
from support import tiny_flow

DOUBLE, SINGLE = 0.34, 0.1416
"""Billions of weights of FLUX.1's blocks; of a double block: 2 streams of (4 + 8 + 6) · 3072²; of a single (7 + 5 + 3)."""
FLUX = 19 * DOUBLE + 38 * SINGLE + 0.1


@pytest.mark.parametrize("gigabytes, kohya", [(24, 0), (12, 16), (8, 28)])
def test_as_many_weights_wait_as_in_kohyas_table_for_flux(gigabytes, kohya):
    """Half of kohya's blocks are double blocks, the other half are pairs of single ones. Ours are spread evenly, and two of
    them are on the GPU."""
    away = kohya // 2 * DOUBLE + (kohya - kohya // 2) * 2 * SINGLE
    memory = fitted(FLUX, 57, gigabytes, text_billions=4.76)
    assert max(0, memory.swapped_blocks - 2) * FLUX / 57 == pytest.approx(away, abs=0.5)
    assert memory.frozen_precision == "int8" and memory.gradient_checkpointing
    assert memory.text_precision == ("int8" if gigabytes == 8 else "same")
    assert fitted(4, 25, gigabytes, text_billions=8.2).text_precision == ("int8" if gigabytes < 17 else "same")


def test_smaller_memory_takes_more_measures_and_smaller_models_fewer():
    for billions, blocks in ((12, 57), (8.1, 38), (2.6, 24), (0.9, 9)):
        chosen = [fitted(billions, blocks, size) for size in SIZES]
        assert [each.swapped_blocks for each in chosen] == sorted(each.swapped_blocks for each in chosen)
        resident = [(1 if each.frozen_precision != "same" else 2) * billions * (1 - max(0, each.swapped_blocks - 2) / blocks)
                    for each in chosen]
        assert all(weights <= size - 5 + 1e-9 for weights, size in zip(resident, SIZES, strict=True))
    assert in_words(fitted(0.9, 9, 24)) == []
    assert in_words(fitted(2.6, 24, 8)) == ["gradient checkpointing", "denoiser in int8"]
    assert fitted(12, 57, 24, in_fp8=True).frozen_precision == "fp8"


@pytest.mark.parametrize("family", ["sd1", *tiny_flow.FAMILIES])
def test_the_weights_of_a_base_are_counted(family, tiny_bases, tmp_path):
    """Tiny models need nothing, however large their kind of text encoder is."""
    base = tiny_bases[family] if family == "sd1" else recognize(str(tiny_flow.make_folder(family, tmp_path / "x")), family)
    small, large = fitting_memory(base, 8), fitting_memory(base, 24)
    assert in_words(large) == [] and in_words(small) == []
