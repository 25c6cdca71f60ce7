"""Memory that panels lie in: aligned, in huge pages where the system gives them.

A matrix is read once per step from end to end. With 4 KB pages one core reads it at 20 GB/s, with 2 MB pages at 27 and
more (AMD EPYC, Zen 4), as the hardware's prefetch stops at every page's end.
"""

import mmap

import torch
from torch import Tensor

ALIGNMENT_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20
# Address space only: what is not written to is not there.
REGION_BYTES = 64 << 20


class PanelMemory:
    """Many matrices side by side, so that none ends in a huge page of its own. It lives as long as they do."""

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], zero."""
        wanted = -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        if wanted > self._free.numel():
            self._free = _region(max(wanted, REGION_BYTES))
        taken, self._free = self._free[:num_bytes], self._free[wanted:]
        return taken


def _region(num_bytes: int) -> Tensor:
    mapped = mmap.mmap(-1, num_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region = torch.frombuffer(mapped, dtype=torch.uint8)  # keeps `mapped`
    try:
        mapped.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        pass  # a kernel without: small pages, as everywhere else
    skipped = -region.data_ptr() % HUGE_PAGE_BYTES
    return region[skipped : skipped + num_bytes]
