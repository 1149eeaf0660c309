"""How the scripts end: a failure is one sentence for the person who ran them, never a traceback."""
from __future__ import annotations

import signal
import sys
import tempfile
import traceback
from collections.abc import Callable


class Failure(Exception):
    """Something went wrong; the message says what, and what to do about it."""


def run_script(body: Callable[[], int]) -> None:
    """Run a script's `body` and leave Python with its exit code, or with 1 and a sentence."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, interrupt_on_signal)
    try:
        sys.exit(body())
    except Failure as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(f"This script has a fault ({type(error).__name__}: {error}); please report it with {write_report()}.")


def interrupt_on_signal(*_: object) -> None:
    """Signal handler: unwind like Ctrl-C, so that servers started by a `with` block are ended too."""
    raise KeyboardInterrupt


def write_report() -> str:
    """Save the current traceback in a file and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="finetune-", suffix=".log", delete=False, encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return file.name
