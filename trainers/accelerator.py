"""The device and the precision of a task, as accelerate's Accelerator."""
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from .errors import UserError
from .spec import RunSpec
from .spec.class_images import ClassImagesSpec


@contextmanager
def accelerated(spec: RunSpec | ClassImagesSpec) -> Iterator[Accelerator]:
    """The Accelerator of a run, given back afterwards: the next run may choose another precision."""
    accelerator = make_accelerator(spec)
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def make_accelerator(spec: RunSpec | ClassImagesSpec) -> Accelerator:
    """An Accelerator with the spec's precision: bf16 where the GPU has it, else fp16 on CUDA, else fp32."""
    on_cpu, precision = spec.device == "cpu", spec.memory.precision
    device = PartialState(cpu=on_cpu).device
    on_cuda = device is not None and device.type == "cuda"
    if precision == "auto":
        precision = "fp32" if not on_cuda else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if precision == "fp16" and not on_cuda:
        raise UserError("precision is fp16, which only trains on an NVIDIA or AMD GPU. Choose auto, bf16 or fp32.")
    return Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no"}.get(precision, precision))


def dtype_of(accelerator: Accelerator) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision, torch.float32)
