"""Where a captioner runs, in which precision, and telling a full memory from other failures.

Captioners need no accelerate: nothing is trained, and a worker that only tags starts in half the time without it.
"""
import torch

from ..errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """The device of that name; for "auto" the GPU if there is one."""
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():  # AMD's cards too
        return torch.device("cuda")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """The precision of that name; for "auto" bf16 or fp16 on graphics cards that have it, else fp32. Raises UserError for
    fp16 without a card."""
    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if device.type == "xpu" else torch.float32
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("precision is fp16, which only runs on a graphics card. Choose auto, bf16 or fp32.")
    return PRECISIONS[wanted]


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether the memory was full. Accelerators other than CUDA, and onnxruntime, say so in the text alone."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(problem).lower()
    return "out of memory" in text or "failed to allocate memory" in text
