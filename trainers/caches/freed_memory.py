"""Main memory that was freed goes back to the system, where the C library would keep it."""
import contextlib
import ctypes


def give_back_freed_memory():
    """glibc keeps freed blocks for each thread that allocated them: images read by several threads would leave holes that
    add up. Does nothing with another C library."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
