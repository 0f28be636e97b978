"""Reuse freed memory in a training on a CPU."""

import ctypes
import platform

# Parameters of `mallopt` from malloc.h, and the largest C int.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MAX_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the kernel, which would clear it page by page.

    By default glibc maps each tensor of more than 32 MiB anew, and a training step on a CPU spends a third of its time
    in page faults. Call this after the imports and before the first large tensor. The process then keeps
    its peak memory.

    Returns:
        `bool`: whether the settings were taken; `False` outside Linux and with other C libraries.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    # Before glibc 2.35 the first setting is refused; the second on its own would stop the threshold from growing.
    return all(mallopt(name, _MAX_BYTES) == 1 for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
