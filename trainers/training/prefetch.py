"""Micro-batches are read by a thread of their own while the steps before them run, so that no step waits for files."""
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import torch

from ..read_ahead import ahead
from .batches import Batch, Batches, MicroBatch

BEGUN = 3
"""Micro-batches in memory at once: one that trains, one that is ready, and one that is being read."""


@contextmanager
def prefetched(batches: Batches, steps: range, device: torch.device) -> Iterator[Iterator[Batch]]:
    """The batches of all micro-batches of `steps`, in the order of `batches.plan`; for a GPU in pinned memory, from which
    it copies while it computes. They are functions of (seed, step), so it does not matter when they are read.

    An error of reading is raised where its batch is asked for. The thread ends with the context.
    """
    on_cuda = device.type == "cuda"

    def read(micro: MicroBatch) -> Batch:
        batch = batches.load(micro)
        return batch.pinned() if on_cuda else batch

    planned = (micro for step in steps for micro in batches.plan(step))
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        _compute_alone(pool)
        if on_cuda:  # a thread begins with the first GPU as its own, and pinning would open a context there
            pool.submit(torch.cuda.set_device, torch.cuda.current_device()).result()
        with closing(ahead(pool, read, planned, BEGUN)) as reading:
            yield reading
    finally:
        pool.shutdown(cancel_futures=True)


def _compute_alone(pool: ThreadPoolExecutor):
    """Let the pool's only thread compute without a team of OpenMP threads. With one the process would have more threads than
    processors, and then the training's own team sleeps between operations: steps on a CPU took a tenth longer."""
    def alone():
        torch.get_num_threads()  # a thread takes the process's number at its first question, and keeps what is set after it
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    pool.submit(alone).result()
    torch.set_num_threads(threads)  # for threads that begin later; this one's was not changed
