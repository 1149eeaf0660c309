"""Micro-batches are read while steps run: the same ones in the same order, and no thread is left behind."""
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from finetune.trainers import spec as specs
from finetune.trainers.errors import Cancelled, UserError
from finetune.trainers.run_folder import open_run
from finetune.trainers.training import loop
from finetune.trainers.training.batches import Batches
from finetune.trainers.training.prefetch import BEGUN, prefetched
from finetune.trainers.training.run import train_run
from support.running import losses_of

CPU, PATIENCE = torch.device("cpu"), 20
"""Seconds after which a test that waits for a thread has failed."""


class Numbers:
    """Batches that are numbers: two for each step."""

    def __init__(self, broken: int | None = None):
        self.begun, self.broken = [threading.Event() for _ in range(100)], broken

    def plan(self, step: int) -> list[int]:
        return [2 * step, 2 * step + 1]

    def load(self, micro: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        self.begun[micro].set()
        if micro == self.broken:
            raise UserError(f"file {micro} is gone")
        return micro


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_the_next_ones_are_read_while_one_trains():
    batches = Numbers()
    with prefetched(batches, range(3, 9), CPU) as reading:
        for expected in range(6, 18):
            assert next(reading) == expected
            ahead = min(expected + BEGUN - 1, 17)
            assert batches.begun[ahead].wait(PATIENCE)  # while nobody asks for it
            assert not batches.begun[ahead + 1].is_set()  # and no more: memory holds so many
        assert next(reading, None) is None
    assert not readers() and not batches.begun[5].is_set()


def test_reading_takes_one_thread_and_leaves_the_others_to_training():
    class Threads(Numbers):
        def load(self, micro: int) -> int:
            torch.ones(1_000_000).add_(1)  # large enough to be shared among threads
            return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with prefetched(Threads(), range(2), CPU) as reading:
            assert list(reading) == [1, 1, 1, 1]
            assert torch.get_num_threads() == 3
            with ThreadPoolExecutor(1) as later:
                assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_is_raised_where_its_batch_is_asked_for():
    batches = Numbers(broken=2)
    with pytest.raises(UserError, match="file 2 is gone"), prefetched(batches, range(9), CPU) as reading:
        assert [next(reading), next(reading)] == [0, 1]
        assert batches.begun[2].wait(PATIENCE)
        next(reading)
    assert not readers()


def test_leaving_early_leaves_no_thread():
    batches = Numbers()
    with pytest.raises(Cancelled), prefetched(batches, range(40), CPU) as reading:
        next(reading)
        raise Cancelled
    assert not readers() and not batches.begun[10].is_set()


def test_a_run_reads_ahead_and_ends_its_thread(tiny_bases, make_spec, monkeypatch):
    """The loop's own steps: when one begins, what the next one needs is read without being asked for."""
    read = [threading.Event() for _ in range(6)]
    load, accumulate = Batches.load, loop.accumulate_gradients

    def noted(batches, micro):
        batch = load(batches, micro)
        read[micro.number].set()
        return batch

    def step(accelerator, model, planned, *others):
        [micro] = planned
        loss = accumulate(accelerator, model, planned, *others)
        assert read[min(micro.number + 1, 5)].wait(PATIENCE)
        return loss

    monkeypatch.setattr(Batches, "load", noted)
    monkeypatch.setattr(loop, "accumulate_gradients", step)
    losses, _ = losses_of(make_spec(tiny_bases["sd1"]))
    assert len(losses) == 6 and not readers()


def test_a_cached_file_that_is_gone_stops_the_run_with_its_sentence(tiny_bases, make_spec, monkeypatch):
    """At the step that needs it, after the steps before; and no thread is left."""
    load = Batches.load

    def gone(batches, micro):
        if micro.step == 4:
            raise UserError("The cached latents of 'square_1.png' have disappeared.")
        return load(batches, micro)

    monkeypatch.setattr(Batches, "load", gone)
    spec, steps = make_spec(tiny_bases["sd1"], method=specs.LoraSpec(rank=2, alpha=2)), []
    with pytest.raises(UserError, match="'square_1.png' have disappeared"):
        train_run(spec, open_run(spec), lambda event: steps.append(event) if event.event == "step" else None)
    assert len(steps) == 4 and not readers()
