"""What a launcher may know of the device that it launches on. The one place under kernels/gpu/ that asks torch.cuda."""

import torch
import triton

_DEFAULT_CAPABILITY = 90
_DEFAULT_MULTIPROCESSORS = 132  # an H100; for tensors that are on no GPU: interpreted and compiled launches


def capability(device: torch.device) -> int:
    """Compute capability, 10 * major + minor: the device's, or the one that is compiled for without a device."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    try:
        arch: int = triton.runtime.driver.active.get_current_target().arch
    except RuntimeError:  # no driver at all: the interpreter
        return _DEFAULT_CAPABILITY
    return arch


def num_multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if device.type != "cuda":
        return _DEFAULT_MULTIPROCESSORS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
