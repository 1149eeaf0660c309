"""torch.compile needs a compiler that people may not have; whether it works is tried on a trifle."""
import torch

from ..errors import UserError, reason_of


def require_compiler(device: torch.device):
    """Raise UserError when torch cannot compile for this device. Takes seconds, which later compiling needs less."""
    try:
        torch.compile(lambda numbers: numbers.sin() + 1)(torch.ones(8, device=device))
    except Exception as problem:  # a missing compiler, Triton or system: torch has an error of its own for each
        what = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise UserError(f"compile is on, but torch cannot compile on this computer ({reason_of(problem, 200)}). It needs "
                        f"{what}: install what is missing, or switch compile off on Training Memory.") from problem
    finally:
        torch._dynamo.reset()
