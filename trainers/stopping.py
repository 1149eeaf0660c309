"""A stop that is asked for from outside, and where it may break work off.

Work in a `breakable()` region is broken off wherever it is, between two layers of a network or two tensors of a file: the
main thread raises Cancelled. In an `unbroken()` region, and outside of any, the request waits and is only to be asked for.
Where no StopRequest was made, as in tests and in ComfyUI's own process, regions do nothing.
"""
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from .errors import Cancelled

KNOCK = getattr(signal, "SIGUSR1", None) or signal.SIGBREAK
"""The signal that makes the main thread look up from its work. Windows knows no SIGUSR1, and no process sends Ctrl-Break."""
BETWEEN_KNOCKS = 0.1
"""Seconds."""
AGAIN = 3.0
"""Seconds after which a region that was broken off and still goes on, because something swallowed the exception, is broken
off again. Long enough for what has to be put in order behind it."""

_region = None


class _Region:
    """The innermost region of the main thread; other threads are never broken off."""

    def __init__(self, breaks: bool):
        self.breaks, self.broken_at = breaks, 0.0

    def __enter__(self):
        global _region
        self.outer = _region
        if threading.current_thread() is threading.main_thread():
            _region = self

    def __exit__(self, *_):
        global _region
        if threading.current_thread() is threading.main_thread():
            _region = self.outer


def breakable(when: bool = True) -> _Region:
    """Inside, a requested stop raises Cancelled. Nothing may be half done there that others rely on."""
    return _Region(when)


def unbroken() -> _Region:
    """Inside, a requested stop waits."""
    return _Region(False)


class StopRequest:
    """True once "cancel" was read from standard input, its other end was closed, or the process was asked to end (Ctrl-C
    reaches a server's children too). A second Ctrl-C ends at once. `on_request` is called once, from another thread."""

    def __init__(self, listen: bool, on_request: Callable[[], None] = lambda: None):
        self.requested, self.on_request = False, on_request
        self.calls: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be filled from within a signal handler
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)
        signal.signal(KNOCK, self._knocked)
        for work in (self._break_off, *([self._listen] if listen else [])):
            threading.Thread(target=work, daemon=True).start()

    def __call__(self) -> bool:
        return self.requested

    def _request(self):
        self.requested = True
        self.calls.put(None)

    def _signalled(self, number: int, frame: FrameType | None):
        signal.signal(number, signal.SIG_DFL)
        self._request()

    def _listen(self):
        for line in sys.stdin:
            if line.strip() == "cancel":
                break
        self._request()

    def _break_off(self):
        self.calls.get()
        self.on_request()
        while True:
            if _region is not None and _region.breaks:
                knock()
            time.sleep(BETWEEN_KNOCKS)

    def _knocked(self, number: int, frame: FrameType | None):
        """In the main thread, between two of its instructions. Never within the bookkeeping of regions itself."""
        region = _region
        if region is None or not region.breaks or (frame and frame.f_code.co_filename == __file__):
            return
        now = time.monotonic()
        if region.broken_at and now - region.broken_at < AGAIN:
            return
        while region is not None and region.breaks:  # those around it are left too
            region.broken_at, region = now, region.outer
        raise Cancelled


def knock():
    """A signal to the main thread; on POSIX it wakes it from waiting too."""
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, KNOCK)
    else:
        import _thread

        _thread.interrupt_main(KNOCK)
