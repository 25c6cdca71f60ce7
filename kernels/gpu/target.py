"""What a launcher may know of the device that it launches on. The one place under kernels/gpu/ that asks torch.cuda."""

import torch

_DEFAULT_MULTIPROCESSORS = 132  # an H100; for tensors that are on no GPU: interpreted and compiled launches


def num_multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if device.type != "cuda":
        return _DEFAULT_MULTIPROCESSORS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
