"""Blocks of a frozen denoiser that are away and come to the device in time for their forward and their backward pass.

Their home is main memory, pinned, for a GPU; for a run on the CPU a file without a name, which vanishes with the process.
On the device is room for two of them: one that computes, and the next one, which comes meanwhile. Weights only ever come;
nothing goes back, for nothing of them changes. Adapters, biases and norms stay on the device.
"""
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import ensure_space
from .frozen_layers import is_wide, keep_outside

ALIGNED = 64
"""Bytes. Where torch's own tensors begin in main memory, too: the same products with the same bits."""
ROOM = 2
"""Blocks for which the device has room."""


def chosen(blocks: int, swapped: int) -> list[int]:
    """Which of so many blocks are swapped: spread evenly, so that while one comes others compute."""
    swapped = min(swapped, blocks)
    return [(2 * number + 1) * blocks // (2 * swapped) for number in range(swapped)]


class Home(Protocol):
    """Where the bytes of one block are while they are away."""

    def write(self, start: int, values: Tensor):
        """Keep contiguous uint8 values on the CPU, from byte `start` on."""
        ...

    def bring(self, room: Tensor) -> Callable[[], None]:
        """Begin to copy everything into `room`, uint8 [bytes]. What is returned waits until it is there."""
        ...


class MainMemory:
    """A GPU copies from pinned memory while it computes. Copies run on a stream of their own."""

    def __init__(self, size: int, device: torch.device, stream: "torch.cuda.Stream | None"):
        self.values = torch.empty(size, dtype=torch.uint8, pin_memory=stream is not None)
        self.device, self.stream = device, stream

    def write(self, start: int, values: Tensor):
        self.values[start:start + len(values)] = values

    def bring(self, room: Tensor) -> Callable[[], None]:
        room = room[:len(self.values)]
        if self.stream is None:
            room.copy_(self.values)
            return lambda: None
        # Whatever still computes with the block that was in this room was queued before.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            room.copy_(self.values, non_blocking=True)
            there = self.stream.record_event()
        return lambda: torch.cuda.current_stream(self.device).wait_event(there)


class OnDisk:
    """A part of a file, read by a thread. What the system keeps of the file in its own memory, it gives up when asked."""

    def __init__(self, size: int, start: int, file, thread: ThreadPoolExecutor):
        self.size, self.start, self.file, self.thread = size, start, file, thread

    def write(self, start: int, values: Tensor):
        self.thread.submit(self._write, self.start + start, values).result()

    def _write(self, start: int, values: Tensor):
        self.file.seek(start)
        rest = values.numpy().data
        while rest:
            rest = rest[self.file.write(rest):]

    def bring(self, room: Tensor) -> Callable[[], None]:
        return self.thread.submit(self._read, room[:self.size].numpy().data).result

    def _read(self, rest: memoryview):
        try:
            self.file.seek(self.start)
            while rest:
                count = self.file.readinto(rest)
                if not count:
                    raise OSError("the file is shorter than what was written")
                rest = rest[count:]
        except OSError as problem:
            raise UserError(f"Swapped blocks cannot be read back from the cache folder: {problem}. Check the disk, or set "
                            "swapped_blocks to 0.") from problem


@dataclass(frozen=True)
class Piece:
    """A tensor among the bytes of a block."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize

    def of(self, values: Tensor) -> Tensor:
        return values[self.start:self.end].view(self.dtype).view(self.shape)


class SwappedLayer:
    """Where a layer's weight is: `frozen_layers.Stored`."""

    def __init__(self, swap: "BlockSwap", block: int, pieces: Sequence[Piece]):
        self.swap, self.block, self.pieces = swap, block, pieces

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        values = self.swap.on_device(self.block)
        first, *second = [piece.of(values) for piece in self.pieces]
        return first, second[0] if second else None

    def expect(self, backward: bool):
        self.swap.backward_follows = backward


class BlockSwap:
    """The swapped blocks of one denoiser, in the order of the data flow, which may still be without weights.

    `packed` is the type of weights in 8 bits, or None. `keep` takes the layers over, each when its weight is known.
    """

    def __init__(self, blocks: Sequence[nn.Module], packed: torch.dtype | None, dtype: torch.dtype, device: torch.device,
                 home: Literal["memory", "disk"], folder: Path = Path()):
        self.dtype, self.device = dtype, device
        self.backward_follows = True
        self.layers: dict[nn.Module, SwappedLayer] = {}
        sizes = [self._laid_out(number, block, packed) for number, block in enumerate(blocks)]
        self.homes = self._make_homes(sizes, home, folder)
        self.largest = max(sizes, default=0)
        self.there: dict[int, tuple[Tensor, Callable[[], None]]] = {}
        """Block → its room, and how to wait until it is there."""
        self.last = -1

    def _laid_out(self, number: int, block: nn.Module, packed: torch.dtype | None) -> int:
        """Give each layer that can go its place; returns the bytes of all."""
        start = 0
        for layer in filter(is_wide, block.modules()):
            shape, pieces = tuple(cast("nn.Linear", layer).weight.shape), []
            scale = ((shape[0], *[1] * (len(shape) - 1)), torch.float32)
            for each, dtype in [(shape, packed), scale] if packed else [(shape, self.dtype)]:
                pieces.append(Piece(start, each, dtype))
                start = -(-pieces[-1].end // ALIGNED) * ALIGNED
            self.layers[layer] = SwappedLayer(self, number, pieces)
        return start

    def _make_homes(self, sizes: Sequence[int], home: str, folder: Path) -> list[Home]:
        if home == "memory":
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            return [MainMemory(size, self.device, stream) for size in sizes]
        folder.mkdir(parents=True, exist_ok=True)
        ensure_space(folder, sum(sizes))
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (open as long as the layers that read it)
        thread = ThreadPoolExecutor(1)
        return [OnDisk(size, sum(sizes[:number]), file, thread) for number, size in enumerate(sizes)]

    def keep(self, layer: nn.Module, tensors: Sequence[Tensor]):
        """Take a layer's weight, or packed weight and scale, home; from now on it is asked for when it is needed."""
        place = self.layers.pop(layer)
        for piece, tensor in zip(place.pieces, tensors, strict=True):
            flat = tensor.detach().to("cpu", piece.dtype).contiguous().view(-1).view(torch.uint8)
            self.homes[place.block].write(piece.start, flat)
        keep_outside(layer, place, self.dtype)

    def on_device(self, block: int) -> Tensor:
        """The bytes of a block on the device, valid until another block is asked for. Begins to bring the next one."""
        if block != self.last:
            self._bring(block, keep=block)
            self.there[block][1]()
            following, self.last = self._following(block), block
            self._bring(following, keep=block)
        return self.there[block][0]

    def _following(self, block: int) -> int:
        """The block that is asked for next: up to the last, then back if a backward pass follows, else from the first."""
        end = len(self.homes) - 1
        if block == end:
            return max(end - 1, 0) if self.backward_follows else 0
        return block + 1 if block == 0 or block > self.last else block - 1

    def _bring(self, block: int, keep: int):
        if block in self.there:
            return
        if len(self.there) < min(ROOM, len(self.homes)):
            room = torch.empty(self.largest, dtype=torch.uint8, device=self.device)
        else:
            left = next(each for each in self.there if each != keep)
            room, wait = self.there.pop(left)
            wait()  # it may still be coming, when it was not needed after all
        self.there[block] = room, self.homes[block].bring(room)
