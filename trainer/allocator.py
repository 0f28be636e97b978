"""Keep the memory of large tensors in the process, where the C library is glibc."""

import ctypes
import platform

# From malloc.h: parameters of `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_BYTES = 2**31 - 1  # what a C int holds


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the kernel, which would have to clear it page by page.

    By default glibc gives each tensor of more than 32 MiB its own pages; a training step on a CPU then spends a third
    of its time in page faults. Call it before the first large tensor is made. The process keeps what it held at its
    peak.

    Returns:
        `bool`: whether the settings were taken; `False` outside Linux and with other C libraries.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Before glibc 2.35 the first is refused; the second alone would end its growth, and make things worse.
    return all(mallopt(name, _MOST_BYTES) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))


__all__ = ["keep_freed_memory"]
