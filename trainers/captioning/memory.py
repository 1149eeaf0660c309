"""Telling a full memory from other failures."""
import torch


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether the memory was full. Accelerators other than CUDA, and onnxruntime, say so in the text alone."""
    if isinstance(problem, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(problem).lower()
    return "out of memory" in text or "failed to allocate memory" in text
