"""The C library's memory allocator on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next step instead of returning them to the kernel.

    By default the kernel maps every block above 32 MB again and clears it page by page, which takes a third of the
    image branch's time. The setting holds for this process, whose memory then never shrinks.

    Returns:
        Whether the C library has the setting; those of macOS and musl do not.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES))
