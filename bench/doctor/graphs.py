"""Whether decode steps replayed as CUDA graphs say what they say launched kernel by kernel, and how long both take."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bench.doctor.check import Finding, Verdict
from engine.cuda_device import CudaDevice
from engine.decode_graphs import DecodeGraphs, GraphBackend
from engine.decode_rows import DecodeRows
from engine.kv_pool import KVLayout, KVPool
from engine.model import Model
from engine.model_files import resolve_model
from engine.model_runner import ModelRunner
from engine.step import DecodeStep
from engine.weights import load_model
from settings.loading import load_settings

BATCH_SIZES = (1, 3, 16, 64)  # 3 is padded
NUM_TOKENS = 200  # of each sequence
# Attention is split otherwise where tables are wider, so sums are made in another order; seen on a CPU: 2e-5.
LARGEST_ERROR = 1e-3
_BLOCK_SIZE = 16
_NUM_STEPS = 20


def check(device: torch.device) -> Iterator[Finding]:
    """The model of the settings in float32 on the device."""
    model = load_model(resolve_model(load_settings().model, lambda line: None), torch.float32, device)
    yield from compare(model, CudaDevice(device), BATCH_SIZES, NUM_TOKENS)


@torch.inference_mode()
def compare(
    model: Model, backend: GraphBackend, batch_sizes: Sequence[int], num_tokens: int, num_steps: int = _NUM_STEPS
) -> Iterator[Finding]:
    """A line per batch size: largest difference of the logits, and milliseconds of a step both ways."""
    config, width = model.config, -(-num_tokens // _BLOCK_SIZE)
    layout = KVLayout(config.num_layers, config.num_kv_heads, _BLOCK_SIZE, config.head_dim, model.dtype)
    pool = KVPool.allocate(layout, width * max(batch_sizes), model.device)
    pool.tensor.normal_()
    graphs = DecodeGraphs(model, pool, max(batch_sizes), 2 * num_tokens, backend, lambda line: None)
    launched, replayed = ModelRunner(model, pool), ModelRunner(model, pool, graphs=graphs)
    for size in batch_sizes:
        step = DecodeStep(_rows(size, width, num_tokens, config.vocab_size))
        wanted, launched_ms = _run(partial(launched.compute, step), model.device, num_steps)
        got, replayed_ms = _run(partial(replayed.compute, step), model.device, num_steps)
        error = float(((got - wanted).abs() / (1 + wanted.abs())).max())
        said = (
            f"largest difference {error:.2g}, at most {LARGEST_ERROR:g} wanted; a step takes {replayed_ms:.2f} ms "
            f"replayed, {launched_ms:.2f} ms launched kernel by kernel"
        )
        figures = {"max_error": error, "replayed_ms": replayed_ms, "launched_ms": launched_ms}
        verdict = Verdict.OK if error <= LARGEST_ERROR else Verdict.FAIL
        yield Finding(f"{size} sequences of {num_tokens} tokens", verdict, said, figures=figures)


def _rows(size: int, width: int, num_tokens: int, vocab_size: int) -> DecodeRows:
    tables = [list(range(row * width, (row + 1) * width)) for row in range(size)]
    position = num_tokens - 1
    return DecodeRows(
        token_ids=[row * 17 % vocab_size for row in range(size)],
        positions=[position] * size,
        slots=[table[-1] * _BLOCK_SIZE + position % _BLOCK_SIZE for table in tables],
        block_tables=tables,
    )


def _run(compute: Callable[[], Tensor], device: torch.device, num_steps: int) -> tuple[Tensor, float]:
    """(the first step's logits, the median of a step in ms, the wait for the device included)."""
    logits = compute().clone()
    times_s = []
    for _ in range(num_steps):
        began_s = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times_s.append(time.perf_counter() - began_s)
    return logits, statistics.median(times_s) * 1e3
