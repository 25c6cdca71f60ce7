"""What was freed goes back to the system: glibc keeps it otherwise, for as long as the process lives.

Worth a call after something large was built from something larger. Knows the C library and nothing of ours.
"""

import ctypes


def give_back() -> None:
    """Of all threads. Some milliseconds; nothing where the C library is another one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
