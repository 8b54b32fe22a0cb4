"""The C library's memory on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next step instead of giving them back to the kernel.

    By default every block above 32 MB is mapped anew and cleared by the kernel page by page each time, which
    is a third of the image branch's time. Affects the whole process; costs nothing but that memory once used
    stays with it. False where the C library (of macOS, musl) has no such setting.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
