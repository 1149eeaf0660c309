"""Which images are held out: a matter of each image alone, whatever lies beside it."""
import hashlib

import pytest
from finetune.trainers import spec as specs
from finetune.trainers.data.split import split


def image(number: int) -> specs.DatasetImage:
    return specs.DatasetImage(path="", name=str(number), caption="", size=(64, 64),
                              digest=hashlib.sha256(str(number).encode()).hexdigest())


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_an_image_keeps_its_side_when_others_come_and_the_share_is_met(fraction):
    images = [image(number) for number in range(20_000)]
    trained, held_out = split(images, fraction)
    assert len(held_out) / len(images) == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / len(images)) ** 0.5)
    assert sorted(trained + held_out, key=lambda each: int(each.name)) == images
    fewer_trained, fewer_held_out = split(images[::7][::-1], fraction)
    assert set(fewer_trained) <= set(trained) and set(fewer_held_out) <= set(held_out)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_both_sides_have_an_image_in_every_small_dataset(count):
    for start in range(0, 300, count):
        for fraction in (0.01, 0.5):
            trained, held_out = split([image(number) for number in range(start, start + count)], fraction)
            assert trained and held_out and len(trained) + len(held_out) == count


def test_copies_of_an_image_stay_together():
    copies = [image(1), image(2), image(1).model_copy(update={"name": "copy"})]
    for side in split(copies, 0.3):
        assert len({each.digest for each in side}) == 1
    assert split(copies, 0.0) == (copies, [])
