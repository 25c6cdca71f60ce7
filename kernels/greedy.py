"""The largest logit of each row and the log of its probability: by the C++ library, and its twin in torch.

Knows no parameters and no sequence; which rows are greedy is `engine/sampler.py`'s to say.
"""

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from kernels import cpu_build


def greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The best that there is for where the logits lie; see `plain_greedy`."""
    library = cpu_build.load() if logits.device.type == "cpu" and logits.dtype == torch.float32 else None
    return plain_greedy(logits) if library is None or logits.stride(1) != 1 else fused_greedy(library, logits)


def plain_greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """logits: float32 [R, V] -> int64 [R], the first of the largest; float32 [R], its log-softmax.

    The second is not finite where a row holds a NaN or +inf, or nothing finite; the first means nothing there.
    """
    ids = logits.argmax(dim=-1, keepdim=True)
    # log_softmax works row by row; a sum over one long row is split between threads and rounds by batch size.
    return ids.squeeze(-1), torch.log_softmax(logits, dim=-1).gather(-1, ids).squeeze(-1)


def fused_greedy(library: ctypes.CDLL, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`plain_greedy` in two passes over each row and no copy: 16 rows of 49,152 in 0.57 ms, not 1.10, on one thread."""
    rows, size = logits.shape
    ids, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    run = library.pdq_greedy
    run.argtypes, run.restype = [c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p], None
    run(logits.data_ptr(), logits.stride(0), rows, size, ids.data_ptr(), logprobs.data_ptr())
    return ids, logprobs
