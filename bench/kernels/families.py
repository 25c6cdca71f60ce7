"""Which kernel families there are, by the stem of their file in kernels/gpu/; each module here says its cases."""

from importlib import import_module

from bench.kernels.case import KernelCase

FAMILIES = (
    "rms_norm",
    "rope",
    "silu_mul",
    "kv_write",
    "attention_decode",
    "attention_prefill",
    "block_copy",
    "sampling",
    "logits_bitmask",
    "split_k",
    "int4_linear",
    "fp8_linear",
)


def cases_of(family: str) -> list[KernelCase]:
    """The production shapes of one family: what is compiled, timed and checked on a GPU."""
    cases: list[KernelCase] = import_module(f"bench.kernels.{family}").cases()
    return cases


def small_cases_of(family: str) -> list[KernelCase]:
    """A few small shapes of one family: what is run under the interpreter."""
    cases: list[KernelCase] = import_module(f"bench.kernels.{family}").small_cases()
    return cases
