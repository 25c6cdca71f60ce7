"""All that the engine asks of torch.cuda, and nothing else: no decision is made here. The one file of the engine that
no machine without a GPU can run; what calls it runs on a CPU in tests, with something else behind the same protocols.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.gpu_memory import MemoryReading

_WARM_UPS = 2  # the first launch compiles and loads kernels, which cannot be recorded


class CudaDevice:
    """A `GraphBackend` and a `MemoryMeter` of one GPU. What it runs, it runs on the calling thread's stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Warm-up and capture on one: cuBLAS keeps memory per stream.
        self._capture_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._graph_memory = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """See GraphBackend."""
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._capture_stream):
            for _ in range(_WARM_UPS):
                run()
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do meanwhile is no fault of this capture.
        with torch.cuda.graph(
            graph, pool=self._graph_memory, stream=self._capture_stream, capture_error_mode="thread_local"
        ):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    def host_buffer(self, num_bytes: int) -> Tensor:
        """See GraphBackend."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def measure(self, run: Callable[[], None]) -> MemoryReading:
        """See MemoryMeter. What the allocator reserves counts, as what it cannot use again is gone as well."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        torch.cuda.synchronize(self._device)
        most = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        own = torch.cuda.memory_reserved(self._device)
        return MemoryReading(total=total, used=total - free, own=own, step=most - own)
