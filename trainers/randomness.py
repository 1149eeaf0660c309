"""Randomness as a function of (seed, step, sample), so that a resumed run draws what an unbroken run would have drawn."""
import numpy as np
import torch


def derive(seed: int, *counters: int) -> int:
    """Mix a seed with counters into a 63-bit seed, statistically independent for every combination.

    The mixing is numpy's `SeedSequence` (O'Neill's seed_seq_fe), which is documented to stay the same between versions.
    """
    sequence = np.random.SeedSequence([seed, *counters])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *counters: int) -> torch.Generator:
    """A CPU generator. Noise is drawn on the CPU, so every device trains on the same noise."""
    return torch.Generator().manual_seed(derive(seed, *counters))


# First counters of the streams, so that no two uses of a seed share numbers.
(NOISE, ORDER, DROPOUT, INITIALIZATION, CAPTIONS, CLASS_ORDER, VALIDATION, CLASS_IMAGES, VARIATION, AUGMENTATION,
 VARIANT) = range(11)
